#!/bin/bash
# Prints the counters that we compare between revisions; none of them passes or fails. BENCH names one of them.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --quiet --release -p minivmm -p bench
exec ./target/release/bench ${BENCH:-}
