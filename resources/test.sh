#!/bin/bash
# Runs the named steps (all of them without a name), each to its end, then says how each went.
set -uo pipefail
cd "$(dirname "$0")/.."

steps=("$@")
[ $# -gt 0 ] || steps=(fmt clippy unit native lab)
# A test that hangs shall not hang CI.
limit=${STEP_LIMIT:-1200}

# The integration tests of the root package whose names begin so, as arguments for cargo.
named() {
    local file
    for file in tests/$1*.rs; do
        [ -e "$file" ] && printf -- '--test %s ' "$(basename "$file" .rs)"
    done
}
# The lab tests' names, those that take minutes first: with two side by side none is left alone at the end.
lab_names() {
    local long='lab_readme lab_debian lab_run lab_kernels lab_disk lab_debian_short lab_verbs' name file
    for name in $long; do
        [ -e "tests/$name.rs" ] && echo "$name"
    done
    for file in tests/lab_*.rs; do
        name=$(basename "$file" .rs)
        [[ " $long " == *" $name "* ]] || echo "$name"
    done
}
# Those that are neither native nor lab tests need nothing but cargo.
plain() {
    local file name
    for file in tests/*.rs; do
        name=$(basename "$file" .rs)
        [ -e "$file" ] && [[ $name != native_* && $name != lab_* ]] && printf -- '--test %s ' "$name"
    done
}

cargo_test() { timeout "$limit" cargo test --quiet "$@"; }

# The hostile guest is no package of its own.
step_fmt() { cargo fmt --all --check && rustfmt --check --edition 2024 tests/guest/hostile/main.rs; }
# Lints, and the documents that an embedder reads.
step_clippy() {
    timeout "$limit" cargo clippy --quiet --workspace --all-targets -- -D warnings &&
        RUSTDOCFLAGS="-D warnings" timeout "$limit" cargo doc --quiet --no-deps --lib -p minivmm
}
step_unit() {
    # shellcheck disable=SC2046  # the names are words
    cargo_test --workspace --exclude minivmm --exclude lab &&
        cargo_test -p minivmm --lib --bins $(plain) -- --skip machine::tests --skip host::tap::tests &&
        cargo_test -p minivmm --doc &&
        cargo_test -p lab --lib
}
step_native() {
    [ -e /dev/kvm ] || { echo "/dev/kvm is missing: modprobe kvm_intel or kvm_amd, or enable virtualisation"; return 1; }
    [ -r /dev/kvm ] && [ -w /dev/kvm ] ||
        { echo "/dev/kvm is not yours: sudo usermod -aG kvm $(id -un), then log in again"; return 1; }
    local tests
    tests=$(named native_)
    [ -n "$tests" ] || { echo "there are no tests/native_*.rs"; return 1; }
    # Network interfaces are root's to make: each test makes its own, in a namespace that ends with it.
    local as_root=()
    [ "$(id -u)" = 0 ] || as_root=(--config "target.'cfg(all())'.runner = 'sudo'")
    cargo_test "${as_root[@]}" -p minivmm --lib -- host::tap::tests || return 1
    cargo_test "${as_root[@]}" -p minivmm --test native_hostile --test native_reboot || return 1
    tests=${tests//--test native_hostile /}
    tests=${tests//--test native_reboot /}
    # shellcheck disable=SC2086
    cargo_test -p minivmm --lib -- machine::tests && cargo_test -p minivmm $tests
}
step_lab() {
    local tests
    tests=$(named lab_)
    [ -n "$tests" ] || { echo "there are no tests/lab_*.rs"; return 1; }
    local name bad=0
    cargo run --quiet -p lab --bin lab -- prepare || return 1
    cargo_test -p lab --tests -- --test-threads=2 || bad=1
    # shellcheck disable=SC2086
    cargo build --quiet -p minivmm --examples && cargo_test -p minivmm $tests --no-run || return 1
    # An emulated machine has one processor, so its tests run one by one; two files run side by side, as hosts have two.
    for name in $(lab_names); do
        while [ "$(jobs -rp | wc -l)" -ge "${LAB_JOBS:-2}" ]; do wait -n || bad=1; done
        cargo_test -p minivmm --test "$name" -- --test-threads=1 >"$logs/$name" 2>&1 &
    done
    while [ -n "$(jobs -rp)" ]; do wait -n || bad=1; done
    for name in $(lab_names); do
        cat "$logs/$name"
        grep -q '^test result: ok' "$logs/$name" || bad=1
    done
    return $bad
}

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
failed=0
summary=()
for step in "${steps[@]}"; do
    echo "== $step"
    begin=$SECONDS
    if "step_$step"; then word=ok; else word=FAILED failed=1; fi
    summary+=("$(printf '%-8s %-7s %4d s' "$step" "$word" $((SECONDS - begin)))")
done
printf '\n'
printf '%s\n' "${summary[@]}"
exit $failed
