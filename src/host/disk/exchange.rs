//! Images that are exchanged for others together, as a revert does with the disks of a machine. While that lasts each has a mark beside it,
//! so that a machine does not start on disks of which some are the old and some the new ones.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::error::DiskError;
use crate::host::new_file::NewFile;
use crate::host::open_now::open_now;
use crate::spec::DiskSpec;

/// Most bytes of a mark that are read.
const MOST: u64 = 4096;

/// The mark of the image at `path`, whatever link leads there.
fn place(path: &Path) -> io::Result<PathBuf> {
    let path = fs::canonicalize(path)?;
    let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default();
    let mut mark = OsString::from(".");
    // Room for the rest in a name of 255 bytes.
    mark.push(OsStr::from_bytes(name.get(..200).unwrap_or(name)));
    mark.push(".exchange");
    Ok(path.with_file_name(mark))
}

/// A mark that is about to be set, or is.
#[derive(Debug)]
pub(crate) struct ExchangeMark {
    new: NewFile,
    path: PathBuf,
}

impl ExchangeMark {
    /// A mark for the image at `path`, which gets a disk of the saved machine in `folder`. It is not set yet, and has its room.
    pub(crate) fn prepare(path: &Path, folder: &Path) -> io::Result<Self> {
        let path = place(path)?;
        let new = NewFile::create(&path)?;
        new.file().write_all(folder.as_os_str().as_bytes())?;
        Ok(ExchangeMark { new, path })
    }

    /// Sets it, on the medium; gives its path, to be removed when all images are exchanged. Nobody writes to the image any more.
    pub(crate) fn set(self) -> io::Result<PathBuf> {
        // Again, so that its time of change is that of now: what is written to the image from here on makes that younger.
        let mut text = Vec::new();
        (&mut self.new.file()).seek(SeekFrom::Start(0))?;
        (&mut self.new.file()).take(MOST).read_to_end(&mut text)?;
        self.new.file().write_all_at(&text, 0)?;
        self.new.keep(true)?;
        Ok(self.path)
    }
}

/// The folder of the saved machine whose disk the image at `path` was about to become, or has become, if the exchange was cut off and
/// nobody has written to the image since.
pub(crate) fn cut_exchange(path: &Path) -> Option<PathBuf> {
    let mark = open_mark(&place(path).ok()?)?;
    let (image, set) = (fs::metadata(path).ok()?.modified().ok()?, mark.metadata().ok()?.modified().ok()?);
    (image <= set).then(|| folder(mark))
}

fn open_mark(path: &Path) -> Option<File> {
    open_now(path, File::options().read(true), libc::O_NOFOLLOW).ok()
}

/// What a mark says.
fn folder(mark: File) -> PathBuf {
    let mut folder = Vec::new();
    let _ = mark.take(MOST).read_to_end(&mut folder);
    PathBuf::from(OsStr::from_bytes(&folder))
}

/// Refuses a disk that is to be written to and has a mark.
pub(super) fn check(spec: &DiskSpec) -> Result<(), DiskError> {
    if spec.read_only || spec.snapshot {
        return Ok(());
    }
    let Ok(mark) = place(spec.image()) else { return Ok(()) };
    let Some(file) = open_mark(&mark) else { return Ok(()) };
    let folder = folder(file);
    Err(DiskError::HalfExchanged { path: spec.image().into(), mark, folder })
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
        let mark = ExchangeMark::prepare(&link, Path::new("/first")).unwrap();
        OpenDisk::open(&DiskSpec::new(&image)).unwrap();
        let mark = mark.set().unwrap();
        for path in [&image, &link] {
            let error = OpenDisk::open(&DiskSpec::new(path)).unwrap_err().to_string();
            assert!(
                error.contains("restore --put-back /first") && error.contains(".a.raw.exchange"),
                "{error}"
            );
            OpenDisk::open(&DiskSpec::new(path).read_only()).unwrap();
        }
        fs::remove_file(mark).unwrap();
        OpenDisk::open(&DiskSpec::new(&image)).unwrap();
    }

    #[test]
    fn cut_exchange_is_known_until_somebody_writes_to_the_image() {
        let root = tempfile::tempdir().unwrap();
        let image = root.path().join("a.raw");
        fs::write(&image, [0; 512]).unwrap();
        let mark = ExchangeMark::prepare(&image, Path::new("/first")).unwrap();
        // As the guest does until its machine goes back.
        let written = std::time::SystemTime::now();
        while fs::metadata(&image).unwrap().modified().unwrap() < written {
            fs::write(&image, [1; 512]).unwrap();
        }
        assert_eq!(cut_exchange(&image), None);
        mark.set().unwrap();
        assert_eq!(cut_exchange(&image), Some("/first".into()));
        File::options()
            .write(true)
            .open(&image)
            .unwrap()
            .set_modified(written + std::time::Duration::from_secs(60))
            .unwrap();
        assert_eq!(cut_exchange(&image), None);
    }
}
