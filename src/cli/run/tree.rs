//! A directory of the host as the files of a guest.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use boot::cpio::{Archive, Content, Inode, Kind, Member};

use super::error::RunError;
use crate::host::identity::identity;
use crate::host::lock::{group, user};
use crate::host::open_now::open_now;
use crate::spec::MemSize;

/// Packs a directory, one file system only: a mount point in it, such as /proc, becomes an empty folder, and
/// sockets are left out. Files of this process's user belong to root in the guest, so that an ordinary user
/// can make a guest's files. Returns the files that this process may not read, which are left out.
pub(super) fn pack(archive: &mut Archive, root: &Path, mem: MemSize) -> Result<Vec<PathBuf>, RunError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| RunError::Read { path, source }
    };
    let top = fs::metadata(root).map_err(failed(root))?;
    let mut packer = Packer { archive, linked: HashMap::new(), unreadable: Vec::new() };
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let path_here = root.join(&folder);
        let entries = match fs::read_dir(&path_here) {
            // For the directory itself it is an error.
            Err(error) if is_denied(&error) && !folder.as_os_str().is_empty() => {
                packer.unreadable.push(folder);
                continue;
            }
            entries => entries.map_err(failed(&path_here))?,
        };
        let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
        let mut names = names.collect::<Result<Vec<_>, _>>().map_err(failed(&path_here))?;
        // Sorted, so that the archive is reproducible.
        names.sort_unstable();
        for name in names {
            let inside = folder.join(name);
            let path = root.join(&inside);
            let meta = match fs::symlink_metadata(&path) {
                Err(error) if is_denied(&error) => {
                    packer.unreadable.push(inside);
                    continue;
                }
                meta => meta.map_err(failed(&path))?,
            };
            packer.add(&inside, &path, &meta)?;
            if meta.is_dir() && meta.dev() == top.dev() {
                folders.push(inside);
            }
        }
        if packer.archive.length() > mem.bytes() {
            return Err(RunError::TooLarge { path: root.to_path_buf(), mem });
        }
    }
    Ok(packer.unreadable)
}

fn is_denied(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

struct Packer<'a> {
    archive: &'a mut Archive,
    /// Hard links, by device and inode.
    linked: HashMap<(u64, u64), Inode>,
    /// Files that this process may not read.
    unreadable: Vec<PathBuf>,
}

impl Packer<'_> {
    fn add(&mut self, name: &Path, path: &Path, meta: &Metadata) -> Result<(), RunError> {
        let failed = |source| RunError::Read { path: path.to_path_buf(), source };
        let identity = identity(meta);
        let kind = meta.file_type();
        if kind.is_file() {
            match open_now(path, File::options().read(true), libc::O_NOFOLLOW) {
                Err(error) if is_denied(&error) => {
                    self.unreadable.push(name.to_path_buf());
                    return Ok(());
                }
                opened => drop(opened.map_err(failed)?),
            }
        }
        let hard_linked = kind.is_file() && meta.nlink() > 1;
        let kind = if let Some(inode) = self.linked.get(&identity).filter(|_| hard_linked) {
            Kind::Link(*inode)
        } else if kind.is_file() {
            Kind::File(Content::Host { path: path.to_path_buf(), size: meta.len(), identity })
        } else if kind.is_dir() {
            Kind::Directory
        } else if kind.is_symlink() {
            Kind::Symlink(fs::read_link(path).map_err(failed)?.into_os_string().into_vec())
        } else if kind.is_char_device() {
            Kind::CharacterDevice(major(meta.rdev()), minor(meta.rdev()))
        } else if kind.is_block_device() {
            Kind::BlockDevice(major(meta.rdev()), minor(meta.rdev()))
        } else if kind.is_fifo() {
            Kind::Fifo
        } else {
            return Ok(());
        };
        let map_id = |number: u32, map_id: u32| if number == map_id { 0 } else { number };
        let member = Member {
            kind,
            mode: meta.mode(),
            uid: map_id(meta.uid(), user()),
            gid: map_id(meta.gid(), group()),
            links: if hard_linked { 2 } else { 1 },
            mtime: u32::try_from(meta.mtime().max(1)).unwrap_or(u32::MAX),
        };
        let inode = self.archive.add(name.as_os_str().as_bytes(), member)?;
        if hard_linked {
            self.linked.entry(identity).or_insert(inode);
        }
        Ok(())
    }
}

/// The numbers of a device, encoded as in makedev(3).
#[allow(clippy::cast_possible_truncation, reason = "what is cut off is the other number")]
fn major(device: u64) -> u32 {
    ((device >> 32) as u32 & 0xffff_f000) | ((device >> 8) as u32 & 0xfff)
}

#[allow(clippy::cast_possible_truncation, reason = "what is cut off is the other number")]
fn minor(device: u64) -> u32 {
    ((device >> 12) as u32 & 0xffff_ff00) | (device as u32 & 0xff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    fn packed(root: &Path, mem: &str) -> Result<Vec<u8>, RunError> {
        let mut archive = Archive::new();
        assert_eq!(pack(&mut archive, root, mem.parse().unwrap())?, Vec::<PathBuf>::new());
        Ok(archive.finish()?.to_vec().unwrap())
    }

    fn has(archive: &[u8], text: &str) -> bool {
        archive.windows(text.len()).any(|window| window == text.as_bytes())
    }

    #[test]
    fn directory_is_packed_as_it_is_and_the_users_files_are_roots() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::write(root.join("usr/bin/tool"), "the tool itself").unwrap();
        fs::set_permissions(root.join("usr/bin/tool"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::hard_link(root.join("usr/bin/tool"), root.join("usr/bin/other")).unwrap();
        symlink("usr/bin", root.join("bin")).unwrap();
        let _socket = UnixListener::bind(root.join("socket")).unwrap();
        let archive = packed(root, "16").unwrap();
        // Mode, owner, group, number of links, time.
        let time = format!("{:08x}", fs::metadata(root.join("usr/bin/tool")).unwrap().mtime());
        assert!(
            has(&archive, &format!("000089e9000000000000000000000002{time}")),
            "a file of root's with two names"
        );
        let copies = archive.windows(15).filter(|window| window == b"the tool itself").count();
        assert_eq!(copies, 1, "a second name costs nothing");
        assert!(has(&archive, "bin\0") && has(&archive, "usr/bin") && !has(&archive, "socket"));
        assert_eq!(archive, packed(root, "16").unwrap());
    }

    #[test]
    fn directory_that_is_none_or_too_large_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let error = packed(&folder.path().join("none"), "16").unwrap_err().to_string();
        assert!(error.contains("none: No such file or directory"), "{error}");
        File::create(folder.path().join("big")).unwrap().set_len(17 << 20).unwrap();
        let error = packed(folder.path(), "16").unwrap_err().to_string();
        assert!(
            error.contains("more than the guest's memory of 16 MiB") && error.contains("--mem"),
            "{error}"
        );
        assert!(packed(folder.path(), "64").is_ok());
        let error = packed(&folder.path().join("big"), "16").unwrap_err().to_string();
        assert!(error.contains("big/: Not a directory"), "{error}");
    }

    #[test]
    fn device_numbers_are_those_of_makedev() {
        let device = 0x0000_1234_5678_9abc_u64;
        assert_eq!((major(device), minor(device)), (0x189a, 0x2345_67bc));
    }
}
