//! Searches the host for a busybox that runs without libraries.

use std::cell::OnceCell;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::error::RunError;
use crate::host::open_now::open_now;

const NAMES: [&str; 3] = ["busybox", "busybox.static", "busybox-static"];
/// Folders that are searched even if PATH does not list them.
const FOLDERS: &str = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";

/// The busybox of this host, which is searched for once, if at all.
#[derive(Debug, Default)]
pub(super) struct Busybox(OnceCell<Result<PathBuf, String>>);

impl Busybox {
    /// Where it is.
    pub(super) fn path(&self) -> Result<&Path, RunError> {
        let found = self.0.get_or_init(|| find(&std::env::var("PATH").unwrap_or_default()));
        found.as_deref().map_err(|found| RunError::NoBusybox { found: found.clone() })
    }

    /// Whether there is one.
    pub(super) fn is_there(&self) -> bool {
        self.path().is_ok()
    }
}

/// The first static busybox in `path`, a list like PATH, or in the system's folders; else what was found instead.
fn find(path: &str) -> Result<PathBuf, String> {
    let folders = path.split(':').chain(FOLDERS.split(':')).filter(|folder| !folder.is_empty());
    let mut dynamic = None;
    for file in folders.flat_map(|folder| NAMES.map(|name| Path::new(folder).join(name))) {
        match is_static(&file) {
            Some(true) => return Ok(file),
            Some(false) => dynamic = dynamic.or(Some(file)),
            None => {}
        }
    }
    Err(match dynamic {
        Some(file) => format!(
            "{} needs libraries that a guest does not have: a static busybox is needed",
            file.display()
        ),
        None => "this host has no busybox in PATH".to_owned(),
    })
}

/// Whether a program needs no dynamic loader (no program header PT_INTERP of the ELF specification); `None`
/// for a file that is no program for this processor.
fn is_static(path: &Path) -> Option<bool> {
    const INTERP: u32 = 3;
    const X86_64: u16 = 62;
    let mut head = Vec::new();
    // Every linker puts the program headers directly after the ELF header.
    open_now(path, File::options().read(true), 0).ok()?.take(4096).read_to_end(&mut head).ok()?;
    let bytes = |at: usize, len: usize| head.get(at..at.checked_add(len)?);
    let half = |at: usize| Some(u16::from_le_bytes(bytes(at, 2)?.try_into().ok()?));
    if bytes(0, 5)? != b"\x7fELF\x02" || half(18)? != X86_64 {
        return None;
    }
    let table = usize::try_from(u64::from_le_bytes(bytes(32, 8)?.try_into().ok()?)).ok()?;
    let (size, count) = (usize::from(half(54)?), usize::from(half(56)?));
    let kinds =
        (0..count).map(|index| bytes(table.checked_add(index * size)?, 4)).collect::<Option<Vec<_>>>()?;
    Some(kinds.iter().all(|kind| **kind != INTERP.to_le_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// The head of a program with one program header of this kind.
    fn program(kind: u32) -> Vec<u8> {
        let mut elf = vec![0; 64 + 56];
        elf[..5].copy_from_slice(b"\x7fELF\x02");
        elf[18] = 62;
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64..68].copy_from_slice(&kind.to_le_bytes());
        elf
    }

    #[test]
    fn static_busybox_is_found_behind_a_dynamic_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        fs::write(file("busybox"), program(3)).unwrap();
        assert_eq!(is_static(&file("busybox")), Some(false));
        fs::write(file("busybox.static"), program(1)).unwrap();
        let path = folder.path().display().to_string();
        assert_eq!(find(&path).unwrap(), file("busybox.static"));
    }

    #[test]
    fn what_is_no_program_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("busybox");
        let mut long = program(1);
        long[56..58].copy_from_slice(&[0xff; 2]);
        let mut far = program(1);
        far[32..40].copy_from_slice(&[0xff; 8]);
        for bytes in [&b"#!/bin/sh\n"[..], b"", &program(1)[..20], &long, &far] {
            fs::write(&file, bytes).unwrap();
            assert_eq!(is_static(&file), None);
        }
        assert_eq!(is_static(folder.path()), None);
    }
}
