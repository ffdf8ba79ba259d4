//! What a warm machine depends on: if any of it is another one, the machine is made anew.

use std::fs::{self, Metadata};
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::spec::Spec;

/// What tells that a file was replaced or changed, without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cli) struct FileMark([i64; 7]);

impl FileMark {
    /// Of the file that `path` leads to; `None` if there is none.
    pub(in crate::cli) fn at(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(|file| Self::of(&file))
    }

    /// The same of a file that has not changed since `time`, when somebody began to read it: otherwise nobody knows what was read.
    pub(in crate::cli) fn unchanged_since(path: &Path, time: SystemTime) -> Option<Self> {
        let file = fs::metadata(path).ok()?;
        // The kernel's time of a file is that of its last tick.
        let last = i64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()?.checked_sub(1)?;
        (file.ctime() < last).then(|| Self::of(&file))
    }

    fn of(file: &Metadata) -> Self {
        let bits = |number: u64| i64::from_ne_bytes(number.to_ne_bytes());
        FileMark([
            bits(file.dev()),
            bits(file.ino()),
            bits(file.size()),
            file.mtime(),
            file.mtime_nsec(),
            // Of the inode, which no program sets back: also the owner, the mode and the links.
            file.ctime(),
            file.ctime_nsec(),
        ])
    }
}

/// A digest of what the machine is made from.
#[derive(Debug)]
pub(in crate::cli) struct Key(DefaultHasher);

impl Key {
    /// Begins with this program and the machine, which has absolute paths and no name.
    pub(in crate::cli) fn new(spec: &Spec) -> Self {
        // Two different machines have one digest by a chance of 2^-64. Another version of the hash comes with another program only.
        let mut key = Key(DefaultHasher::new());
        key.bytes(env!("CARGO_PKG_VERSION").as_bytes());
        key.file(Path::new("/proc/self/exe"));
        key.bytes(format!("{spec:?}").as_bytes());
        let disks =
            spec.disk.iter().flat_map(|disk| disk.backing.iter().chain([&disk.path]).chain(&disk.overlay));
        spec.kernel.iter().chain(disks).for_each(|path| key.file(path));
        key
    }

    /// Adds a path, and the file there.
    pub(in crate::cli) fn file(&mut self, path: &Path) {
        self.bytes(path.as_os_str().as_bytes());
        self.mark(FileMark::at(path));
    }

    /// Adds a path, and all that is in the folder there, on its file system.
    pub(in crate::cli) fn folder(&mut self, path: &Path) {
        let top = fs::metadata(path).ok();
        let device = top.as_ref().map(MetadataExt::dev);
        self.bytes(path.as_os_str().as_bytes());
        self.mark(top.as_ref().map(FileMark::of));
        let mut folders = vec![path.to_path_buf()];
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
            let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
            paths.sort_unstable();
            for path in paths {
                let found = fs::symlink_metadata(&path).ok();
                self.bytes(path.as_os_str().as_bytes());
                self.mark(found.as_ref().map(FileMark::of));
                if found.is_some_and(|found| found.is_dir() && Some(found.dev()) == device) {
                    folders.push(path);
                }
            }
        }
    }

    /// Adds bytes, of which no other list has the same ones.
    pub(in crate::cli) fn bytes(&mut self, bytes: &[u8]) {
        self.0.write_usize(bytes.len());
        self.0.write(bytes);
    }

    fn mark(&mut self, mark: Option<FileMark>) {
        self.0.write_u8(mark.is_some().into());
        mark.iter().flat_map(|mark| mark.0).for_each(|number| self.0.write_i64(number));
    }

    pub(in crate::cli) fn finish(&self) -> String {
        format!("{:016x}", self.0.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::time::Duration;

    #[test]
    fn mark_of_a_file_that_may_have_changed_while_it_was_read_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.ko");
        fs::write(&file, "module").unwrap();
        let later = SystemTime::now() + Duration::from_secs(5);
        assert_eq!(FileMark::unchanged_since(&file, later), FileMark::at(&file));
        assert!(FileMark::at(&file).is_some());
        for begun in [SystemTime::now() - Duration::from_secs(60), SystemTime::now(), UNIX_EPOCH] {
            assert_eq!(FileMark::unchanged_since(&file, begun), None);
        }
        assert_eq!(FileMark::unchanged_since(&folder.path().join("none"), later), None);
    }

    #[test]
    fn key_is_another_one_when_anything_is() {
        let folder = tempfile::tempdir().unwrap();
        let (kernel, root) = (folder.path().join("vmlinuz"), folder.path().join("root"));
        fs::write(&kernel, "kernel").unwrap();
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::write(root.join("usr/bin/tool"), "tool").unwrap();
        let spec = Spec::new(&kernel);
        let key = |spec: &Spec| {
            let mut key = Key::new(spec);
            key.folder(&root);
            key.finish()
        };
        let mut before = key(&spec);
        assert_eq!(key(&spec.clone()), before);
        assert_ne!(key(&spec.clone().with_mem("64".parse().unwrap())), before);
        let mut changed = |what: &str| {
            let now = key(&spec);
            assert!(now != before && now == key(&spec), "{what}");
            before = now;
        };
        let set_time = |path: &Path| {
            let file = File::options().write(true).open(path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        };
        set_time(&kernel);
        changed("the kernel's time");
        fs::write(folder.path().join("new"), "kernel").unwrap();
        set_time(&folder.path().join("new"));
        fs::rename(folder.path().join("new"), &kernel).unwrap();
        changed("another kernel of the same time and size");
        set_time(&root.join("usr/bin/tool"));
        changed("a file of the root");
        fs::hard_link(root.join("usr/bin/tool"), root.join("usr/bin/other")).unwrap();
        changed("one more");
        fs::remove_file(&kernel).unwrap();
        changed("no kernel");
    }
}
