# What the processes do while a guest works: `calls.sh begin`, and then `calls.sh end PID...`, which says their threads (`thread TID NAME`) and the
# kernel's histograms of system calls and of KVM's exits since. `calls.sh cpu PID...` says the processor time of their threads in ns, once with and once without
# the guest's processors.
set -eu
what=$1
shift
tracing=/sys/kernel/tracing
[ -e $tracing/events ] || mount -t tracefs tracefs $tracing
histograms=(
    raw_syscalls/sys_enter:common_pid,id
    kvm/kvm_userspace_exit:common_pid,reason
    kvm/kvm_exit:common_pid,exit_reason
)
case $what in
    begin)
        for one in "${histograms[@]}"; do
            echo "hist:keys=${one#*:}:size=8192" >$tracing/events/"${one%:*}"/trigger
        done
        for one in "${histograms[@]}"; do
            echo "hist:keys=${one#*:}:clear" >>$tracing/events/"${one%:*}"/trigger
        done
        ;;
    end)
        for one in "${histograms[@]}"; do
            echo "hist:keys=${one#*:}:pause" >>$tracing/events/"${one%:*}"/trigger
        done
        for pid in "$@"; do
            for task in /proc/"$pid"/task/*; do
                read -r name <"$task"/comm
                echo "thread ${task##*/} ${name// /_}"
            done
        done
        for one in "${histograms[@]}"; do
            echo "histogram ${one%:*}"
            while read -r line; do
                [[ $line != \{* ]] || echo "$line"
            done <$tracing/events/"${one%:*}"/hist
            echo "!hist:keys=${one#*:}" >$tracing/events/"${one%:*}"/trigger
        done
        ;;
    cpu)
        all=0 own=0
        for pid in "$@"; do
            for task in /proc/"$pid"/task/*; do
                read -r ns rest <"$task"/schedstat
                read -r name <"$task"/comm
                all=$((all + ns))
                [[ $name = vcpu* || $name = CPU* ]] || own=$((own + ns))
            done
        done
        echo "$all $own"
        ;;
esac
