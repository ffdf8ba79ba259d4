#!/bin/bash
# Makes a disk with the layout of Debian's cloud images from vm0.raw: a GPT whose partitions 14 (BIOS boot) and 15 (EFI system)
# lie before partition 1 (root), GRUB's files by grub-mkconfig, and qcow2 with compressed clusters. An administrator has chosen
# vm0's kernel as GRUB's default; a newer one, which cannot boot, is installed as well.
#
#   cloud.sh VM0.RAW FILE
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR
. "$here/lib.sh"
[ $# = 2 ] || fail "usage: cloud.sh VM0.RAW FILE"
vm0=$1
needs mmdebstrap sfdisk debugfs qemu-img
work=$(mktemp -d "$2.making-XXXXXX")
trap 'rm -rf "$work"' EXIT
tools=$work/tools disk=$work/disk.raw

say "unpacking GRUB's and FAT's programs"
bootstrap "$tools" --variant=extract --include=dash,coreutils,sed,grep,mawk,debianutils,hostname,grub-common,dosfstools,mtools
ldconfig -r "$tools"
ln -sf mawk "$tools/usr/bin/awk"
[ -e "$tools/bin/sh" ] || ln -s dash "$tools/bin/sh"
there() { chroot "$tools" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"; }

say "dividing the disk"
# Of vm0's only partition, in sectors of 512 bytes.
read -r start size < <(sfdisk --dump "$vm0" | sed -n 's/.*start= *\([0-9]*\), size= *\([0-9]*\),.*/\1 \2/p')
first=262144
truncate -s $(((first + size + 2048) * 512)) "$disk"
dd if="$vm0" of="$disk" bs=1M iflag=skip_bytes,count_bytes oflag=seek_bytes conv=sparse,notrunc status=none \
    skip=$((start * 512)) count=$((size * 512)) seek=$((first * 512))
root=$(cat /proc/sys/kernel/random/uuid)
sfdisk --quiet "$disk" <<END || fail "sfdisk could not partition the disk"
label: gpt
1 : start=$first, size=$size, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, uuid=$root
14 : start=2048, size=6144, type=21686148-6449-6E6F-744E-656564454649
15 : start=8192, size=253952, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B
END
system="$disk?offset=$((first * 512))"
uuid=$(debugfs -R 'show_super_stats -h' "$system" 2>/dev/null | sed -n 's/^Filesystem UUID: *//p')
kernel=$(debugfs -R 'ls -p /boot' "$system" 2>/dev/null | sed -n 's,.*/vmlinuz-\([^/]*\)/.*,\1,p')
[ -n "$uuid" ] && [ -n "$kernel" ] || fail "$vm0 has no Debian with a kernel in /boot"

say "writing GRUB's configuration"
mkdir -p "$tools"/boot/grub "$tools"/etc/default "$tools"/dev/disk/by-partuuid "$tools/tmp"
touch "$tools/dev/disk/by-partuuid/$root"
newer=$(echo "$kernel" | sed 's/^[0-9]*\.[0-9]*/99.0/')
for version in "$kernel" "$newer"; do touch "$tools"/boot/{vmlinuz,initrd.img,config}-"$version"; done
cat >"$tools/etc/default/grub" <<'END'
GRUB_DEFAULT=saved
GRUB_TIMEOUT=5
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT=quiet
GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0,115200"
GRUB_DISABLE_LINUX_UUID=true
GRUB_DISABLE_LINUX_PARTUUID=false
GRUB_TERMINAL="console serial"
GRUB_SERIAL_COMMAND="serial --speed=115200"
END
# What it would find out of the running system's devices.
cat >"$tools/usr/sbin/grub-probe" <<END
#!/bin/sh
case "\$*" in
    *--target=device*) echo /dev/vda1 ;;
    *--target=fs_uuid*) echo $uuid ;;
    *--target=partuuid*) echo $root ;;
    *--target=fs\ *) echo ext2 ;;
    *--target=partmap*) echo gpt ;;
    *--target=compatibility_hint*) echo hd0,gpt1 ;;
    *--target=hints_string*) echo "--hint-bios=hd0,gpt1 --hint-efi=hd0,gpt1" ;;
esac
END
chmod +x "$tools/usr/sbin/grub-probe"
there grub-mkconfig -o /boot/grub/grub.cfg >"$work/log" 2>&1 || { tail -n 30 "$work/log" >&2; fail "grub-mkconfig failed"; }
there grub-editenv /boot/grub/grubenv create
there grub-editenv /boot/grub/grubenv set "saved_entry=gnulinux-advanced-$uuid>gnulinux-$kernel-advanced-$uuid"
for name in "gnulinux-$kernel-advanced-$uuid" "gnulinux-$newer-advanced-$uuid"; do
    grep -q "'$name'" "$tools/boot/grub/grub.cfg" || fail "grub-mkconfig made no entry $name"
done

grep -q "root=PARTUUID=$root ro" "$tools/boot/grub/grub.cfg" || fail "grub-mkconfig names another root"

say "writing the file systems"
printf 'search.fs_uuid %s root\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n' "$uuid" >"$tools/stub.cfg"
truncate -s $((253952 * 512)) "$tools/esp"
there mkfs.vfat -F 32 /esp >/dev/null
there mmd -i /esp ::/EFI ::/EFI/debian
there mcopy -i /esp /stub.cfg ::/EFI/debian/grub.cfg
dd if="$tools/esp" of="$disk" bs=1M oflag=seek_bytes conv=sparse,notrunc status=none seek=$((8192 * 512))
echo 'not a kernel' >"$work/kernel"
debugfs -w -f - "$system" >"$work/log" 2>&1 <<END
mkdir /boot/grub
write $tools/boot/grub/grub.cfg /boot/grub/grub.cfg
write $tools/boot/grub/grubenv /boot/grub/grubenv
write $work/kernel /boot/vmlinuz-$newer
write $work/kernel /boot/initrd.img-$newer
END
[ "$(debugfs -R 'ls -p /boot/grub' "$system" 2>/dev/null | grep -c '/grub')" = 2 ] ||
    { cat "$work/log" >&2; fail "debugfs could not write GRUB's files"; }

say "compressing the image"
qemu-img convert -c -f raw -O qcow2 "$disk" "$work/image" || fail "qemu-img could not write the image"
chmod 644 "$work/image"
mv "$work/image" "$2"
