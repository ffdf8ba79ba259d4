//! Images that are exchanged for others together, as a revert does with the disks of a machine. While that lasts each has a mark beside it,
//! so that a machine does not start on disks of which some are the old and some the new ones.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::error::DiskError;
use crate::host::lock::user;
use crate::host::new_file::{NewFile, folder};
use crate::host::open_now::open_now;
use crate::spec::DiskSpec;

/// Most bytes of a mark that are read: a path, and less than 200 bytes.
const MOST: u64 = 8192;

/// The mark of the image at `path`, whatever link leads there, or that is to be there.
fn place(path: &Path) -> io::Result<PathBuf> {
    let (path, _) = image_place(path)?;
    let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default();
    let mut mark = OsString::from(".");
    // Room for the rest in a name of 255 bytes.
    mark.push(OsStr::from_bytes(name.get(..200).unwrap_or(name)));
    mark.push(".exchange");
    Ok(path.with_file_name(mark))
}

/// The path of an image, whatever link leads there, and whether it is there: one that is missing would be in its folder.
pub(crate) fn image_place(path: &Path) -> io::Result<(PathBuf, bool)> {
    match (fs::canonicalize(path), path.file_name()) {
        (Err(error), Some(name))
            if error.kind() == ErrorKind::NotFound && fs::symlink_metadata(path).is_err() =>
        {
            Ok((fs::canonicalize(folder(path))?.join(name), false))
        }
        (found, _) => Ok((found?, true)),
    }
}

/// Which file an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity([i64; 4]);

impl Identity {
    /// Of an image that is not there; no file has this inode.
    const MISSING: Self = Identity([0; 4]);

    /// That of the image at `path`.
    fn at(path: &Path) -> io::Result<Self> {
        match fs::metadata(path) {
            Ok(image) => Ok(Self::of(&image)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::MISSING),
            Err(error) => Err(error),
        }
    }

    /// Which file it is, as long as nobody writes to it. Not the device's number, which some file systems have anew with each mount.
    fn of(file: &Metadata) -> Self {
        let bits = |number: u64| i64::from_ne_bytes(number.to_ne_bytes());
        Identity([bits(file.ino()), bits(file.size()), file.mtime(), file.mtime_nsec()])
    }

    fn parse(line: &str) -> Option<Self> {
        let numbers: Vec<_> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        numbers.try_into().ok().map(Identity)
    }
}

/// What a mark says: the folder of the saved machine, a zero, and a line for each of the two files.
fn text(folder: &Path, files: [Identity; 2]) -> Vec<u8> {
    // Of one length whatever the numbers are, so that there is room for others.
    let line = |Identity([a, b, c, d])| format!("{a:>20} {b:>20} {c:>20} {d:>20}\n");
    let lines = files.map(line).concat();
    [folder.as_os_str().as_bytes(), b"\0", lines.as_bytes()].concat()
}

/// A mark that is about to be set, or is.
#[derive(Debug)]
pub(crate) struct ExchangeMark {
    mark: NewFile,
    image: PathBuf,
    folder: PathBuf,
    new: Identity,
}

impl ExchangeMark {
    /// A mark for the image at `path`, which becomes the file of `new`, or is gone then, in an exchange for the disks of the saved machine in
    /// `folder`. It is not set yet, and has its room.
    pub(crate) fn prepare(path: &Path, new: Option<&Metadata>, folder: &Path) -> io::Result<Self> {
        let (image, new) = (path.into(), new.map_or(Identity::MISSING, Identity::of));
        let mark = NewFile::create(&place(path)?)?;
        mark.file().write_all(&text(folder, [new, new]))?;
        Ok(ExchangeMark { mark, image, folder: folder.into(), new })
    }

    /// Sets it, on the medium, until [`remove_mark`]. Nobody writes to the image any more.
    pub(crate) fn set(self) -> io::Result<()> {
        let old = Identity::at(&self.image).unwrap_or(self.new);
        self.mark.file().write_all_at(&text(&self.folder, [old, self.new]), 0)?;
        self.mark.keep(true)
    }
}

/// An exchange that was cut off, as the mark of one image says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CutExchange {
    /// Of the saved machine whose disk the image was about to become, or has become.
    pub(crate) folder: PathBuf,
    /// The image is the one of before.
    pub(crate) is_old: bool,
    /// It is the one of the saved machine.
    pub(crate) is_new: bool,
}

/// What the mark of the image at `path` says, if nobody has written to the image, or put another file there, since. A mark of another user
/// says nothing.
pub(crate) fn cut_exchange(path: &Path) -> Option<CutExchange> {
    let mark = open_mark(&place(path).ok()?)?;
    if !is_own(&mark) {
        return None;
    }
    let (folder, files) = read_mark(mark);
    let image = Identity::at(path).ok()?;
    let is = |index| files.get(index) == Some(&image);
    let (is_old, is_new) = (is(0), is(1));
    (is_old || is_new).then_some(CutExchange { folder, is_old, is_new })
}

/// Whether the image at `path` has a mark, whatever that says.
pub(crate) fn has_mark(path: &Path) -> bool {
    place(path).is_ok_and(|mark| fs::symlink_metadata(mark).is_ok())
}

/// Removes the mark of the image at `path`, if it has one.
pub(crate) fn remove_mark(path: &Path) -> io::Result<()> {
    match fs::remove_file(place(path)?) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn open_mark(path: &Path) -> Option<File> {
    open_now(path, File::options().read(true), libc::O_NOFOLLOW).ok()
}

/// Whether it is this user's: in a folder as /tmp anybody makes files beside those of others.
fn is_own(mark: &File) -> bool {
    mark.metadata().is_ok_and(|mark| mark.is_file() && mark.uid() == user())
}

/// What a mark says.
fn read_mark(mark: File) -> (PathBuf, Vec<Identity>) {
    let mut text = Vec::new();
    let _ = mark.take(MOST).read_to_end(&mut text);
    let mut parts = text.splitn(2, |byte| *byte == 0);
    let folder = parts.next().unwrap_or_default();
    let lines = String::from_utf8_lossy(parts.next().unwrap_or_default());
    (PathBuf::from(OsStr::from_bytes(folder)), lines.lines().filter_map(Identity::parse).collect())
}

/// Refuses a disk that is to be written to and has a mark.
pub(super) fn check(spec: &DiskSpec) -> Result<(), DiskError> {
    if spec.read_only || spec.snapshot {
        return Ok(());
    }
    let Ok(mark) = place(spec.image()) else { return Ok(()) };
    let Some(file) = open_mark(&mark) else { return Ok(()) };
    let path = spec.image().into();
    if !is_own(&file) {
        return Err(DiskError::ForeignMark { path, mark });
    }
    let (folder, _) = read_mark(file);
    Err(DiskError::HalfExchanged { path, mark, folder })
}

#[cfg(test)]
mod tests {
    use super::super::OpenDisk;
    use super::*;

    #[test]
    fn an_image_with_a_mark_is_not_written_to() {
        let root = tempfile::tempdir().unwrap();
        let [image, link] = ["a.raw", "link.raw"].map(|name| root.path().join(name));
        fs::write(&image, [0; 512]).unwrap();
        std::os::unix::fs::symlink(&image, &link).unwrap();
        let new = fs::metadata(&image).unwrap();
        let mark = ExchangeMark::prepare(&link, Some(&new), Path::new("/first")).unwrap();
        OpenDisk::open(&DiskSpec::new(&image)).unwrap();
        mark.set().unwrap();
        for path in [&image, &link] {
            let error = OpenDisk::open(&DiskSpec::new(path)).unwrap_err().to_string();
            assert!(
                error.contains("restore --put-back /first") && error.contains(".a.raw.exchange"),
                "{error}"
            );
            OpenDisk::open(&DiskSpec::new(path).read_only()).unwrap();
        }
        remove_mark(&link).unwrap();
        remove_mark(&image).unwrap();
        OpenDisk::open(&DiskSpec::new(&image)).unwrap();
    }

    /// An image, and what it is to become.
    fn marked(root: &Path) -> (PathBuf, PathBuf) {
        let [image, new] = ["a.raw", "new"].map(|name| root.join(name));
        fs::write(&image, [0; 512]).unwrap();
        fs::write(&new, [1; 512]).unwrap();
        let becomes = fs::metadata(&new).unwrap();
        let mark = ExchangeMark::prepare(&image, Some(&becomes), Path::new("/first")).unwrap();
        // As the guest does until its machine goes back.
        set_time(&image, 60);
        assert_eq!(cut_exchange(&image), None);
        mark.set().unwrap();
        (image, new)
    }

    fn set_time(image: &Path, seconds: u64) {
        let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        File::options().write(true).open(image).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn cut_exchange_is_known_until_somebody_writes_to_the_image() {
        let root = tempfile::tempdir().unwrap();
        let (image, new) = marked(root.path());
        let cut = |is_old| Some(CutExchange { folder: "/first".into(), is_old, is_new: !is_old });
        let first = cut(true);
        assert_eq!(cut_exchange(&image), first);
        set_time(&image, 61);
        assert_eq!(cut_exchange(&image), None);
        set_time(&image, 60);
        assert_eq!(cut_exchange(&image), first);
        // A backup, with the time of then.
        let backup = root.path().join("backup");
        fs::copy(&image, &backup).unwrap();
        set_time(&backup, 60);
        fs::rename(&image, root.path().join("old")).unwrap();
        fs::rename(&backup, &image).unwrap();
        assert_eq!(cut_exchange(&image), None);
        // It has become what it was to become.
        fs::rename(new, &image).unwrap();
        assert_eq!(cut_exchange(&image), cut(false));
        set_time(&image, 60);
        assert_eq!(cut_exchange(&image), None);
        fs::remove_file(&image).unwrap();
        assert_eq!(cut_exchange(&image), None);
        // There was none.
        let new = fs::metadata(root.path().join("old")).unwrap();
        ExchangeMark::prepare(&image, Some(&new), Path::new("/first")).unwrap().set().unwrap();
        assert_eq!(cut_exchange(&image), cut(true));
        fs::rename(root.path().join("old"), &image).unwrap();
        assert_eq!(cut_exchange(&image), cut(false));
    }

    #[test]
    fn mark_of_another_user_is_not_believed_and_its_folder_not_recommended() {
        let root = tempfile::tempdir().unwrap();
        let (image, _) = marked(root.path());
        // Only root can make one.
        if user() != 0 {
            return;
        }
        std::os::unix::fs::chown(place(&image).unwrap(), Some(65534), None).unwrap();
        assert_eq!(cut_exchange(&image), None);
        let error = OpenDisk::open(&DiskSpec::new(&image)).unwrap_err().to_string();
        assert!(error.contains("another user") && error.contains(".a.raw.exchange"), "{error}");
        assert!(!error.contains("/first"), "{error}");
    }
}
