//! What the archives of the lab hold; boot::cpio writes them, without root and without a cpio program.

use crate::LabError;
use crate::host::read;
use boot::cpio::{Cpio, Kind, Member};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An archive that grows; parents of a file are added by themselves.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    cpio: boot::cpio::Archive,
}

impl Archive {
    /// What every initramfs of ours starts from: busybox, the device nodes it needs before /dev is mounted, its mount points.
    pub(crate) fn with_busybox(busybox: &Path) -> Result<Self, LabError> {
        let mut archive = Self::default();
        for dir in ["dev", "proc", "sys", "tmp", "run", "root", "etc", "usr/bin", "usr/sbin", "sbin", "lab"] {
            archive.cpio.folder(dir).map_err(refused)?;
        }
        archive.entry("dev/console", Member::new(0o600, Kind::CharacterDevice(5, 1)))?;
        archive.entry("dev/null", Member::new(0o600, Kind::CharacterDevice(1, 3)))?;
        archive.text("etc/passwd", 0o644, "root::0:0:root:/root:/bin/sh\n")?;
        archive.text("etc/group", 0o644, "root:x:0:\n")?;
        archive.program("bin/busybox", busybox)?;
        Ok(archive)
    }

    pub(crate) fn text(&mut self, name: &str, mode: u32, text: &str) -> Result<(), LabError> {
        self.file(name, mode, text.as_bytes())
    }

    pub(crate) fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<(), LabError> {
        self.entry(name, Member::file(mode, content))
    }

    /// A file of the host; a dynamic program brings its libraries along.
    pub(crate) fn program(&mut self, name: &str, host: &Path) -> Result<(), LabError> {
        let content = read(host)?;
        let mode = host.metadata().map_err(LabError::path("look at", host))?.permissions().mode() & 0o777;
        let libraries =
            if content.starts_with(b"\x7fELF") && mode & 0o111 != 0 { libraries(host) } else { Vec::new() };
        self.file(name, mode, &content)?;
        for library in libraries {
            let name = library.display().to_string();
            if !self.cpio.contains(&name) {
                self.file(&name, 0o755, &read(&library)?)?;
            }
        }
        Ok(())
    }

    /// The finished archive.
    pub(crate) fn finish(self) -> Result<Vec<u8>, LabError> {
        let cpio: Cpio = self.cpio.finish().map_err(refused)?;
        cpio.to_vec().map_err(LabError::io("cannot make an initramfs"))
    }

    fn entry(&mut self, name: &str, member: Member) -> Result<(), LabError> {
        self.cpio.add(name, member).map(drop).map_err(refused)
    }
}

fn refused(error: boot::cpio::CpioError) -> LabError {
    LabError::io("cannot make an initramfs")(std::io::Error::other(error))
}

/// What the dynamic loader would map: a static program, or one that is none, has none.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let Ok(out) = Command::new("ldd").arg(program).env("LC_ALL", "C").output() else { return Vec::new() };
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    // "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)" or "/lib64/ld-linux-x86-64.so.2 (0x...)"
    let path = |line: &str| line.split_whitespace().find(|w| w.starts_with('/')).map(PathBuf::from);
    if out.status.success() { text.lines().filter_map(path).collect() } else { Vec::new() }
}
