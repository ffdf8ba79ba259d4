#!/bin/bash
# Makes the tools image: one ext4 with the Debian programs that tests use inside the lab's emulated machine, unpacked and
# not installed, so that nothing of it runs on this host.
#
#   tools.sh FILE
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR
. "$here/lib.sh"
[ $# = 1 ] || fail "usage: tools.sh FILE"
needs mmdebstrap mke2fs

packages=(
    bash dash coreutils util-linux procps grep sed gawk findutils diffutils tar gzip perl-base login passwd
    openssh-client sshpass              # into guests
    iproute2 iputils-ping iperf3 socat  # networks
    passt                               # a user network to connect to
    curl                                # a client of control sockets
    openvswitch-switch                  # a switch, in user space
    e2fsprogs parted fio qemu-utils     # disks
    strace libcap2-bin kmod             # what a process does, and may
    qemu-system-x86 seabios             # a machine to compare with
)
options=()
for path in doc man locale info lintian; do
    options+=(--dpkgopt="path-exclude=/usr/share/$path/*")
done
work=$(mktemp -d "$1.making-XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root

say "unpacking the tools"
list=$(IFS=,; echo "${packages[*]}")
bootstrap "$root" --variant=extract --include="$list" "${options[@]}"

# What installing would have done, as far as the programs want it.
cat >"$root/etc/passwd" <<'END'
root:x:0:0:root:/root:/bin/bash
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
etu:x:1000:1000::/tmp:/bin/bash
END
printf 'root:x:0:\nkvm:x:101:\nnogroup:x:65534:\netu:x:1000:\n' >"$root/etc/group"
printf '127.0.0.1 localhost lab\n::1 localhost\n' >"$root/etc/hosts"
printf 'passwd: files\ngroup: files\nhosts: files\n' >"$root/etc/nsswitch.conf"
ln -sf ../lib/openvswitch-switch/ovs-vswitchd "$root/usr/sbin/ovs-vswitchd"
ln -sf gawk "$root/usr/bin/awk"
rm -rf "$root/var/run"
ln -s ../run "$root/var/run"
ldconfig -r "$root"
rm -rf "$root"/var/cache/apt "$root"/var/lib/apt/lists "$root"/usr/share/{doc,man,locale,info,perl,vim} \
    "$root"/usr/lib/x86_64-linux-gnu/{dri,gstreamer-1.0,libLLVM*}
for place in dev proc sys tmp run lab root var/tmp; do mkdir -p "$root/$place"; done

say "writing the tools image"
used=$(du -sk "$root" | cut -f1)
size=$((used * 11 / 10 + 65536))
truncate -s "${size}k" "$work/image"
ext4 "$work/image" "$size" 0 "$root" -L tools -O ^has_journal
chmod 644 "$work/image"
mv "$work/image" "$1"
