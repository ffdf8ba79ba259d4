# What processes and their threads do for a while: `window.sh PID[,PID].. SECONDS AMOUNT`, where AMOUNT is a file with one
# number, `read_bytes` or `write_bytes` for those of the first process from and to disks, `length:FILE`, or `time` for seconds. Says everything twice, before and after; nothing is started
# in between. Then the same again with the kernel's histograms of system calls and of KVM's exits, which cost time.
set -eu
IFS=, read -r -a pids <<<"$1"
pid=${pids[0]} seconds=$2 amount=$3
tracing=/sys/kernel/tracing
[ -e $tracing/events ] || mount -t tracefs tracefs $tracing
exec {never}<> <(:) || exit 1

amount() {
    local name value
    if [[ $amount = *_bytes ]]; then
        while read -r name value; do
            [ "$name" != "$amount": ] || echo "$1 $value"
        done </proc/"$pid"/io
    elif [[ $amount = length:* ]]; then
        echo "$1 $(stat -c %s "${amount#length:}")"
    elif [ "$amount" = time ]; then
        echo "$1 ${EPOCHREALTIME/,/.}"
    else
        read -r value <"$amount"
        echo "$1 $value"
    fi
}
say() {
    local name value tid tids=()
    amount amount
    echo "time ${EPOCHREALTIME/[.,]/}"
    for tid in "${pids[@]/#//proc/}"; do
        tids+=("$tid"/task/*)
    done
    for tid in "${tids[@]}"; do
        read -r value <"$tid"/schedstat
        read -r name <"$tid"/comm
        echo "thread ${tid##*/} ${value%% *} ${name// /_}"
    done
}
wait_for() { read -r -t "$seconds" -u "$never" || true; }

echo quiet
say
wait_for
say

histograms=(
    raw_syscalls/sys_enter:common_pid,id
    kvm/kvm_userspace_exit:common_pid,reason
    kvm/kvm_mmio:common_pid,type
    kvm/kvm_exit:common_pid,exit_reason
)
end() {
    for one in "${histograms[@]}"; do
        echo "!hist:keys=${one#*:}" >$tracing/events/"${one%:*}"/trigger 2>/dev/null || true
    done
}
trap end EXIT
echo traced
for one in "${histograms[@]}"; do
    echo "hist:keys=${one#*:}" >$tracing/events/"${one%:*}"/trigger
done
# The first moments are not counted in full.
for one in "${histograms[@]}"; do
    echo "hist:keys=${one#*:}:clear" >>$tracing/events/"${one%:*}"/trigger
done
amount counted
wait_for
for one in "${histograms[@]}"; do
    echo "hist:keys=${one#*:}:pause" >>$tracing/events/"${one%:*}"/trigger
done
amount counted
say
for one in "${histograms[@]}"; do
    echo "histogram ${one%:*}"
    while read -r line; do
        [[ $line != *hitcount:* ]] || echo "$line"
    done <$tracing/events/"${one%:*}"/hist
done
