#!/bin/bash
# Makes vm0, a Debian for teaching labs: the disk image vm0.raw (GPT with one ext4 partition), the same system as
# vm0-whole.raw (ext4 without partitions) if asked, and its kernel and initrd as vmlinuz and initrd.img.
#
#   vm0.sh [--whole] DIRECTORY
#
# IMAGE_SIZE=8G        what the guest sees; the file takes only what is used
# IMAGE_PACKAGES="..." more Debian packages
# IMAGE_DOCS=1         with manual pages and documentation
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR
. "$here/lib.sh"

whole=
[ "${1:-}" != --whole ] || { whole=1; shift; }
[ $# = 1 ] || fail "usage: vm0.sh [--whole] DIRECTORY"
out=$1
needs mmdebstrap sfdisk mke2fs
size=$(numfmt --from=iec "${IMAGE_SIZE:-8G}") || fail "IMAGE_SIZE is a size such as 8G, not '$IMAGE_SIZE'"
[ "$size" -ge $((2 << 30)) ] || fail "IMAGE_SIZE=$IMAGE_SIZE is too small: the system alone takes most of 1G, so give it 2G or more"

packages=(
    systemd systemd-sysv systemd-resolved udev dbus libpam-systemd # boots, logs in
    linux-image-cloud-amd64 initramfs-tools zstd                   # its own kernel, in /boot
    openssh-server sudo                                            # ways in
    iproute2 iputils-ping netbase                                  # networks
    pciutils parted fdisk lvm2 e2fsprogs kmod                      # hardware and disks
    less nano
)
[ -z "${IMAGE_DOCS:-}" ] || packages+=(man-db manpages)
# shellcheck disable=SC2206  # the names are words
packages+=(${IMAGE_PACKAGES:-})
options=()
if [ -z "${IMAGE_DOCS:-}" ]; then
    for path in doc man locale info lintian; do
        options+=(--dpkgopt="path-exclude=/usr/share/$path/*")
    done
    options+=(--dpkgopt='path-include=/usr/share/doc/*/copyright')
fi

mkdir -p "$out"
work=$(mktemp -d "$out/making-XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root

say "installing Debian bookworm"
list=$(IFS=,; echo "${packages[*]}")
bootstrap "$root" --variant=apt --include="$list" "${options[@]}" --customize-hook="$here/settings.sh"

# mount IDENTIFIER: how the system finds its root, once the kernel has.
mounts() { echo "UUID=$1 / ext4 defaults,discard,errors=remount-ro 0 1" >"$root/etc/fstab"; }
uuid() { cat /proc/sys/kernel/random/uuid; }

say "writing vm0.raw"
truncate -s "$size" "$work/vm0.raw"
# The partition begins at 1 MiB; the table's copy takes the end.
printf 'label: gpt\nstart=1MiB, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=root\n' |
    sfdisk --quiet "$work/vm0.raw" || fail "sfdisk could not partition vm0.raw"
sectors=$(sfdisk --dump "$work/vm0.raw" | sed -n 's/.*size= *\([0-9]*\).*/\1/p')
id=$(uuid)
mounts "$id"
ext4 "$work/vm0.raw" $((sectors / 2)) 1024 "$root" -J size=32 -U "$id" -L vm0

if [ -n "$whole" ]; then
    say "writing vm0-whole.raw"
    truncate -s "$size" "$work/vm0-whole.raw"
    id=$(uuid)
    mounts "$id"
    ext4 "$work/vm0-whole.raw" $((size / 1024)) 0 "$root" -J size=32 -U "$id" -L vm0
    mv "$work/vm0-whole.raw" "$out/"
fi
cp "$root"/boot/vmlinuz-* "$work/vmlinuz"
cp "$root"/boot/initrd.img-* "$work/initrd.img"
chmod 644 "$work"/vm*.raw "$work/vmlinuz" "$work/initrd.img"
# The image last: where it is, all is.
mv "$work/vmlinuz" "$work/initrd.img" "$out/"
mv "$work/vm0.raw" "$out/"
