#!/bin/busybox sh
# /init of the lab's emulated machine: makes /dev/kvm work, then gives the machine to the agent.
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=linux
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmp /dev/shm
mount -t tmpfs tmp /tmp
mount -t debugfs debug /sys/kernel/debug
ln -s /proc/self/fd /dev/fd
mkdir -p /dev/net
hostname lab
ifconfig lo 127.0.0.1 up

while read -r file parameters; do
    insmod "/modules/$file" $parameters || echo "lab: $file does not load" >/dev/console
done </modules/order

# The port appears a moment after its driver.
tries=0
until port=$(ls /dev/vport*p1 2>/dev/null) || [ $tries = 100 ]; do
    tries=$((tries + 1))
    sleep 0.05
done
exec 5<>"$port"
# As udev would leave them: a user of group kvm (101 in the tools image) may use them.
chown 0:101 /dev/kvm
chmod 660 /dev/kvm
chmod 666 /dev/net/tun

# Open vSwitch wants a machine that has been up for ten seconds.
grep -q tools /drives && until [ "$(cut -d. -f1 /proc/uptime)" -gt 10 ]; do sleep 0.2; done
# The host saves the machine here. It goes on once for each lab, which begins with the time of day: with files and disks of its own,
# of which nothing may be remembered.
echo 'lab: waits for its files' >/dev/console
read -r now <&5
date -s "@$now" >/dev/null
for device in /dev/vd?; do blockdev --flushbufs "$device"; done

# The disk with this serial number; it appears a moment after its driver.
disk() {
    local name tries=0
    until name=$(grep -l "^$1\$" /sys/block/vd*/serial 2>/dev/null) || [ $tries = 100 ]; do
        tries=$((tries + 1))
        sleep 0.05
    done
    name=${name#/sys/block/}
    echo "/dev/${name%/serial}"
}

(cd / && cpio -idu <"$(disk lab-files)") 2>/dev/console

root=/
while read -r serial role; do
    device=$(disk "$serial")
    chown 0:101 "$device"
    chmod 660 "$device"
    case $role in
        tools)
            # Debian's programs, under a layer in memory so that they can write where they like.
            root=/root
            tools=$device
            mkdir -p /tools /layer
            mount -t ext4 -o ro "$device" /tools && mount -t tmpfs -o mode=755 layer /layer
            mkdir /layer/upper /layer/work
            mount -t overlay -o lowerdir=/tools,upperdir=/layer/upper,workdir=/layer/work root $root
            ;;
        work)
            mkdir -p $root/lab
            mount -t ext4 -o discard "$device" $root/lab
            cp -a /lab/. $root/lab/
            # A guest may have the same programs.
            ln -s "$tools" $root/lab/tools.ext4
            ;;
        =*) ln -s "$device" $root/lab/"${role#=}" ;;
    esac
done 2>/dev/console </drives
if [ $root != / ]; then
    cp /lab-agent $root/
    mkdir -p $root/busybox
    cp /bin/busybox $root/busybox/
    chroot $root /busybox/busybox --install -s /busybox
    # Libraries that the lab's files brought along, where Debian's programs have none of that name.
    for dir in lib lib64 usr/lib; do
        [ ! -d /$dir ] || (cd / && find $dir -type f | while read -r file; do
            [ -e $root/"$file" ] || { mkdir -p $root/"${file%/*}" && cp "$file" $root/"$file"; }
        done)
    done
    for dir in sys proc tmp dev; do mount --move /$dir $root/$dir; done
    export PATH=/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin:/busybox
fi
# This shell stays as process 1 and buries orphans.
/bin/busybox chroot $root /bin/sh -c 'cd /lab && exec /lab-agent' 0<&5 5<&- >$root/dev/console 2>&1
/bin/busybox poweroff -f
