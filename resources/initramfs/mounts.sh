# /.minivmm/mounts, which run.sh reads if folders of the host are in its guest. If one is its /, that is what the command sees as / and init
# as . from here on, with this folder as run/minivmm.
if [ -n "$root" ]; then
    $b mkdir -p $own/root $own/tree $own/layer
    if [ "$root" = rw ]; then
        $b mount -t virtiofs minivmm-root $own/root
    else
        $b mount -t virtiofs -o ro minivmm-root $own/tree && $b mount -t tmpfs -o mode=755 layer $own/layer &&
            $b mkdir $own/layer/upper $own/layer/work &&
            $b mount -t overlay -o lowerdir=$own/tree,upperdir=$own/layer/upper,workdir=$own/layer/work root $own/root
    fi || fail "the directory of --root cannot be mounted: this kernel lacks the driver virtiofs, or overlay"
    cd $own/root
    for folder in dev proc sys tmp run; do
        [ -d $folder ] || $b mkdir $folder || fail "the directory of --root has no $folder in it, where the guest has its own"
    done
    $b mount -t proc proc proc && $b mount -t sysfs sys sys && $b mount -t devtmpfs dev dev
    $b mount -t devpts devpts dev/pts && $b mount -t tmpfs shm dev/shm
    $b mount -t tmpfs -o mode=1777 tmp tmp && $b mount -t tmpfs -o mode=755 run run
    $b mkdir run/minivmm && $b mount --bind $own run/minivmm && $b mount --move . / || fail "the guest's / cannot be mounted"
    in="$b chroot . /run/minivmm/busybox" own=/run/minivmm place=
    # The folder of this host's root is not everybody's.
    [ ! -d root ] || $b ls root >/dev/null 2>&1 || $b mount -t tmpfs -o mode=700 home root
fi
while IFS= read -r tag && IFS= read -r options && IFS= read -r folder; do
    $in mkdir -p "$folder" && $in mount -t virtiofs -o "$options" "$tag" "$folder" ||
        fail "nothing can be mounted at $folder: it is no directory and cannot be made, or this kernel lacks the driver virtiofs"
done </.minivmm/shares
