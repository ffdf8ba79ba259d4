# /.minivmm/init of `minivmm run`, behind lines that name its shell and say: b, busybox, if there is one; links, whether
# /bin is busybox's; timed, if it is to say how long it took; stdin, if a command can have input; files, if the command's are to be sent; shares, if folders of the host
# are to be mounted; root, if one is the guest's /: `layer`, under a layer in memory, or `rw`; and if there is a user network: mac,
# address, gateway, and server, its name server.
# It loads the drivers, finds its ports, waits for a command, runs it, and says how that ended. While it waits the machine may be
# saved, and any number of clones of it go on from there, each with a command of its own.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
cd /

# Mounts what the file says, which is of the form of fstab(5): with one program for all of it, if that is busybox's.
mounts() {
    [ -z "$b" ] || ! $b mount -a -T "$1" 2>/dev/null || return 0
    failed=0
    while read -r what where kind options; do
        $b mount -t "$kind" -o "$options" "$what" "$where" || failed=1
    done <"$1"
    return $failed
}
echo 'proc /proc proc defaults
sys /sys sysfs defaults
dev /dev devtmpfs defaults' >/.minivmm/fstab
mounts /.minivmm/fstab
[ -z "$timed" ] || read -r began text </proc/uptime
# pts, shm, fd, stdin, stdout and stderr.
$b cp -dR /.minivmm/dev/* /dev/
# A / of the host's has these two of its own.
if [ -z "$root" ]; then
    echo 'devpts /dev/pts devpts defaults
shm /dev/shm tmpfs defaults' >/.minivmm/fstab
    mounts /.minivmm/fstab
fi
[ "$links" = 0 ] || $b --install -s
echo minivmm >/proc/sys/kernel/hostname
{ $b ifconfig lo up || $b ip link set lo up; } 2>/dev/null

while read -r file; do
    $b insmod "/.minivmm/$file" || echo "minivmm: the kernel does not take its module $file"
done </.minivmm/modules

# Ends the machine; what is said last on the console is the reason.
fail() {
    echo "minivmm: $1"
    echo o >/proc/sysrq-trigger
    while :; do $b sleep 60; done
}

# `in` runs a program of busybox where the command is going to be. /.minivmm/mounts changes these three.
in=$b own=/.minivmm place=/
[ -z "$shares" ] || . /.minivmm/mounts

# A user network gives these addresses to every guest: there is no need to ask for them by DHCP.
network() {
    for nic in /sys/class/net/*; do
        read -r text <"$nic/address" && [ "$text" = "$mac" ] || continue
        nic=${nic##*/}
        $b ip link set "$nic" up && $b ip addr add "$address" dev "$nic" && $b ip route add default via "$gateway" || return
        echo "nameserver $server" >/.minivmm/resolv.conf
        if [ "$root" = rw ]; then
            # The file is the host's own, or a link to one that its resolver makes in /run.
            link=$($in readlink /etc/resolv.conf)
            case $link in '') link=/etc/resolv.conf ;; /*) ;; *) link=/etc/$link ;; esac
            $in mount --bind $own/resolv.conf "$link" 2>/dev/null ||
                { $in mkdir -p "${link%/*}" && $in touch "$link" && $in mount --bind $own/resolv.conf "$link"; }
        else
            $in mkdir -p /etc && $in rm -f /etc/resolv.conf && $in cp $own/resolv.conf /etc/resolv.conf
        fi
        return
    done
    echo "minivmm: no network: this kernel lacks the driver virtio_net"
}
[ -z "$mac" ] || network
[ -z "$shares" ] || volumes

# Finds a port by its name. They come one by one, once the driver has heard of them.
port() {
    tries=0
    while [ $tries -lt 100 ]; do
        for name in /sys/class/virtio-ports/*/name; do
            [ -e "$name" ] && read -r text <"$name" && [ "$text" = "$1" ] || continue
            name=${name%/name}
            port=/dev/${name##*/}
            [ -c "$port" ] && return
        done
        tries=$((tries + 1))
        $b sleep 0.1
    done
    fail "the port $1 did not appear: this kernel lacks the driver virtio_pci or virtio_console"
}
port minivmm.out && exec 3<>"$port"
port minivmm.err && exec 4<>"$port"
port minivmm.run && exec 5<>"$port"
[ -z "$stdin" ] || { port minivmm.in && exec 6<"$port"; }
if [ -n "$files" ]; then
    port minivmm.files && exec 8>"$port"
    export MINIVMM_OUT=/run/out
    $in mkdir -p "$MINIVMM_OUT" || fail "there can be no directory $MINIVMM_OUT"
fi

# The command gets pipes, not the ports: those can be opened once only, and commands open /dev/stderr.
$b mkfifo /.minivmm/out /.minivmm/err || fail "there is no program mkfifo"
$b cat </.minivmm/out >&3 4>&- 5>&- 6<&- &
out=$!
$b cat </.minivmm/err >&4 3>&- 5>&- 6<&- &
err=$!

# The host says with a line that nobody reads the stream any more. Without its cat a command that writes on gets SIGPIPE, as
# anywhere. Who opens the pipe only then would wait for a reader, and gets one for a moment.
until_left() {
    read -r line || return
    kill "$1"
    while :; do
        : <"$2"
        $b sleep 0.1
    done
}
until_left "$out" /.minivmm/out <&3 3>&- 4>&- 5>&- 6<&- &
until_left "$err" /.minivmm/err <&4 3>&- 4>&- 5>&- 6<&- &

$b rm -rf /.minivmm/init /.minivmm/modules /.minivmm/mounts /.minivmm/shares /.minivmm/fstab /.minivmm/dev /.minivmm/*.ko

# The host sends a line that says: token, what follows the last byte of output; input, whether the command has one; now, its time;
# seed, random bytes; workdir, where it runs, if not in /; terminal and size, if it has a terminal; environment, a function; and
# the command as arguments. A newline in a word of it is $n. What the machine said before a reset may have been cut: hence a line
# of its own.
n='
'
if [ -n "$timed" ]; then
    read -r text links </proc/uptime
    printf '\ninit %s %s\n' "$began" "$text" >&5
fi
printf '\nready\n' >&5
IFS= read -r line <&5 || fail "the host gave no command"
eval "$line"
# Whoever goes on from here has the random generator of all others that do, until other bytes are in its pool and it is made anew from
# that. A driver for the VM generation ID, which not every kernel has, has done so already.
echo "$seed" >/dev/urandom
/.minivmm/reseed
# These two go on from the host's time.
read -r clock </sys/devices/system/clocksource/clocksource0/current_clocksource
case $clock in kvm-clock | tsc) ;; *) $b date -s "@$now" ;; esac >/dev/null 2>&1
[ "$input" = 1 ] || exec 6</dev/null
nodir() {
    echo nodir >&5
    while :; do $b sleep 60; done
}
if [ -n "$root" ] && [ -n "$workdir" ]; then
    $in test -d "$workdir" || nodir
elif [ -n "$workdir" ]; then
    cd "$workdir" 2>/dev/null || nodir
    workdir=
fi
# Without busybox this is the guest's own shell, which begins what is in PATH.
[ -z "$b" ] || set -- $in sh $own/command "$workdir" "$@"
# Its terminal is the second console, of which the host says the size, in further lines as well. Open for as long as it lasts: a
# terminal that is closed forgets its size.
if [ "$terminal" = 1 ]; then
    tries=0
    until [ -c /dev/hvc1 ]; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] || fail "the terminal hvc1 did not appear: this kernel lacks the driver of virtio consoles"
        $b sleep 0.1
    done
    exec 7<>/dev/hvc1
    [ -z "$size" ] || $b stty rows "${size% *}" cols "${size#* }" <&7
    follow() {
        while IFS=' ' read -r rows columns; do $b stty rows "$rows" cols "$columns" <&7; done
    }
    follow <&5 3>&- 4>&- 6<&- &
    echo up >&5
    # Whatever the environment is: it is the last that changes anything.
    set -- $b setsid -c "$@"
    (environment; exec "$@") <&7 >&7 2>&7 3>&- 4>&- 5>&- 6<&- 7>&- 8>&-
    status=$?
    # Each cat waits for its pipe to have a writer.
    : >/.minivmm/out 2>/.minivmm/err
else
    echo up >&5
    (environment; exec "$@") <&6 >/.minivmm/out 2>/.minivmm/err 3>&- 4>&- 5>&- 6<&- 8>&-
    status=$?
fi

# What it left running holds the pipes open, and ends with it. All stand still before: one that begins another all the time would be
# ahead of this for ever.
kill -STOP -1
kill -CONT "$out" "$err" 2>/dev/null
for process in /proc/[0-9]*; do
    process=${process#/proc/}
    case $process in 1 | "$out" | "$err") ;; *) kill -9 "$process" 2>/dev/null ;; esac
done
wait "$out" "$err"
if [ -n "$files" ]; then
    $b tar -c -f - -C ${place}run/out . >&8 2>/dev/console
    echo "packed $?" >&5
fi
printf %s "$token" >&3
printf %s "$token" >&4
echo "exit $status" >&5
# The host ends the machine when it has read all that.
while :; do $b sleep 60; done
