#!/bin/busybox sh
# /init of the guests: runs lab.cmd= (base64) of the kernel's command line and powers off, or starts a shell.
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=linux
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

# The power button ends the guest as it ends an installed system.
mkdir -p /etc/acpi/PWRF
printf '#!/bin/sh\npoweroff -f\n' >/etc/acpi/PWRF/00000080
chmod 755 /etc/acpi/PWRF/00000080
acpid -f >/dev/null 2>&1 &

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
