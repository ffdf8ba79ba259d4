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
cd /lab
# This shell stays as process 1 and buries orphans.
/lab-agent 0<>"$port" >/dev/console 2>&1
poweroff -f
