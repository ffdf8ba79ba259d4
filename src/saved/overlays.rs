//! Which overlays lie on the copies of a saved folder: a list in it, which is only added to, so that a snapshot is not deleted beneath
//! them. One that was moved since is not known.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use diskimage::Format;

use super::read;
use crate::host::disk::base_of;
use crate::host::open_now::open_now;

/// The list: a path in a line, as JSON.
const OVERLAYS: &str = "overlays";
/// Most bytes of it. What does not fit is not put down.
const MOST: u64 = 1 << 20;

/// Puts down that these overlays are about to be made. A folder that cannot be written to cannot be deleted either.
pub(crate) fn note_overlays<'a>(folder: &Path, overlays: impl Iterator<Item = &'a Path>) {
    let lines = overlays.filter_map(|path| serde_json::to_string(path).ok()).map(|line| line + "\n");
    let lines: String = lines.collect();
    let mut options = File::options();
    options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let opened = if lines.is_empty() { return } else { options.open(folder.join(OVERLAYS)) };
    let Ok(mut list) = opened else { return };
    let fits = |len: u64| len.saturating_add(lines.len() as u64) <= MOST;
    if list.metadata().is_ok_and(|found| found.is_file() && fits(found.len())) {
        let _ = list.write_all(lines.as_bytes());
    }
}

/// An overlay that lies on a copy in the folder, and that copy, if there is one.
pub(crate) fn overlay_on(folder: &Path) -> Option<(PathBuf, PathBuf)> {
    let list = read(folder, OVERLAYS, MOST).ok()?;
    let folder = fs::canonicalize(folder).ok()?;
    let lines = list.split(|byte| *byte == b'\n');
    let overlays = lines.filter_map(|line| serde_json::from_slice::<PathBuf>(line).ok());
    let mut beneath = overlays.filter_map(|path| base(&path).map(|base| (path, base)));
    beneath.find(|(_, base)| base.parent() == Some(&folder))
}

/// Where what an image lies on is.
fn base(path: &Path) -> Option<PathBuf> {
    let file = open_now(path, File::options().read(true), libc::O_NOFOLLOW).ok()?;
    let base = base_of(&file, path, Format::Qcow2).ok()??;
    fs::canonicalize(path.parent()?.join(base)).ok()
}

#[cfg(test)]
mod tests {
    use diskimage::CreateOptions;

    use super::*;

    #[test]
    fn overlay_is_found_while_it_is_there_and_lies_on_the_folder() {
        let root = tempfile::tempdir().unwrap();
        let [folder, other, path] = ["saved", "other", "vda.qcow2"].map(|name| root.path().join(name));
        for folder in [&folder, &other] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("vda.raw"), [0; 512]).unwrap();
        }
        let lie_on = |base: &Path| {
            let file =
                File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
            let options = CreateOptions::new(Format::Qcow2, 512).backing(base.to_str().unwrap(), Format::Raw);
            diskimage::create(&file, &path, &options).unwrap();
        };
        assert_eq!(overlay_on(&folder), None);
        note_overlays(&folder, [root.path().join("gone").as_path()].into_iter());
        note_overlays(&folder, [path.as_path()].into_iter());
        assert_eq!(overlay_on(&folder), None);
        lie_on(&folder.join("vda.raw"));
        let copy = fs::canonicalize(folder.join("vda.raw")).unwrap();
        assert_eq!(overlay_on(&folder), Some((path.clone(), copy)));
        lie_on(&other.join("vda.raw"));
        assert_eq!(overlay_on(&folder), None);
        // A list that somebody else made is of no use, and does no harm.
        fs::write(folder.join(OVERLAYS), b"\xff\n\"\"\n[1]\n\"/dev/zero\"\n").unwrap();
        assert_eq!(overlay_on(&folder), None);
    }
}
