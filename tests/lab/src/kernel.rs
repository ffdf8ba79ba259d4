//! Debian's kernels: fetched as packages, unpacked into the cache, never installed.

use crate::host::{filter, read, tool};
use crate::packages::{self, Release};
use crate::{LabError, cache};
use boot::modules::Modules;
use std::fs;
use std::path::{Path, PathBuf};

/// Which of Debian's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// This release's `linux-image-cloud-amd64`: drivers for clouds only.
    Cloud,
    /// This release's `linux-image-amd64`: what runs on a PC.
    Generic,
    /// Linux 6.12, Debian 13's `linux-image-cloud-amd64`: what newer hosts and guests have.
    Trixie,
    /// Linux 5.10, Debian 11's `linux-image-cloud-amd64`: the oldest that Debian's mirrors still have.
    Bullseye,
    /// Linux 6.1 of Debian 12 for 32-bit processors, `linux-image-686`.
    I386,
}

impl Flavour {
    /// Its release, its meta package, and its name in the cache.
    fn package(self) -> (Release, &'static str, &'static str) {
        match self {
            Self::Cloud => (Release::Host, "linux-image-cloud-amd64", "linux-image-cloud-amd64"),
            Self::Generic => (Release::Host, "linux-image-amd64", "linux-image-amd64"),
            Self::Trixie => (Release::Named("trixie"), "linux-image-cloud-amd64", "trixie-cloud-amd64"),
            Self::Bullseye => (Release::Named("bullseye"), "linux-image-cloud-amd64", "bullseye-cloud-amd64"),
            Self::I386 => (Release::Named("bookworm"), "linux-image-686:i386", "bookworm-686"),
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
    /// Whether it is for 32-bit processors, and runs programs for these only.
    pub i386: bool,
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
    let pointer = dir.join(flavour.package().2);
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
    let name = fetch(flavour, &dir)?;
    cache::write(&pointer, name.as_bytes())?;
    Kernel::at(&dir.join(name))
}

/// Fetches a kernel's package; gives the name of its folder in `dir`.
fn fetch(flavour: Flavour, dir: &Path) -> Result<String, LabError> {
    let (release, meta, _) = flavour.package();
    packages::fetch(release, dir, |apt, work| {
        let name = apt.depends(meta, "linux-image-")?;
        let new = apt.unpack(&name, work)?;
        // Documentation and symbol tables: of no use here.
        drop(fs::remove_dir_all(new.join("usr/share")));
        let image = image_in(&new.join("boot"))?;
        let vmlinux = new.join("vmlinux");
        fs::write(&vmlinux, extract(&image)?).map_err(LabError::path("write", &vmlinux))?;
        let name = name.replace(':', "-");
        let place = dir.join(&name);
        drop(fs::remove_dir_all(&place));
        fs::rename(&new, &place).map_err(LabError::path("create", &place))?;
        Ok(name)
    })
}

/// memtest86+ as Debian ships it, for processors of 64 and of 32 bits: kernels by Linux's boot protocol that need no initrd.
pub fn memtest() -> Result<[PathBuf; 2], LabError> {
    let boot = packages::unpacked(Release::Named("trixie"), "memtest86+")?.join("boot");
    Ok(["memtest86+x64.bin", "memtest86+ia32.bin"].map(|name| boot.join(name)))
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
        let i386 = version.contains("-686");
        Ok(Self { version, bzimage, vmlinux: dir.join("vmlinux"), i386, modules })
    }

    /// A static busybox that this kernel runs.
    pub fn busybox(&self) -> Result<PathBuf, LabError> {
        if self.i386 {
            let package = packages::unpacked(Release::Named("bookworm"), "busybox-static:i386")?;
            let homes = [package.join("bin/busybox"), package.join("usr/bin/busybox")];
            let found = homes.into_iter().find(|file| file.exists());
            return found.ok_or_else(|| LabError::format(&package, "the package holds no busybox"));
        }
        tool("busybox")
    }

    /// The named modules and what they depend on, in the order in which to load them, uncompressed: (file name, content).
    ///
    /// One that is built into the kernel is left out.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>, LabError> {
        let modules = Modules::open(&self.modules).map_err(LabError::path("read", &self.modules))?;
        let loaded =
            modules.load(names).map_err(|error| LabError::format(&self.modules, error.to_string()))?;
        Ok(loaded.into_iter().map(|module| (module.file, module.content)).collect())
    }
}
