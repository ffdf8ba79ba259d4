# `first.sh NAME COMMAND...`: how long a command takes to its first byte, and to its end; then, in a run of its own because counting costs time, the
# system calls of all that it starts, the exits of its guest, and those to user space. Says `NAME FIRST WHOLE CALLS EXITS USER_EXITS`, times in
# us, and behind that what `--time` says: the ms of the monitor, the kernel and init.
set -eu
name=$1
shift
tracing=/sys/kernel/tracing
[ -e $tracing/events ] || mount -t tracefs tracefs $tracing
histograms=(raw_syscalls/sys_enter:common_pid kvm/kvm_exit:exit_reason kvm/kvm_userspace_exit:reason)
now() { echo "${EPOCHREALTIME/[.,]/}"; }
run() {
    local begin line
    begin=$(now)
    "$@" </dev/null 2>"errors.$name" | {
        read -r line || true
        first=$(now)
        cat >/dev/null
        echo "$((first - begin)) $(($(now) - begin)) ${line%$'\r'}"
    }
}
read -r first whole line < <(run "$@")
[ "$line" = first ] || { echo "$name said: $line"; cat "errors.$name"; exit 1; } >&2
for one in "${histograms[@]}"; do
    echo "hist:keys=${one#*:}:size=8192" >$tracing/events/"${one%:*}"/trigger
done
# Every process from here on is the command's.
least=$(sh -c 'echo $$')
mv "errors.$name" "timed.$name"
run "$@" >/dev/null
counts=()
for one in "${histograms[@]}"; do
    echo "hist:keys=${one#*:}:pause" >>$tracing/events/"${one%:*}"/trigger
done
for one in "${histograms[@]}"; do
    counts+=("$(awk -v least="$least" -v key="${one#*:}" '/hitcount:/ && (key != "common_pid" || $3 + 0 > least) {
        sub(/.*hitcount: */, ""); n += $0 } END { print n + 0 }' $tracing/events/"${one%:*}"/hist)")
    echo "!hist:keys=${one#*:}" >$tracing/events/"${one%:*}"/trigger
done
parts=$(sed -n 's/^minivmm: time: //p' "timed.$name" | sed 's/, command .*//; s/[^0-9. ]//g; s/\.//g')
echo "$name $first $whole ${counts[*]} $parts"
