# /.minivmm/mounts, which run.sh reads if folders of the host are in its guest. If one is its /, that is what the command sees as / and init
# as . from here on, with this folder as run/minivmm.
if [ -n "$root" ]; then
    if [ "$root" = rw ]; then
        $b mount -t virtiofs minivmm-root $own/root
    else
        echo "minivmm-root $own/tree virtiofs ro
layer $own/layer tmpfs mode=755" >$own/fstab
        mounts $own/fstab && $b mkdir $own/layer/upper $own/layer/work &&
            $b mount -t overlay -o redirect_dir=on,lowerdir=$own/tree,upperdir=$own/layer/upper,workdir=$own/layer/work root $own/root
    fi || fail "the directory of --root cannot be mounted: this kernel lacks the driver virtiofs, or overlay"
    cd $own/root
    for folder in dev proc sys tmp run; do
        [ -d $folder ] || $b mkdir -p $folder || fail "the directory of --root has no $folder in it, where the guest has its own"
    done
    echo "proc $own/root/proc proc defaults
sys $own/root/sys sysfs defaults
dev $own/root/dev devtmpfs defaults
devpts $own/root/dev/pts devpts defaults
shm $own/root/dev/shm tmpfs defaults
tmp $own/root/tmp tmpfs mode=1777
run $own/root/run tmpfs mode=755" >$own/fstab
    mounts $own/fstab && $b mkdir run/minivmm && $b mount --bind $own run/minivmm && $b mount --move . / || fail "the guest's / cannot be mounted"
    in="$b chroot . /run/minivmm/busybox" own=/run/minivmm place=
    # The folder of this host's root is not everybody's.
    [ ! -d root ] || $b ls root >/dev/null 2>&1 || $b mount -t tmpfs -o mode=700 home root
fi
# Mounts the others, when nothing else is written to the guest's files: what is in them is the host's.
volumes() {
    while IFS= read -r tag && IFS= read -r options && IFS= read -r folder; do
        # It is in the archive already, if the guest has no other /.
        { [ -z "$root" ] && [ -d "$folder" ]; } || $in mkdir -p "$folder"
        $in mount -t virtiofs -o "$options" "$tag" "$folder" ||
            fail "nothing can be mounted at $folder: it is no directory and cannot be made, or this kernel lacks the driver virtiofs"
        # The host refuses what would cover it, but knows nothing of links.
        [ -z "$root" ] || [ -e .$own/busybox ] ||
            fail "what is mounted at $folder covers /run/minivmm, where this init has its files: name another path"
    done </.minivmm/shares
}
