#!/bin/bash
# Runs every fuzz target for FUZZ_SECONDS each; a finding ends it with the input's path.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-60}

cargo fuzz --version >/dev/null 2>&1 ||
    { echo "cargo-fuzz is missing; this mends it: cargo install cargo-fuzz" >&2; exit 1; }
# The sanitizers are compiler options that only a nightly compiler takes by itself.
toolchain=()
if rustc +nightly --version >/dev/null 2>&1; then toolchain=(+nightly); else export RUSTC_BOOTSTRAP=1; fi
for target in $(cargo "${toolchain[@]}" fuzz list); do
    echo "== $target, $seconds s"
    # What it finds goes to the first directory; seeds are only read.
    corpus=("fuzz/corpus/$target")
    mkdir -p "${corpus[0]}"
    [ ! -d "fuzz/seeds/$target" ] || corpus+=("fuzz/seeds/$target")
    cargo "${toolchain[@]}" fuzz run "$target" "${corpus[@]}" -- -max_total_time="$seconds" -timeout=60
done
