#!/bin/bash
# What makes a freshly installed Debian vm0: a hook of mmdebstrap, with the root directory as its argument.
set -euo pipefail
root=$1

echo vm0 >"$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 vm0\n::1 localhost ip6-localhost ip6-loopback\nff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n' \
    >"$root/etc/hosts"
echo 'LANG=C.UTF-8' >"$root/etc/default/locale"

# The user of the courses; root has no password.
chroot "$root" useradd --create-home --shell /bin/bash --groups sudo,adm,systemd-journal etu
echo 'etu:-etu-' | chroot "$root" chpasswd

# Every network: an address by DHCP where someone gives one, an IPv6 link-local address made of the MAC at once, and nobody
# waits for either. Clones ask with their MAC, as they may share all else.
cat >"$root/etc/systemd/network/80-ether.network" <<'END'
[Match]
Type=ether

[Network]
DHCP=yes
IPv6AcceptRA=yes
LinkLocalAddressing=ipv6
IPv6LinkLocalAddressGenerationMode=eui64

[DHCPv4]
ClientIdentifier=mac
END
chroot "$root" systemctl --quiet enable systemd-networkd
chroot "$root" systemctl --quiet disable systemd-networkd-wait-online getty@tty1
ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"

# A login on virtio's console wherever there is one; systemd's generator sees to the kernel's console.
cat >"$root/etc/udev/rules.d/90-hvc0.rules" <<'END'
SUBSYSTEM=="tty", KERNEL=="hvc0", TAG+="systemd", ENV{SYSTEMD_WANTS}+="serial-getty@hvc0.service"
END

# Each copy of the image makes its own keys when ssh first starts. One kind is enough, and quickly made.
rm -f "$root"/etc/ssh/ssh_host_*
echo 'HostKey /etc/ssh/ssh_host_ed25519_key' >"$root/etc/ssh/sshd_config.d/hostkey.conf"
mkdir -p "$root/etc/systemd/system/ssh.service.d"
cat >"$root/etc/systemd/system/ssh.service.d/hostkey.conf" <<'END'
[Service]
ExecStartPre=
ExecStartPre=/bin/sh -c 'key=/etc/ssh/ssh_host_ed25519_key; [ -s $$key ] || ssh-keygen -q -t ed25519 -N "" -f $$key </dev/null'
ExecStartPre=/usr/sbin/sshd -t
END

# What is one machine's own comes into being at its first boot: an empty machine-id asks for a new one.
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id" "$root/var/lib/systemd/random-seed" "$root/var/lib/systemd/credential.secret"
ln -sf /etc/machine-id "$root/var/lib/dbus/machine-id"

rm -rf "$root"/var/log/*.log "$root"/var/log/apt/* "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* \
    "$root"/*.old "$root"/boot/*.old "$root"/boot/System.map-* "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old
