#!/bin/bash
# Makes an ext4 with a Debian system to work in: a compiler and a program's source, a database, package managers, and programs that load
# a file system. It is unpacked and not installed, so that nothing of it runs on this host.
#
#   loads.sh FILE
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR
. "$here/lib.sh"
[ $# = 1 ] || fail "usage: loads.sh FILE"
needs mmdebstrap mke2fs apt-get

packages=(
    bash dash coreutils util-linux procps grep sed findutils diffutils tar gzip perl-base login passwd
    gcc libc6-dev make        # builds
    sqlite3 dpkg apt          # locks
    fio stress-ng             # loads
)
work=$(mktemp -d "$1.making-XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
options=()
for path in doc man locale info lintian; do
    options+=(--dpkgopt="path-exclude=/usr/share/$path/*")
done
list=$(IFS=,; echo "${packages[*]}")
say "unpacking the system"
bootstrap "$root" --variant=extract --include="$list" "${options[@]}"

# Its build checks what it has built.
say "fetching the source of bzip2"
archives bookworm | sed 's/^deb /deb-src /' >"$work/sources"
[ -s "$work/sources" ] || echo "deb-src http://deb.debian.org/debian bookworm main" >"$work/sources"
mkdir -p "$work"/{state/lists/partial,cache/archives/partial,source}
apt=(apt-get -qq -o "Dir::Etc::SourceList=$work/sources" -o Dir::Etc::SourceParts=- -o "Dir::State=$work/state"
    -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
"${apt[@]}" update
(cd "$work/source" && "${apt[@]}" source --download-only bzip2)
mkdir "$root/src"
tar -C "$root/src" --strip-components=1 -xzf "$work"/source/bzip2_*.orig.tar.gz

# What installing would have done, as far as the programs want it.
echo 'root:x:0:0:root:/root:/bin/bash' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
mkdir -p "$root"/{dev,proc,sys,tmp,root,work,never}
ldconfig -r "$root"
# stress-ng could draw as well.
rm -rf "$root"/var/cache/apt "$root"/var/lib/apt/lists "$root"/usr/lib/x86_64-linux-gnu/{dri,libLLVM*}

say "writing the image"
used=$(du -sk "$root" | cut -f1)
size=$((used * 11 / 10 + 65536))
truncate -s "${size}k" "$work/image"
ext4 "$work/image" "$size" 0 "$root" -L loads -O ^has_journal
chmod 644 "$work/image"
mv "$work/image" "$1"
