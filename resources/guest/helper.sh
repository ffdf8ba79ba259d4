#!/bin/sh
# Installs a helper in a guest whose kernel has no driver for the VM generation ID (CONFIG_VMGENID; Debian's cloud kernels have none).
# `minivmm guest-helper` prints this file. Run it as root in the guest:
#     minivmm guest-helper | ssh -p 5555 root@localhost sh
# The machine needs `--port generation`. The helper waits there, and takes no time until the machine was restored or cloned.
set -e
umask 022

cat >/usr/local/sbin/minivmm-generation <<'END'
#!/usr/bin/perl
# Whenever minivmm has restored or cloned this machine: gives the random pool bytes of the host's, has the kernel make its random
# generator anew from them, and sets the clock if it is behind. Needs no more than the package perl-base.
use strict;
use warnings;

use constant { RNDADDENTROPY => 0x40085203, RNDRESEEDCRNG => 0x5207 };    # linux/random.h

my $path = "/dev/virtio-ports/org.minivmm.generation";
open(my $port, "<", $path) or die("$path: $!\n");
while (my $line = <$port>) {
    # What was cut off by a save is no line, and the whole one follows.
    my ($id, $hex, $time) =
        $line =~ /^generation=([0-9a-f]{32}) random=([0-9a-f]{128})(?: time=([0-9]+\.[0-9]{9}))?$/ or next;
    my $random = pack("H*", $hex);
    open(my $pool, ">", "/dev/random") or die("/dev/random: $!\n");
    my $entropy = pack("i i a*", 8 * length($random), length($random), $random);
    ioctl($pool, RNDADDENTROPY, $entropy) or die("RNDADDENTROPY: $!\n");
    # Linux 4.17. A generator that was not ready yet is made from the pool in any case.
    ioctl($pool, RNDRESEEDCRNG, 0) or warn("RNDRESEEDCRNG: $!\n");
    close($pool);
    warn("generation $id: the random generator is new\n");
    if (defined($time) && $time - time() >= 1) {
        system("date", "-s", "\@$time") == 0 or warn("the clock is not set\n");
    }
}
END
chmod 755 /usr/local/sbin/minivmm-generation

if ! command -v systemctl >/dev/null; then
    echo "start /usr/local/sbin/minivmm-generation when this machine boots"
    exit
fi
cat >/etc/systemd/system/minivmm-generation.service <<'END'
[Unit]
Description=New random numbers after minivmm has restored or cloned this machine
BindsTo=dev-virtio\x2dports-org.minivmm.generation.device
After=dev-virtio\x2dports-org.minivmm.generation.device

[Service]
ExecStart=/usr/local/sbin/minivmm-generation
Restart=always
# Before others have drawn from the old one.
Nice=-20

[Install]
WantedBy=dev-virtio\x2dports-org.minivmm.generation.device
END
systemctl daemon-reload
systemctl enable minivmm-generation.service
[ ! -e /dev/virtio-ports/org.minivmm.generation ] || systemctl restart --no-block minivmm-generation.service
if [ -e /dev/virtio-ports/org.minivmm.generation ]; then
	echo "minivmm-generation is installed, and runs"
else
	echo "minivmm-generation is installed, and runs once the machine has --port generation"
fi
