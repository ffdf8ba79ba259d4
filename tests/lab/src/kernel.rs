//! Debian's kernels: fetched as packages, unpacked into the cache, never installed.

use crate::host::{filter, read, run, say};
use crate::{LabError, cache};
use boot::modules::Modules;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which of Debian's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// `linux-image-cloud-amd64`: drivers for clouds only.
    Cloud,
    /// `linux-image-amd64`: what runs on a PC.
    Generic,
}

impl Flavour {
    fn package(self) -> &'static str {
        match self {
            Self::Cloud => "linux-image-cloud-amd64",
            Self::Generic => "linux-image-amd64",
        }
    }
}

/// One kernel with its modules.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// As `uname -r` says it, such as `6.1.0-56-cloud-amd64`.
    pub version: String,
    /// The compressed image as Debian ships it.
    pub bzimage: PathBuf,
    /// The same kernel uncompressed: an ELF file with a PVH note.
    pub vmlinux: PathBuf,
    modules: PathBuf,
}

/// Both kernels.
#[derive(Debug, Clone)]
pub struct Kernels {
    /// `linux-image-cloud-amd64`.
    pub cloud: Kernel,
    /// `linux-image-amd64`.
    pub generic: Kernel,
}

/// Both kernels of this Debian release, fetched if they are not in the cache.
pub fn kernels() -> Result<Kernels, LabError> {
    Ok(Kernels { cloud: kernel(Flavour::Cloud)?, generic: kernel(Flavour::Generic)? })
}

/// One kernel of this Debian release, fetched if it is not in the cache.
pub fn kernel(flavour: Flavour) -> Result<Kernel, LabError> {
    let dir = cache::cache_dir()?.join("kernels");
    let pointer = dir.join(flavour.package());
    let known = || {
        fs::read_to_string(&pointer).ok().map(|name| dir.join(name)).filter(|d| d.join("vmlinux").exists())
    };
    if let Some(unpacked) = known() {
        return Kernel::at(&unpacked);
    }
    let _one_at_a_time = cache::lock()?;
    if let Some(unpacked) = known() {
        return Kernel::at(&unpacked);
    }
    fs::create_dir_all(&dir).map_err(LabError::path("create", &dir))?;
    // The lock is ours: one that is there already was left by a process that was killed.
    let work = dir.join("fetch");
    drop(fs::remove_dir_all(&work));
    fs::create_dir_all(&work).map_err(LabError::path("create", &work))?;
    let fetched = fetch(flavour, &dir, &work);
    drop(fs::remove_dir_all(&work));
    let name = fetched?;
    cache::write(&pointer, name.as_bytes())?;
    Kernel::at(&dir.join(name))
}

/// Downloads with the system's package lists; with fresh ones of our own where those are missing or stale.
fn fetch(flavour: Flavour, dir: &Path, work: &Path) -> Result<String, LabError> {
    let (name, deb) = match download(flavour, work, &[]) {
        Ok(found) => found,
        // Missing or old: what they name may be gone from the servers.
        Err(_) => {
            say("apt's package lists do not lead to a kernel; fetching fresh ones into the cache");
            let lists = own_lists(dir)?;
            run(Command::new("apt-get").args(&lists).args(["-qq", "update"]))?;
            download(flavour, work, &lists)?
        }
    };
    say(&format!("unpacking {name}"));
    let new = work.join("unpacked");
    run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&new))?;
    // Documentation and symbol tables: of no use here.
    drop(fs::remove_dir_all(new.join("usr/share")));
    let image = image_in(&new.join("boot"))?;
    let vmlinux = new.join("vmlinux");
    fs::write(&vmlinux, extract(&image)?).map_err(LabError::path("write", &vmlinux))?;
    let place = dir.join(&name);
    drop(fs::remove_dir_all(&place));
    fs::rename(&new, &place).map_err(LabError::path("create", &place))?;
    Ok(name)
}

/// Options that give apt a state directory of ours, so that an ordinary user can fetch package lists.
fn own_lists(dir: &Path) -> Result<Vec<String>, LabError> {
    let state = dir.with_file_name("apt");
    for part in ["state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(state.join(part)).map_err(LabError::path("create", &state.join(part)))?;
    }
    let state = state.display();
    let options = [
        format!("Dir::State={state}/state"),
        format!("Dir::Cache={state}/cache"),
        "Dir::State::status=/var/lib/dpkg/status".into(),
        "APT::Sandbox::User=".into(),
    ];
    Ok(options.into_iter().flat_map(|o| ["-o".to_owned(), o]).collect())
}

/// The package that the meta package depends on today, downloaded into `work`.
fn download(flavour: Flavour, work: &Path, options: &[String]) -> Result<(String, PathBuf), LabError> {
    let meta = flavour.package();
    let missing = || LabError::Missing {
        what: format!("the Debian package {meta}"),
        mend: "run on Debian (amd64) with its main archive in apt's sources, then apt-get update".into(),
    };
    let depends =
        run(Command::new("apt-cache").args(options).args(["depends", meta])).map_err(|_| missing())?;
    let depends = String::from_utf8_lossy(&depends).into_owned();
    let name = depends
        .lines()
        .find_map(|l| l.trim().strip_prefix("Depends: ").filter(|n| n.starts_with("linux-image-")));
    let name = name.ok_or_else(missing)?.to_owned();
    say(&format!("downloading {name}"));
    run(Command::new("apt-get").args(options).args(["-qq", "download", &name]).current_dir(work))?;
    let entries = fs::read_dir(work).map_err(LabError::path("read", work))?;
    let deb = entries.flatten().map(|e| e.path()).find(|p| p.extension().is_some_and(|e| e == "deb"));
    Ok((name, deb.ok_or_else(missing)?))
}

fn image_in(boot: &Path) -> Result<PathBuf, LabError> {
    let entries = fs::read_dir(boot).map_err(LabError::path("read", boot))?;
    let image = entries.flatten().find(|e| e.file_name().to_string_lossy().starts_with("vmlinuz-"));
    image.map(|e| e.path()).ok_or_else(|| LabError::format(boot, "the package holds no vmlinuz"))
}

/// The ELF file inside a bzImage (x86 boot protocol 2.08: `payload_offset` counts from the protected-mode code).
fn extract(bzimage: &Path) -> Result<Vec<u8>, LabError> {
    let image = read(bzimage)?;
    let wrong = |reason: &str| LabError::format(bzimage, reason);
    let word = |at: usize| {
        let bytes = image.get(at..at + 4).and_then(|b| b.try_into().ok());
        bytes.map(|b| u32::from_le_bytes(b) as usize).ok_or_else(|| wrong("it ends within its setup header"))
    };
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err(wrong("it is no bzImage"));
    }
    let sectors = image.get(0x1f1).map_or(4, |n| if *n == 0 { 4 } else { usize::from(*n) });
    let start = (sectors + 1) * 512 + word(0x248)?;
    let payload = image.get(start..start + word(0x24c)?).ok_or_else(|| wrong("its payload is cut off"))?;
    // All formats but gzip have the uncompressed size appended in four bytes, which their own tools take for garbage.
    let body = payload.get(..payload.len().saturating_sub(4)).unwrap_or_default();
    let vmlinux = match payload {
        [0x1f, 0x8b, ..] => filter("gzip", &["-dc"], payload),
        [0xfd, b'7', b'z', ..] => filter("xz", &["-dc"], body),
        [0x02, 0x21, 0x4c, 0x18, ..] => filter("lz4", &["-dc"], body),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => filter("zstd", &["-dc"], body),
        _ => Err(wrong("its compression is neither gzip, xz, lz4 nor zstd")),
    }?;
    if vmlinux.starts_with(b"\x7fELF") { Ok(vmlinux) } else { Err(wrong("what it holds is no ELF file")) }
}

impl Kernel {
    fn at(dir: &Path) -> Result<Self, LabError> {
        let bzimage = image_in(&dir.join("boot"))?;
        let version = bzimage.file_name().unwrap_or_default().to_string_lossy().replace("vmlinuz-", "");
        let homes = [dir.join("lib/modules"), dir.join("usr/lib/modules")];
        let modules = homes.into_iter().map(|h| h.join(&version)).find(|d| d.is_dir());
        let modules = modules.ok_or_else(|| LabError::format(dir, "the package holds no modules"))?;
        Ok(Self { version, bzimage, vmlinux: dir.join("vmlinux"), modules })
    }

    /// The named modules and what they depend on, in the order in which to load them, uncompressed: (file name, content).
    ///
    /// One that is built into the kernel is left out.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>, LabError> {
        let modules = Modules::open(&self.modules).map_err(LabError::path("read", &self.modules))?;
        let unpack = |_, packed: &[u8]| filter("xz", &["-dc"], packed).map_err(io::Error::other);
        let loaded = modules
            .load(names, &unpack)
            .map_err(|error| LabError::format(&self.modules, error.to_string()))?;
        Ok(loaded.into_iter().map(|module| (module.file, module.content)).collect())
    }
}
