#!/bin/bash
# Installs the Debian packages that building, testing and the lab need, and nothing when they are all there.
set -euo pipefail

packages=(
    gcc libc6-dev make                 # to build
    acpica-tools                       # tests let iasl read our ACPI tables
    qemu-system-x86 busybox-static     # the lab: an emulated machine, and what guests run
    gzip xz-utils lz4 zstd             # kernels come compressed in one of these
    mmdebstrap fdisk e2fsprogs         # disk images
    iproute2                           # TAP devices
    e2fsprogs btrfs-progs              # tests make file systems
    qemu-utils                         # tests compare our disk images with qemu-img's
    systemd                            # tests have systemd-analyze look at our unit
    man-db                             # tests have man read our pages
)

fail() { echo "install-deps: $*" >&2; exit 1; }

PATH=$PATH:$HOME/.cargo/bin
command -v cargo >/dev/null || fail "cargo is missing; https://rustup.rs says how to install Rust"
command -v dpkg-query >/dev/null || fail "this is no Debian system; install what these packages hold: ${packages[*]}"

missing=()
for package in "${packages[@]}"; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} = 0 ] && exit 0

as_root=()
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || fail "run this as root: apt-get install -y ${missing[*]}"
    as_root=(sudo)
fi
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 "$@" </dev/null; }
install() { apt install --no-install-recommends "${missing[@]}" >/dev/null; }

echo "installing ${missing[*]}"
# The package lists may be missing or old.
install 2>/dev/null || { apt update && install; } || fail "apt-get could not install ${missing[*]}"
