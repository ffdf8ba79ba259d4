# /.minivmm/init of `minivmm run`, behind lines that name its shell and say: b, busybox, if there is one; links, whether
# /bin is busybox's; input, whether the command has one; token, what follows the last byte of output; and
# if there is a user network: mac, address, gateway, and server, its name server.
# It loads the drivers, finds its ports, runs the command, and says how that ended.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
cd /
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
$b mkdir -p /dev/pts /dev/shm
$b mount -t devpts devpts /dev/pts
$b mount -t tmpfs shm /dev/shm
for link in fd:/proc/self/fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
    [ -e "/dev/${link%%:*}" ] || $b ln -s "${link#*:}" "/dev/${link%%:*}"
done
[ "$links" = 0 ] || $b --install -s
echo minivmm >/proc/sys/kernel/hostname
{ $b ifconfig lo up || $b ip link set lo up; } 2>/dev/null

while read -r file; do
    $b insmod "/.minivmm/$file" || echo "minivmm: the kernel does not take its module $file"
done </.minivmm/modules

# A user network gives these addresses to every guest: there is no need to ask for them by DHCP.
network() {
    for nic in /sys/class/net/*; do
        read -r text <"$nic/address" && [ "$text" = "$mac" ] || continue
        nic=${nic##*/}
        $b ip link set "$nic" up && $b ip addr add "$address" dev "$nic" && $b ip route add default via "$gateway" || return
        $b mkdir -p /etc && $b rm -f /etc/resolv.conf && echo "nameserver $server" >/etc/resolv.conf
        return
    done
    echo "minivmm: no network: this kernel lacks the driver virtio_net"
}
[ -z "$mac" ] || network

# Ends the machine; what is said last on the console is the reason.
fail() {
    echo "minivmm: $1"
    echo o >/proc/sysrq-trigger
    while :; do $b sleep 60; done
}

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
port minivmm.run && exec 5>"$port"
if [ "$input" = 1 ]; then
    port minivmm.in && exec 6<"$port"
else
    exec 6</dev/null
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

. /.minivmm/command
$b rm -f /.minivmm/init /.minivmm/command /.minivmm/modules /.minivmm/*.ko
echo up >&5
(exec "$@") <&6 >/.minivmm/out 2>/.minivmm/err 3>&- 4>&- 5>&- 6<&-
status=$?

# What it left running holds the pipes open, and ends with it.
for process in /proc/[0-9]*; do
    process=${process#/proc/}
    case $process in 1 | "$out" | "$err") ;; *) kill -9 "$process" 2>/dev/null ;; esac
done
wait "$out" "$err"
printf %s "$token" >&3
printf %s "$token" >&4
echo "exit $status" >&5
# The host ends the machine when it has read all that.
while :; do $b sleep 60; done
