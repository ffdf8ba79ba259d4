#!/bin/bash
# Prints the counters that we compare between revisions; none of them passes or fails.
set -euo pipefail
cd "$(dirname "$0")/.."
exec cargo bench --quiet -p minivmm
