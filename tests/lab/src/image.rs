//! Disk images: vm0 as `make image` makes it, and what the emulated machine works with. Built by the recipes in
//! resources/image, kept in the cache until a recipe changes.

use crate::host::{install_tools, run, say, tool};
use crate::packages::{self, Release};
use crate::{LabError, cache};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

/// The name of the cloud image where a lab has it.
pub(crate) const CLOUD_FILE: &str = "cloud.qcow2";
const RECIPES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../resources/image");
const LIB: &str = include_str!("../../../resources/image/lib.sh");
const VM0: &str = include_str!("../../../resources/image/vm0.sh");
const SETTINGS: &str = include_str!("../../../resources/image/settings.sh");
const CLOUD: &str = include_str!("../../../resources/image/cloud.sh");
const TOOLS: &str = include_str!("../../../resources/image/tools.sh");
const LOADS: &str = include_str!("../../../resources/image/loads.sh");
/// What of the surroundings a recipe listens to.
const VARIABLES: [&str; 3] = ["IMAGE_SIZE", "IMAGE_PACKAGES", "IMAGE_DOCS"];
/// What guests can fill, in a file that takes what they filled.
const WORK_BYTES: u64 = 24 << 30;
/// An image made by another recipe that nobody has used for so long is not kept.
const KEEP: Duration = Duration::from_secs(24 * 3600);

/// One Debian system, as files.
#[derive(Debug, Clone)]
pub struct Debian {
    dir: PathBuf,
}

impl Debian {
    /// The names of its files: the disk with a partition table, the one without, kernel and initrd.
    pub const FILES: [&str; 4] = ["vm0.raw", "vm0-whole.raw", "vmlinuz", "initrd.img"];

    /// One of [`Self::FILES`]. It is shared: copy it before you write.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn name(&self) -> String {
        self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// vm0, built if it is not in the cache.
pub fn debian() -> Result<Debian, LabError> {
    let mut parts = vec![LIB.to_owned(), VM0.to_owned(), SETTINGS.to_owned()];
    parts.extend(VARIABLES.iter().map(|name| format!("{name}={}", std::env::var(name).unwrap_or_default())));
    let dir = made("vm0", &parts, |new| recipe("vm0.sh", &["--whole".as_ref(), new]))?;
    Ok(Debian { dir })
}

/// vm0 as a disk with the layout of Debian's cloud images, in qcow2. It is shared: copy it before you write.
pub fn cloud() -> Result<PathBuf, LabError> {
    let debian = debian()?;
    let parts = [LIB.to_owned(), CLOUD.to_owned(), debian.name()];
    let dir = made("cloud", &parts, |new| {
        fs::create_dir(new).map_err(LabError::path("create", new))?;
        recipe("cloud.sh", &[&debian.file("vm0.raw"), &new.join(CLOUD_FILE)])
    })?;
    Ok(dir.join(CLOUD_FILE))
}

/// Copies vm0, kernel and initrd into a directory. Images that are there already stay as they are: machines may live
/// in them; the result says whether that was so.
pub fn debian_into(dir: &Path, whole: bool) -> Result<bool, LabError> {
    let (image, unwanted) = if whole { (1, 0) } else { (0, 1) };
    let files = Debian::FILES.iter().enumerate().filter(|(at, _)| *at != unwanted);
    if Debian::FILES.get(image).is_some_and(|name| dir.join(name).exists()) {
        return Ok(false);
    }
    let debian = debian()?;
    // The disk is the first of the list, and shall be the last to appear.
    for (_, name) in files.rev() {
        copy(&debian.file(name), &dir.join(name))?;
    }
    Ok(true)
}

/// The Debian programs for the emulated machine, an ext4.
pub(crate) fn tools() -> Result<PathBuf, LabError> {
    let parts = [LIB.to_owned(), TOOLS.to_owned()];
    let dir = made("tools", &parts, |new| {
        fs::create_dir(new).map_err(LabError::path("create", new))?;
        recipe("tools.sh", &[&new.join("image")])
    })?;
    Ok(dir.join("image"))
}

/// A Debian 12 to work in, an ext4: compiler, make and the source of bzip2, sqlite, apt and dpkg, fio and stress-ng, with `/work` and
/// `/never` to mount at. It is shared: do not write to it.
pub fn loads() -> Result<PathBuf, LabError> {
    let parts = [LIB.to_owned(), LOADS.to_owned()];
    let dir = made("loads", &parts, |new| {
        fs::create_dir(new).map_err(LabError::path("create", new))?;
        recipe("loads.sh", &[&new.join("image")])
    })?;
    Ok(dir.join("image"))
}

/// Of Debian 13: systemd, which takes credentials that Debian 12's does not know, and what it needs.
const SYSTEMD: [&str; 36] = [
    "base-files",
    "base-passwd",
    "coreutils",
    "dash",
    "libacl1",
    "libapparmor1",
    "libattr1",
    "libaudit1",
    "libblkid1",
    "libc6",
    "libcap-ng0",
    "libcap2",
    "libcrypt1",
    "libgcc-s1",
    "libgcrypt20",
    "libgmp10",
    "libgpg-error0",
    "libkmod2",
    "liblz4-1",
    "liblzma5",
    "libmount1",
    "libpam0g",
    "libpcre2-8-0",
    "libseccomp2",
    "libselinux1",
    "libsmartcols1",
    "libssl3t64",
    "libsystemd-shared",
    "libsystemd0",
    "libtinfo6",
    "libudev1",
    "libzstd1",
    "mount",
    "systemd",
    "util-linux",
    "zlib1g",
];
/// What the system below does once it is up: what is in `/usr/local/bin/proof`, with the console.
const PROOF: &str = "[Unit]\nAfter=local-fs.target\n[Service]\nType=oneshot\nExecStart=/bin/sh /usr/local/bin/proof\n\
    ExecStopPost=/bin/systemctl poweroff --no-block\nStandardOutput=tty\nStandardError=tty\nTTYPath=/dev/ttyS0\n";

pub(crate) fn systemd_packages() -> Result<PathBuf, LabError> {
    packages::unpacked_together(Release::Named("trixie"), "trixie-systemd-257", &SYSTEMD)
}

/// What it boots to.
const PROOF_TARGET: &str = "[Unit]\nRequires=proof.service\nAfter=proof.service\n";

/// An ext4 with systemd 257 as on Debian 13, whose first boot runs `script` and powers off. It is shared: do not write to it.
pub fn systemd(script: &str) -> Result<PathBuf, LabError> {
    let packages = systemd_packages()?;
    let parts = [SYSTEMD.join(" "), PROOF.to_owned(), PROOF_TARGET.to_owned(), script.to_owned()];
    let dir = made("systemd", &parts, |new| {
        let root = new.join("root");
        fs::create_dir_all(new).map_err(LabError::path("create", new))?;
        run(Command::new("cp").args(["-al"]).arg(&packages).arg(&root))?;
        drop(fs::remove_dir_all(root.join("usr/share/doc")));
        for (name, text) in [
            ("etc/machine-id", ""),
            ("etc/systemd/system/proof.service", PROOF),
            ("etc/systemd/system/proof.target", PROOF_TARGET),
            ("usr/local/bin/proof", script),
            ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
            ("etc/group", "root:x:0:\ntty:x:5:\n"),
        ] {
            let path = root.join(name);
            let folder = path.parent().unwrap_or(&root);
            fs::create_dir_all(folder).map_err(LabError::path("create", folder))?;
            fs::write(&path, text).map_err(LabError::path("write", &path))?;
        }
        let target = root.join("etc/systemd/system/default.target");
        let target =
            std::os::unix::fs::symlink("proof.target", &target).map_err(LabError::path("create", &target));
        target?;
        let image = new.join("image");
        let sparse = fs::File::create(&image).and_then(|f| f.set_len(256 << 20));
        sparse.map_err(LabError::path("create", &image))?;
        let mut mke2fs = Command::new(tool("mke2fs")?);
        run(mke2fs.args(["-q", "-t", "ext4", "-F", "-E", "root_owner=0:0", "-d"]).arg(&root).arg(&image))?;
        fs::remove_dir_all(&root).map_err(LabError::path("remove", &root))
    })?;
    Ok(dir.join("image"))
}

/// An ext4 with vm0's files and room for more: the working directory of the emulated machine.
pub(crate) fn work() -> Result<PathBuf, LabError> {
    let (debian, cloud) = (debian()?, cloud()?);
    let cloud_name =
        cloud.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    let dir = made("work", &[debian.name(), cloud_name, WORK_BYTES.to_string()], |new| {
        let files = new.join("files");
        fs::create_dir_all(&files).map_err(LabError::path("create", &files))?;
        let all = Debian::FILES.map(|name| (debian.file(name), name));
        for (file, name) in all.into_iter().chain([(cloud.clone(), CLOUD_FILE)]) {
            let link = files.join(name);
            fs::hard_link(file, &link).map_err(LabError::path("create", &link))?;
        }
        let image = new.join("image");
        let sparse = fs::File::create(&image).and_then(|f| f.set_len(WORK_BYTES));
        sparse.map_err(LabError::path("create", &image))?;
        let mut mke2fs = Command::new(tool("mke2fs")?);
        mke2fs.args(["-q", "-t", "ext4", "-F", "-m", "0", "-J", "size=32"]);
        // With its tables zeroed, nothing writes to it in the background.
        run(mke2fs.args(["-E", "lazy_itable_init=0,nodiscard", "-d"]).arg(&files).arg(&image))?;
        fs::remove_dir_all(&files).map_err(LabError::path("remove", &files))
    })?;
    Ok(dir.join("image"))
}

/// Keeps what is sparse so.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), LabError> {
    let new = cache::beside(to);
    run(Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(from).arg(&new))?;
    fs::rename(&new, to).map_err(LabError::path("write", to))
}

fn recipe(name: &str, args: &[&Path]) -> Result<(), LabError> {
    run(Command::new("bash").arg(Path::new(RECIPES).join(name)).args(args)).map(drop)
}

/// The directory in the cache that belongs to what an image is made of; `make` makes it if it is not there.
fn made(
    kind: &str,
    parts: &[String],
    make: impl FnOnce(&Path) -> Result<(), LabError>,
) -> Result<PathBuf, LabError> {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    let home = cache::cache_dir()?.join("images");
    let dir = home.join(format!("{kind}-{:016x}", hasher.finish()));
    let used = || fs::File::open(&dir).and_then(|d| d.set_modified(SystemTime::now())).is_ok();
    if used() {
        return Ok(dir);
    }
    install_tools()?;
    fs::create_dir_all(&home).map_err(LabError::path("create", &home))?;
    // One lock a kind: two kinds can be made side by side.
    let _one_at_a_time = cache::lock_named(kind)?;
    if used() {
        return Ok(dir);
    }
    discard(&home, kind);
    say(&format!("making the image `{kind}`, which takes a minute or two"));
    let begin = Instant::now();
    let new = home.join(format!("new-{kind}"));
    make(&new).inspect_err(|_| drop(fs::remove_dir_all(&new)))?;
    fs::rename(&new, &dir).map_err(LabError::path("create", &dir))?;
    say(&format!("made the image `{kind}` in {} s", begin.elapsed().as_secs()));
    Ok(dir)
}

/// What an interrupted run left, and images of other recipes that nobody wants any more.
fn discard(home: &Path, kind: &str) {
    for entry in fs::read_dir(home).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        let old = name.starts_with(&format!("{kind}-")) && age.is_some_and(|age| age > KEEP);
        if old || name == format!("new-{kind}") {
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}
