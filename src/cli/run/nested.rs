//! Folders of the host that the guest mounts within others of them. The place for one is in the folder around it, where the host can see
//! before a boot that it is missing and cannot be made.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use diskimage::shell_word;
use rustix::fs::{Access, access};

use super::args::RunArgs;
use super::error::RunError;
use crate::host::closed::ClosedFolder;
use crate::shown::path as shown;
use crate::spec::Spec;

/// Folders of `--root` whose content is the guest's own, or may be.
const OWN: [&str; 6] = ["dev", "proc", "sys", "tmp", "run", "root"];

/// A folder of the host that the guest has at this path.
#[derive(Debug)]
struct Around<'a> {
    guest: &'a Path,
    host: &'a Path,
    /// The guest makes what is missing.
    can_grow: bool,
    /// It does so in the host's folder, not in a layer over it.
    grows_here: bool,
}

/// Why there is no place for a folder in another one.
#[derive(Debug, PartialEq, Eq)]
enum NoPlace {
    /// It is missing, and the folder around it is read-only.
    ReadOnly { place: PathBuf },
    /// It is missing, and this user cannot make it in `parent`, which is there.
    Closed { place: PathBuf, parent: PathBuf },
    /// This is there, and is no folder.
    NoFolder { file: PathBuf },
}

/// Refuses a share for which there is surely no place.
pub(super) fn check(args: &RunArgs, spec: &Spec) -> Result<(), RunError> {
    let mut around: Vec<_> = spec
        .share
        .iter()
        .filter_map(|share| {
            let guest = Path::new(share.mount.as_ref()?.as_str());
            let can_grow = !share.read_only;
            Some(Around { guest, host: &share.path, can_grow, grows_here: can_grow })
        })
        .collect();
    if let Some(root) = &args.root {
        around.push(Around { guest: Path::new("/"), host: root, can_grow: true, grows_here: args.root_rw });
    }
    for share in &spec.share {
        let Some(folder) = &share.mount else { continue };
        let guest = Path::new(folder.as_str());
        let within = around.iter().filter(|around| around.guest != guest && guest.starts_with(around.guest));
        // What is mounted there is the innermost.
        let Some(around) = within.max_by_key(|around| around.guest.components().count()) else { continue };
        let may = |folder: &Path| access(folder, Access::WRITE_OK | Access::EXEC_OK).is_ok();
        if let Some(why) = around.no_place(guest, &may) {
            let share = share.origin.name(&share.path);
            let why = why.words(around.host);
            return Err(RunError::NoPlace { share, folder: folder.clone(), why });
        }
    }
    Ok(())
}

impl Around<'_> {
    /// Why there is none for `guest`. None if there is one, or if only the guest can know: where its links lead. `may` says whether this user can
    /// make something in a folder.
    fn no_place(&self, guest: &Path, may: &dyn Fn(&Path) -> bool) -> Option<NoPlace> {
        let inside = guest.strip_prefix(self.guest).ok()?;
        let first = inside.components().next()?.as_os_str();
        if self.guest == Path::new("/") && OWN.iter().any(|own| first == *own) {
            return None;
        }
        let mut parent = self.host.to_path_buf();
        for name in inside.components() {
            let place = parent.join(name);
            match fs::symlink_metadata(&place).map(|found| found.file_type()) {
                Ok(kind) if kind.is_dir() => parent = place,
                Ok(kind) if kind.is_symlink() => return None,
                Ok(_) => return Some(NoPlace::NoFolder { file: place }),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let place = self.host.join(inside);
                    return match (self.can_grow, self.grows_here) {
                        (false, _) => Some(NoPlace::ReadOnly { place }),
                        (true, true) if !may(&parent) => Some(NoPlace::Closed { place, parent }),
                        (true, _) => None,
                    };
                }
                Err(_) => return None,
            }
        }
        None
    }
}

impl NoPlace {
    /// What is wrong with the folder `around`, as the end of a sentence, and what helps.
    fn words(&self, around: &Path) -> String {
        let missing = |place: &Path| {
            let name = place.strip_prefix(around).unwrap_or(place);
            (shown(name), shell_word(place))
        };
        let shown_around = shown(around);
        match self {
            NoPlace::ReadOnly { place } => {
                let (name, word) = missing(place);
                let option = if place.parent() == Some(around) { "" } else { "-p " };
                format!(
                    "is inside the read-only {shown_around}, which has no folder {name}; make it with `mkdir {option}{word}`"
                )
            }
            NoPlace::Closed { place, parent } => {
                let (name, _) = missing(place);
                let why = ClosedFolder::find(parent, Access::WRITE_OK | Access::EXEC_OK);
                let why = why.map_or_else(
                    || format!("{} cannot be written to", shown(parent)),
                    |closed| closed.to_string(),
                );
                format!(
                    "is inside {shown_around}, which has no folder {name}, and none can be made there: {why}"
                )
            }
            NoPlace::NoFolder { file } => {
                format!(
                    "is inside {shown_around}, where {} is no folder; name another path of the guest",
                    shown(file)
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn around<'a>(guest: &'a str, host: &'a Path, can_grow: bool, grows_here: bool) -> Around<'a> {
        Around { guest: Path::new(guest), host, can_grow, grows_here }
    }

    #[test]
    fn place_is_there_or_can_be_made() {
        let home = tempfile::tempdir().unwrap();
        let host = home.path();
        fs::create_dir_all(host.join("etc/sub")).unwrap();
        fs::create_dir(host.join("tmp")).unwrap();
        for file in ["etc/file", "tmp/file"] {
            fs::write(host.join(file), "").unwrap();
        }
        symlink("none", host.join("link")).unwrap();
        let no_place = |around: Around<'_>, guest: &str| around.no_place(Path::new(guest), &|_| true);
        let file = || Some(NoPlace::NoFolder { file: host.join("etc/file") });
        let missing = |name: &str| Some(NoPlace::ReadOnly { place: host.join(name) });
        let read = || around("/w", host, false, false);
        for (guest, why) in [
            ("/w/etc", None),
            ("/w/etc/sub", None),
            ("/w/link", None),
            ("/w/link/x", None),
            ("/w/tmp/x", missing("tmp/x")),
            ("/w/etc/new", missing("etc/new")),
            ("/w/etc/file", file()),
            ("/w/etc/file/x", file()),
        ] {
            assert_eq!(no_place(read(), guest), why, "{guest}");
        }
        for grows_here in [false, true] {
            let root = || around("/", host, true, grows_here);
            assert_eq!(no_place(root(), "/etc/file"), file());
            for guest in ["/etc/new", "/new/sub", "/link", "/proc/file", "/tmp/file"] {
                assert_eq!(no_place(root(), guest), None, "{guest}");
            }
        }
        let closed = |grows_here, guest: &str| {
            around("/", host, true, grows_here)
                .no_place(Path::new(guest), &|folder| folder != host.join("etc"))
        };
        let why = NoPlace::Closed { place: host.join("etc/new/sub"), parent: host.join("etc") };
        assert!(why.words(host).contains("has no folder etc/new/sub, and none can be made there: "));
        assert_eq!(closed(true, "/etc/new/sub"), Some(why));
        assert_eq!(
            (closed(true, "/new"), closed(true, "/etc/sub"), closed(false, "/etc/new")),
            (None, None, None)
        );
    }
}
