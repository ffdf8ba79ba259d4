#!/bin/busybox sh
# /init of the guests: runs lab.cmd= (base64) of the kernel's command line and powers off, or starts a shell.
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=linux PS1='guest:\w# '
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
mount -t tmpfs tmp /tmp
hostname guest

while read -r file parameters; do
    insmod "/modules/$file" $parameters || echo "init: $file does not load"
done </modules/order

# The power button ends the guest as it ends an installed system: whatever its event device says is a press.
for event in /sys/class/input/event*; do
    [ "$(cat "$event/device/name" 2>/dev/null)" = "Power Button" ] || continue
    (head -c 24 "/dev/input/${event##*/}" >/dev/null && echo "init: power button" && poweroff -f) &
done

echo "init: Linux $(uname -r) is up"
command=$(sed -n 's/.*lab\.cmd=\([^ ]*\).*/\1/p' /proc/cmdline)
if [ -n "$command" ]; then
    echo "$command" | base64 -d >/tmp/command
    sh /tmp/command
    echo "LAB-STATUS $?"
else
    echo "init: 'poweroff -f' or Ctrl-D ends this machine"
    setsid cttyhack sh -l
fi
poweroff -f
