//! Initramfs archives: the "newc" cpio format (Linux Documentation/driver-api/early-userspace/buffer-format.rst),
//! written without root and without a cpio program. Same content, same bytes.

use crate::LabError;
use crate::host::read;
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const DIRECTORY: u32 = 0o040_755;
const CHARACTER_DEVICE: u32 = 0o020_600;
const REGULAR: u32 = 0o100_000;

/// An archive that grows; parents of a file are added by themselves.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

impl Archive {
    /// What every initramfs of ours starts from: busybox, the device nodes it needs before /dev is mounted, its mount points.
    pub(crate) fn with_busybox(busybox: &Path) -> Result<Self, LabError> {
        let mut archive = Self::default();
        for dir in ["dev", "proc", "sys", "tmp", "run", "root", "etc", "usr/bin", "usr/sbin", "sbin", "lab"] {
            archive.directory(dir)?;
        }
        archive.entry("dev/console", CHARACTER_DEVICE, (5, 1), &[])?;
        archive.entry("dev/null", CHARACTER_DEVICE, (1, 3), &[])?;
        archive.text("etc/passwd", 0o644, "root::0:0:root:/root:/bin/sh\n")?;
        archive.text("etc/group", 0o644, "root:x:0:\n")?;
        archive.program("bin/busybox", busybox)?;
        Ok(archive)
    }

    pub(crate) fn text(&mut self, name: &str, mode: u32, text: &str) -> Result<(), LabError> {
        self.file(name, mode, text.as_bytes())
    }

    pub(crate) fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<(), LabError> {
        let name = name.trim_start_matches('/');
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.directory(parent)?;
        }
        self.entry(name, REGULAR | mode, (0, 0), content)
    }

    /// A file of the host; a dynamic program brings its libraries along.
    pub(crate) fn program(&mut self, name: &str, host: &Path) -> Result<(), LabError> {
        let content = read(host)?;
        let mode = host.metadata().map_err(LabError::path("look at", host))?.permissions().mode() & 0o777;
        self.file(name, mode, &content)?;
        if content.starts_with(b"\x7fELF") && mode & 0o111 != 0 {
            for library in libraries(host) {
                let name = library.display().to_string();
                if !self.names.contains(name.trim_start_matches('/')) {
                    self.file(&name, 0o755, &read(&library)?)?;
                }
            }
        }
        Ok(())
    }

    /// The finished archive.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>, LabError> {
        self.names.clear();
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.bytes)
    }

    fn directory(&mut self, name: &str) -> Result<(), LabError> {
        if self.names.contains(name) {
            return Ok(());
        }
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.directory(parent)?;
        }
        self.entry(name, DIRECTORY, (0, 0), &[])
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<(), LabError> {
        let size = u32::try_from(content.len()).map_err(|_| {
            LabError::format(Path::new(name), "a file of 4 GiB or more does not fit into an initramfs")
        })?;
        let inode = self.names.len() + 1;
        let header = format!(
            "070701{inode:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{name}\0",
            0,
            0,
            1,
            0,
            0,
            0,
            device.0,
            device.1,
            name.len() + 1,
            0
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
        self.names.insert(name.to_owned());
        Ok(())
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// What the dynamic loader would map: a static program, or one that is none, has none.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let Ok(out) = Command::new("ldd").arg(program).env("LC_ALL", "C").output() else { return Vec::new() };
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    // "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)" or "/lib64/ld-linux-x86-64.so.2 (0x...)"
    let path = |line: &str| line.split_whitespace().find(|w| w.starts_with('/')).map(PathBuf::from);
    if out.status.success() { text.lines().filter_map(path).collect() } else { Vec::new() }
}
