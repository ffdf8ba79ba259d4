#!/bin/bash
# Runs the named steps (all of them without a name), each to its end, then says how each went and which tests took longest.
# With MINIVMM_SOAK=1 (`make soak`) tests that repeat something do it ten times as often.
set -uo pipefail
cd "$(dirname "$0")/.."

steps=("$@")
[ $# -gt 0 ] || steps=(fmt clippy unit native lab)
# A test that hangs shall not hang CI.
limit=${STEP_LIMIT:-1200}
[ "${MINIVMM_SOAK:-}" != 1 ] || limit=${STEP_LIMIT:-7200}
# A clean clone is built once: what helps the second build only costs time there.
[ -z "${CI:-}" ] || export CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=0

# Integration tests in these folders whose names begin so, as arguments for cargo.
named() {
    local file
    for file in "$@"; do
        [ -e "$file" ] && printf -- '--test %s ' "$(basename "$file" .rs)"
    done
}
# The lab tests' names, those that take minutes first: with two side by side none is left alone at the end.
lab_names() {
    local long='lab_debian lab_disks lab_verbs lab_save lab_moves lab_readme lab_networks lab_run lab_devices' name file
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
    local file
    for file in {boot,devices,virtio,tests/guest}/tests/*.rs tests/*.rs; do
        [[ $file == tests/native_* || $file == tests/lab_* ]] || named "$file"
    done
}

# Always of the whole workspace: cargo chooses features for all selected packages together, so another selection is another
# build of what they share. Tests without a guest, and those with a tiny one, wait more than they work.
cargo_test() {
    local threads=${THREADS:-$((2 * $(nproc)))}
    RUST_TEST_THREADS=$threads timeout "$limit" cargo test --workspace --no-fail-fast "$@" 2>&1 |
        ./resources/times.sh "$logs/times" "$threads"
}
# All that the steps run, with the examples and the lab's program, in one build.
build() { timeout "$limit" cargo test --quiet --workspace --no-run; }

# Brings what the lab is made of, on a new machine for minutes: beside the steps before it, if there are any.
prepare=
begin_prepare() {
    [[ " ${steps[*]} " == *' lab '* && -z $prepare ]] || return 0
    timeout "$limit" "${CARGO_TARGET_DIR:-target}/debug/lab" prepare >"$logs/prepare" 2>&1 &
    prepare=$!
}
end_prepare() {
    begin_prepare
    wait "$prepare"
    local status=$?
    cat "$logs/prepare"
    return $status
}

# The guests in Rust are no packages of their own.
step_fmt() { cargo fmt --all --check && rustfmt --check --edition 2024 tests/guest/*/main.rs; }
# Lints, and the documents that an embedder reads.
step_clippy() {
    timeout "$limit" cargo clippy --quiet --workspace --all-targets -- -D warnings &&
        timeout "$limit" cargo clippy --quiet -p minivmm --lib --no-default-features -- -D warnings &&
        RUSTDOCFLAGS="-D warnings" timeout "$limit" cargo doc --quiet --no-deps --lib -p minivmm
}
# Units whose tests are root's: network interfaces, loop devices, and file systems that are full.
as_root_units='host::tap::tests host::disk::loop_device::tests host::disk::mapped::tests::full host::disk::mapped::tests::device'
step_unit() {
    build || return 1
    begin_prepare
    # shellcheck disable=SC2046,SC2086  # the names are words
    cargo_test --lib --bins $(plain) -- --skip machine::tests $(printf -- '--skip %s ' $as_root_units) && cargo_test --doc
}
step_native() {
    [ -e /dev/kvm ] || { echo "/dev/kvm is missing: modprobe kvm_intel or kvm_amd, or enable virtualisation"; return 1; }
    [ -r /dev/kvm ] && [ -w /dev/kvm ] ||
        { echo "/dev/kvm is not yours: sudo usermod -aG kvm $(id -un), then log in again"; return 1; }
    local keep=MINIVMM_SOAK,MINIVMM_TEST_WITHOUT,RUST_TEST_THREADS as_root=() sudo=()
    [ "$(id -u)" = 0 ] || { sudo=(sudo) as_root=(--config "target.'cfg(all())'.runner = 'sudo --preserve-env=$keep'"); }
    # The power is cut on a file system of the test's own.
    [ -e /dev/fuse ] || [[ ,${MINIVMM_TEST_WITHOUT:-}, == *,fuse,* ]] || "${sudo[@]}" modprobe fuse ||
        { echo "/dev/fuse is missing: modprobe fuse (for a container on its host), or MINIVMM_TEST_WITHOUT=fuse leaves power cuts out"; return 1; }
    build || return 1
    # shellcheck disable=SC2086  # the names are words
    cargo_test "${as_root[@]}" --lib -- $as_root_units || touch "$logs/native.failed"
    cargo_test --lib -- machine::tests || touch "$logs/native.failed"
    # They wait more than they work: so several files run side by side, dealt out in turn.
    local lane names pids
    # shellcheck disable=SC2046,SC2086
    side_by_side 0 "${as_root[@]}" $(printf -- '--test %s ' $as_root_files) &
    pids=($!)
    for lane in $(seq "$native_lanes"); do
        names=$(native_names | awk -v lane="$lane" -v of="$native_lanes" 'NR % of == lane % of { print "--test " $0 }')
        # shellcheck disable=SC2086  # the names are words
        side_by_side "$lane" $names &
        pids+=($!)
    done
    wait "${pids[@]}"
    [ ! -e "$logs/native.failed" ]
}
# Files whose tests are root's: folders whose file system is a test, and what attacks the host.
as_root_files='native_power native_hostile native_net_hostile native_reboot native_reflink'
native_lanes=3
# The others, those that take longest first: dealt out so, the lists take about as long as each other.
native_names() {
    local long='native_control native_migrate native_run native_overlays native_clients native_console native_leaks native_library
        native_warm native_devices native_clone native_ends native_daemon native_switch native_snapshot native_moments native_pause native_precopy'
    local name file
    for name in $long; do
        [ -e "tests/$name.rs" ] && echo "$name"
    done
    for file in tests/native_*.rs; do
        name=$(basename "$file" .rs)
        [[ " ${long//$'\n'/ } $as_root_files " == *" $name "* ]] || echo "$name"
    done
}
# Tests, beside which others run.
side_by_side() {
    local lane=$1
    shift
    cargo_test "$@" >"$logs/lane$lane" 2>&1 || touch "$logs/native.failed"
    cat "$logs/lane$lane"
}
# One file of the lab's tests. An emulated machine has one processor, so its tests run one by one.
lab_file() {
    THREADS=1 cargo_test --test "$1" -- --test-threads=1 >"$logs/$1" 2>&1
    local status=$?
    [ $status = 0 ] || touch "$logs/lab.failed"
    cat "$logs/$1"
}
step_lab() {
    local name bad=0
    build && end_prepare || return 1
    # shellcheck disable=SC2046
    THREADS=2 cargo_test $(named tests/lab/tests/*.rs) -- --test-threads=2 || bad=1
    # Two files run side by side, as hosts have two processors.
    for name in $(lab_names); do
        while [ "$(jobs -rp | wc -l)" -ge "${LAB_JOBS:-2}" ]; do wait -n; done
        lab_file "$name" &
    done
    wait
    [ ! -e "$logs/lab.failed" ] && return $bad
}

logs=$(mktemp -d)
# Jobs in the background hear of no Ctrl-C.
trap 'kill $(jobs -rp) 2>/dev/null; rm -rf "$logs"' EXIT
failed=0
summary=()
for step in "${steps[@]}"; do
    echo "== $step"
    begin=$SECONDS
    if "step_$step"; then word=ok; else word=FAILED failed=1; fi
    summary+=("$(printf '%-8s %-7s %4d s' "$step" "$word" $((SECONDS - begin)))")
done
[ ! -s "$logs/times" ] || printf '\nthe slowest tests, in seconds:\n'
sort -rn "$logs/times" 2>/dev/null | head -n 10
printf '\n'
printf '%s\n' "${summary[@]}"
exit $failed
