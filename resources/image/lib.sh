# What the image recipes share. Sourced.

fail() { echo "image: $*" >&2; exit 1; }

# Steps are said on a terminal, and where someone asked for them.
say() { if [ -t 2 ] || [ -n "${IMAGE_VERBOSE:-}" ]; then echo "image: $*" >&2; fi; }

# needs PROGRAM...: all of them, and the right to own files as their packages say.
needs() {
    local program
    PATH=$PATH:/usr/sbin:/sbin
    [ "$(id -u)" = 0 ] || fail "unpacking a Debian system takes root; run this with sudo"
    for program in "$@"; do
        command -v "$program" >/dev/null || fail "the program $program is missing; make install-deps brings it"
    done
}

# The archives of this host that hold the release, as lines for apt; none where this host is of another release:
# mmdebstrap then takes Debian's own.
archives() {
    apt-get indextargets --format '$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)' 'Created-By: Packages' 2>/dev/null |
        while IFS='|' read -r uri release component keyring; do
            case $release:$keyring in
                "$1":*debian-archive* | "$1"-updates:*debian-archive* | "$1"-security:*debian-archive* | "$1":)
                    echo "deb $uri $release $component" ;;
            esac
        done
}

# bootstrap DIRECTORY OPTION...: a root directory of the release; says what failed when it did.
bootstrap() {
    local root=$1 sources log
    shift
    sources=$(mktemp) log=$(mktemp)
    archives bookworm >"$sources"
    local from=("$sources")
    [ -s "$sources" ] || from=()
    mmdebstrap --mode=root --dpkgopt=force-unsafe-io --aptopt='Acquire::Languages "none"' \
        "$@" bookworm "$root" "${from[@]}" </dev/null >"$log" 2>&1 || {
        tail -n 30 "$log" >&2
        rm -f "$sources" "$log"
        fail "mmdebstrap could not make the system from Debian's packages; its last words stand above"
    }
    rm -f "$sources" "$log"
}

# ext4 IMAGE SIZE_KIB OFFSET_KIB ROOT OPTION...: an ext4 with the files of ROOT, inside a sparse file that is there.
# A zeroed inode table says to the guest's kernel that it need not write one; the file stays sparse.
ext4() {
    local image=$1 size=$2 offset=$3 root=$4
    shift 4
    mke2fs -q -t ext4 -F -d "$root" -m 1 "$@" \
        -E "offset=$((offset * 1024)),lazy_itable_init=0,nodiscard" "$image" "${size}k" ||
        fail "mke2fs could not write a file system of $((size / 1024)) MiB with the files of $root"
    # Blocks of zeros, in files and in tables, need not be kept.
    fallocate --dig-holes "$image"
}
