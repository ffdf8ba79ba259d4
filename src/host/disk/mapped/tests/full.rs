//! A file system without room.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::super::super::tests::lacks;
use super::*;

/// On a file system that is full, as many writes fail as must, with its error, and the image stays whole.
#[test]
fn a_full_file_system_is_an_error_and_breaks_nothing() {
    let Some(small) = Small::mount(6) else {
        return lacks("mount", "this user can mount nothing: run it as root");
    };
    for kind in EngineKind::ALL {
        let folder = Arc::new(tempfile::tempdir_in(&small.0).unwrap());
        let path = folder.path().join("disk.qcow2");
        make(&path, 16 * MIB, &[]);
        let Some(mut rig) = Rig::new(folder, &path, kind, Access::default(), vec![0; 16 << 20]) else {
            continue;
        };
        rig.write(0, &pattern(1, MIB)).unwrap();
        rig.run(Operation::Flush, 0, 0).unwrap();
        let mut failed = 0;
        for at in 1..16 {
            for part in 0..8 {
                let offset = at * MIB + part * 128 * 1024;
                if let Err(error) = rig.write(offset, &pattern(at * 8 + part, 64 * 1024)) {
                    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
                    failed += 1;
                }
            }
        }
        assert!(failed > 0, "the file system has room for everything");
        let _ = rig.run(Operation::Flush, 0, 0);
        // Room is made, and everything goes on.
        rig.run(Operation::Discard, 0, MIB).unwrap();
        rig.model[..MIB as usize].fill(0);
        rig.run(Operation::Flush, 0, 0).unwrap();
        rig.write(15 * MIB, &pattern(3, 128 * 1024)).unwrap();
        rig.run(Operation::Flush, 0, 0).unwrap();
        (rig.engine, rig.disk) = (None, None);
        assert_eq!(qemu_img(&["check", "-q", "-f", "qcow2", path.to_str().unwrap()]), 0);
        rig.open();
        // A write that failed may have been done in part.
        let (first, last) = (rig.read(0, MIB), rig.read(15 * MIB, 128 * 1024));
        assert!(first.iter().all(|byte| *byte == 0) && last == pattern(3, 128 * 1024));
    }
}

/// A small tmpfs, for as long as this lives.
struct Small(PathBuf);

impl Small {
    fn mount(mib: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap().keep();
        let options = format!("size={mib}m");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "minivmm"]).arg(&folder).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Small(folder));
        }
        fs::remove_dir(folder).unwrap();
        None
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).output();
        let _ = fs::remove_dir(&self.0);
    }
}
