#!/bin/bash
# Makes what `BENCH=share` and `BENCH=run` compare minivmm with, of Debian 13: QEMU, virtiofsd and virtme-ng in a root directory with a kernel, and
# a git repository with most of Linux's source. Two ext4 images; unpacked and not installed.
#
#   peers.sh DIRECTORY
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR
. "$here/lib.sh"
[ $# = 1 ] || fail "usage: peers.sh DIRECTORY"
needs mmdebstrap mke2fs git xz

packages=(
    qemu-system-x86 seabios virtiofsd virtme-ng
    bash dash coreutils util-linux mount procps grep sed gawk findutils tar gzip perl-base login passwd udev kmod iproute2 hostname
    busybox-static git fio strace
    linux-image-cloud-amd64 linux-source-6.12
)
options=()
for path in doc man locale info lintian; do
    options+=(--dpkgopt="path-exclude=/usr/share/$path/*")
done
mkdir -p "$1"
work=$(mktemp -d "$1/making-XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root log=$work/log

say "unpacking QEMU, virtiofsd and virtme-ng of Debian 13"
list=$(IFS=,; echo "${packages[*]}")
mmdebstrap --mode=root --dpkgopt=force-unsafe-io --aptopt='Acquire::Languages "none"' --variant=extract --include="$list" \
    "${options[@]}" trixie "$root" </dev/null >"$log" 2>&1 || {
    tail -n 30 "$log" >&2
    fail "mmdebstrap could not make the system from Debian's packages; its last words stand above"
}

say "making a repository of Linux's source"
tree=$work/tree
mkdir -p "$tree/linux"
# The drivers and other processors' parts left out: some 30,000 files.
tar -xJf "$root"/usr/src/linux-source-*.tar.xz -C "$tree/linux" --strip-components=1 \
    --exclude='linux-source-*/drivers' --exclude='linux-source-*/arch/[a-wyz]*'
rm -rf "$root"/usr/src
# Debian's ignores everything.
rm "$tree/linux/.gitignore"
git=(git -C "$tree/linux" -c user.name=bench -c user.email=bench@localhost -c core.compression=1 -c gc.auto=0)
git init -q "$tree/linux"
# Numbers of inodes, and times of their change, are others in the image.
git -C "$tree/linux" config core.checkStat minimal
git -C "$tree/linux" config core.trustctime false
git -C "$tree/linux" config core.untrackedCache false
git -C "$tree/linux" config gc.auto 0
"${git[@]}" add -A
"${git[@]}" commit -q -m source
"${git[@]}" repack -q -a -d --window=0

printf 'root:x:0:0:root:/root:/bin/bash\n' >"$root/etc/passwd"
printf 'root:x:0:\n' >"$root/etc/group"
printf 'root:*:19000:0:99999:7:::\n' >"$root/etc/shadow"
printf '127.0.0.1 localhost lab\n' >"$root/etc/hosts"
printf 'passwd: files\ngroup: files\nhosts: files\n' >"$root/etc/nsswitch.conf"
[ -e "$root/usr/bin/awk" ] || ln -sf gawk "$root/usr/bin/awk"
ldconfig -r "$root"
for modules in "$root"/usr/lib/modules/*; do
    chroot "$root" depmod "${modules##*/}"
done
rm -rf "$root"/var/cache/apt "$root"/var/lib/apt/lists "$root"/usr/share/{doc,man,locale,info,vim} "$root"/usr/lib/x86_64-linux-gnu/dri
for place in dev proc sys tmp run lab root mnt var/tmp; do mkdir -p "$root/$place"; done

for name in root tree; do
    say "writing the image of the $name"
    used=$(du -sk "$work/$name" | cut -f1)
    files=$(find "$work/$name" | wc -l)
    size=$((used * 11 / 10 + 524288))
    truncate -s "${size}k" "$work/$name.ext4"
    ext4 "$work/$name.ext4" "$size" 0 "$work/$name" -O ^has_journal -N $((files + 50000))
    chmod 644 "$work/$name.ext4"
    mv "$work/$name.ext4" "$1/$name.ext4"
done
