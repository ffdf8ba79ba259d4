//! A lab with Debian 13's QEMU, virtiofsd and virtme-ng, and with a tree of Linux's source (resources/image/peers.sh).

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::{Access, Lab, LabConfig, cache_dir};

const RECIPE: &str = include_str!("../../../resources/image/peers.sh");
/// Mounts both in the lab: `/peers`, in which `chroot` starts programs of Debian 13, and `/trees`, which is `/peers/mnt` too.
const MOUNT: &str = "set -e
mkdir -p /peers /trees
mount -t ext4 -o ro $(readlink -f peers.root) /peers
mount -t ext4 $(readlink -f peers.tree) /trees
for place in dev proc sys; do mount --rbind /$place /peers/$place; done
for place in tmp run var/tmp root; do mount -t tmpfs tmpfs /peers/$place; done
# Made when the package is installed, which this one is not; virtme-ng does not start without it.
mount -t tmpfs tmpfs /peers/etc/ssl/certs
cat /peers/usr/share/ca-certificates/mozilla/*.crt >/peers/etc/ssl/certs/ca-certificates.crt
mount --bind /trees /peers/mnt
mount --bind $PWD /peers/lab
cat /trees/linux/.git/packed-refs >/dev/null 2>&1 || true";

/// The folder with the two images, made if it is not in the cache.
fn images() -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    RECIPE.hash(&mut hasher);
    let folder = cache_dir()?.join("images").join(format!("peers-{:016x}", hasher.finish()));
    if !folder.join("tree.ext4").exists() {
        eprintln!(
            "bench: unpacking QEMU, virtiofsd, virtme-ng and Linux's source of Debian 13, which takes some minutes"
        );
        fs::create_dir_all(&folder)?;
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../resources/image/peers.sh");
        let made = Command::new("bash").arg(recipe).arg(&folder).status().context("bash")?;
        ensure!(made.success(), "resources/image/peers.sh has failed");
    }
    Ok(folder)
}

/// The lab, with these files too.
pub fn lab(files: LabConfig) -> Result<Lab> {
    let images = images()?;
    let config = files.debian().disk(images.join("root.ext4"), "peers.root", Access::Read).disk(
        images.join("tree.ext4"),
        "peers.tree",
        Access::Forget,
    );
    let lab = Lab::start(&config)?;
    lab.sh(MOUNT).context("the peers' files")?;
    Ok(lab)
}
