//! Opens the images that a disk consists of: the one that is named, what it lies on, an overlay or a temporary file on top.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use diskimage::{CreateOptions, Format, Header, Image, ImageError, ImageOptions};
use virtio::block::SECTOR;

use super::error::DiskError;
use super::holder::is_same;
use super::open::check_head;
use crate::host::disk_image::ImageOpener;
use crate::host::lock::{Kind, try_lock};
use crate::host::new_file::NewFile;
use crate::spec::DiskSpec;

/// Where temporary files are made, unless $TMPDIR says another folder: the first of these. /tmp is often in memory.
const TEMPORARY: [&str; 2] = ["/var/tmp", "/tmp"];
/// Names that are tried for a temporary file.
const ATTEMPTS: u32 = 100;

/// All images of a disk, the one that the guest has on top, and what holds their locks.
///
/// # Errors
/// [`DiskError`], with its cure.
pub(super) fn open(spec: &DiskSpec) -> Result<(Image, ImageOpener), DiskError> {
    let mut opener = ImageOpener::default();
    open_with(spec, &mut opener, &temporary_folder()).map(|image| (image, opener))
}

/// The same; a temporary file is made in `folder`.
fn open_with(spec: &DiskSpec, opener: &mut ImageOpener, folder: &Path) -> Result<Image, DiskError> {
    let writes = !spec.read_only && !spec.snapshot;
    let base = lowest(spec, writes && spec.overlay.is_none(), opener)?;
    let image = match &spec.overlay {
        // Nothing is there yet, and nothing will be: the temporary file lies on the base.
        Some(overlay) if spec.snapshot && !exists(overlay) => base,
        Some(overlay) => on_top(overlay, spec, base, writes, opener)?,
        None => base,
    };
    if spec.snapshot { temporary(image, folder) } else { Ok(image) }
}

/// The image that the spec's path names, with what it lies on.
fn lowest(spec: &DiskSpec, write: bool, opener: &mut ImageOpener) -> Result<Image, DiskError> {
    let format = spec.format();
    let file = opener.open_disk(&spec.path, write)?;
    if format == Format::Raw {
        check_head(&file, &spec.path, spec.format)?;
    }
    let options = ImageOptions::new(format).write(write).backing(spec.backing.clone());
    let image = Image::open(&spec.path, &options, opener).map_err(DiskError::of)?;
    match format {
        _ if image.size() >= SECTOR => Ok(image),
        Format::Raw => Err(DiskError::Empty { path: spec.path.clone() }),
        _ => Err(DiskError::NoSectors { path: spec.path.clone() }),
    }
}

/// The overlay on its base. It is made if it is missing.
fn on_top(
    overlay: &Path,
    spec: &DiskSpec,
    base: Image,
    write: bool,
    opener: &mut ImageOpener,
) -> Result<Image, DiskError> {
    let made = if exists(overlay) { None } else { make(overlay, spec, base.size())? };
    let file = match made {
        Some(file) => file,
        None => {
            let file = opener.open_disk(overlay, write)?;
            check_overlay(&file, overlay, spec)?;
            file
        }
    };
    Image::on(file, overlay, write, base).map_err(DiskError::of)
}

/// Whether there is something, if only a link that leads to nothing.
fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Makes an empty overlay, locked; `None` if another process made it in the meantime.
fn make(overlay: &Path, spec: &DiskSpec, size: u64) -> Result<Option<File>, DiskError> {
    let failed = |error| DiskError::Overlay { path: overlay.into(), error };
    let new = NewFile::create(overlay).map_err(failed)?;
    let name = backing_name(overlay, &spec.path);
    let name = name.to_str().ok_or_else(|| DiskError::BaseName { base: spec.path.clone() })?;
    // A raw base may end inside of a sector.
    let size = size.next_multiple_of(SECTOR);
    let options = CreateOptions::new(Format::Qcow2, size).backing(name, spec.format());
    diskimage::create(new.file(), overlay, &options).map_err(DiskError::of)?;
    let file = new.file().try_clone().map_err(failed)?;
    // Locked before it has its name. A file system without locks has said so for the base.
    let _ = try_lock(&file, Kind::Exclusive);
    match new.keep(false) {
        Ok(()) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// What an overlay says of its base: its name if both are in one folder, so that both can be moved together.
fn backing_name(overlay: &Path, base: &Path) -> PathBuf {
    let folder = |path: &Path| fs::canonicalize(std::path::absolute(path).ok()?.parent()?).ok();
    match (folder(overlay), folder(base), base.file_name()) {
        (Some(one), Some(other), Some(name)) if one == other => name.into(),
        (_, Some(folder), Some(name)) => folder.join(name),
        _ => std::path::absolute(base).unwrap_or_else(|_| base.into()),
    }
}

/// An overlay holds only what differs from the base that it was made for.
fn check_overlay(file: &File, overlay: &Path, spec: &DiskSpec) -> Result<(), DiskError> {
    let header = match Header::read(file, overlay) {
        Err(ImageError::NotQcow2 { path }) => return Err(DiskError::NotAnOverlay { path }),
        header => header.map_err(DiskError::of)?,
    };
    let (overlay, base) = (overlay.to_path_buf(), spec.path.clone());
    let Some(backing) = header.backing else { return Err(DiskError::OnNothing { overlay, base }) };
    let below = overlay.parent().unwrap_or(Path::new("")).join(&backing.name);
    let is_base = match (fs::metadata(&below), fs::metadata(&base)) {
        (Ok(one), Ok(other)) => is_same(&one, &other),
        _ => false,
    };
    if !is_base {
        return Err(DiskError::OnAnother { overlay, base, found: backing.name });
    }
    match backing.format.as_deref() {
        Some(format) if format != spec.format().name() => {
            Err(DiskError::OtherFormat { overlay, base, said: format.into(), format: spec.format() })
        }
        _ => Ok(()),
    }
}

fn temporary_folder() -> PathBuf {
    let named = env::var_os("TMPDIR").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let mut usual = TEMPORARY.iter().map(PathBuf::from);
    named.or_else(|| usual.find(|folder| folder.is_dir())).unwrap_or_else(env::temp_dir)
}

/// An image on `below` in a file without a name.
fn temporary(below: Image, folder: &Path) -> Result<Image, DiskError> {
    let file = nameless(folder).map_err(|error| DiskError::Temporary { folder: folder.into(), error })?;
    let path = folder.join("(temporary file)");
    // Nobody else opens it, so that its header need not name what it lies on.
    let size = below.size().next_multiple_of(SECTOR);
    diskimage::create(&file, &path, &CreateOptions::new(Format::Qcow2, size)).map_err(DiskError::of)?;
    Image::on(file, &path, true, below).map_err(DiskError::of)
}

/// A file of this user without a name: it is gone with its last descriptor.
fn nameless(folder: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(libc::O_TMPFILE | libc::O_EXCL).open(folder) {
        // A file system without such files.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) => {}
        opened => return opened,
    }
    for attempt in 0..ATTEMPTS {
        let path = folder.join(format!(".minivmm-{}-{attempt}", std::process::id()));
        match options.create_new(true).open(&path) {
            Ok(file) => return fs::remove_file(path).map(|()| file),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use super::super::Access;
    use super::super::file::DiskFile;
    use super::*;

    const MIB: usize = 1 << 20;

    struct Bench(tempfile::TempDir);

    impl Bench {
        /// A folder with a raw disk of a MiB, all ones.
        fn new() -> Self {
            let bench = Bench(tempfile::tempdir().unwrap());
            fs::create_dir(bench.path("tmp")).unwrap();
            fs::write(bench.path("base.raw"), vec![1; MIB]).unwrap();
            bench
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        /// Opens a disk whose paths are in this folder.
        fn open(&self, text: &str) -> Result<Image, DiskError> {
            let mut spec: DiskSpec = text.parse().unwrap();
            spec.path = self.path(spec.path.to_str().unwrap());
            spec.overlay = spec.overlay.map(|path| self.0.path().join(path));
            spec.backing = spec.backing.iter().map(|path| self.0.path().join(path)).collect();
            open_with(&spec, &mut ImageOpener::default(), &self.path("tmp"))
        }

        #[track_caller]
        fn refusal(&self, text: &str) -> String {
            let error = self.open(text).map(|_| ()).expect_err(text).to_string();
            error.replace(self.0.path().to_str().unwrap(), "/d")
        }

        /// Opens a disk, reads a byte in each of two places, and writes to the first.
        #[track_caller]
        fn write(&self, text: &str, byte: u8) -> [u8; 2] {
            let image = self.open(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let before = bytes(&image);
            image.write_at(&[byte; 512], 4096).unwrap();
            image.flush().unwrap();
            assert_eq!(bytes(&image)[0], byte);
            before
        }

        fn names(&self, folder: &str) -> Vec<String> {
            let names = fs::read_dir(self.path(folder)).unwrap();
            let mut names: Vec<_> =
                names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    fn bytes(image: &Image) -> [u8; 2] {
        [4096, 700_000].map(|at| {
            let mut byte = [9];
            assert_eq!(image.read_at(&mut byte, at).unwrap(), 1);
            byte[0]
        })
    }

    #[test]
    fn overlay_is_made_once_and_keeps_what_was_written() {
        let bench = Bench::new();
        assert_eq!(bench.write("base.raw,overlay=a.qcow2", 7), [1, 1]);
        assert_eq!(bench.write("base.raw,overlay=b.qcow2", 8), [1, 1]);
        assert_eq!(bench.write("base.raw,overlay=a.qcow2", 9), [7, 1]);
        // It says what it lies on, by the name alone: the folder can be moved.
        assert_eq!(bench.write("a.qcow2", 10), [9, 1]);
        let header = Header::read(&File::open(bench.path("a.qcow2")).unwrap(), Path::new("a")).unwrap();
        let backing = header.backing.unwrap();
        assert_eq!((backing.name.to_str(), backing.format.as_deref()), (Some("base.raw"), Some("raw")));
        assert!(fs::read(bench.path("base.raw")).unwrap().iter().all(|byte| *byte == 1));
        assert_eq!(bench.names("."), ["a.qcow2", "b.qcow2", "base.raw", "tmp"]);
    }

    #[test]
    fn overlay_of_an_overlay_shows_all_three() {
        let bench = Bench::new();
        bench.write("base.raw,overlay=a.qcow2", 7);
        assert_eq!(bench.write("a.qcow2,overlay=b.qcow2", 8), [7, 1]);
        assert_eq!(bytes(&bench.open("b.qcow2,ro").unwrap()), [8, 1]);
    }

    #[test]
    fn base_in_another_folder_is_named_in_full_and_opened_only_if_the_user_says_so() {
        let bench = Bench::new();
        fs::create_dir(bench.path("images")).unwrap();
        fs::rename(bench.path("base.raw"), bench.path("images/base.raw")).unwrap();
        bench.write("images/base.raw,overlay=a.qcow2", 7);
        assert_eq!(bench.write("images/base.raw,overlay=a.qcow2", 8), [7, 1]);
        let said = bench.refusal("a.qcow2");
        assert!(said.contains("backing=") && said.contains("images/base.raw"), "{said}");
        assert_eq!(bench.write("a.qcow2,backing=images/base.raw", 9), [8, 1]);
    }

    #[test]
    fn thirty_machines_read_one_base_and_none_writes_to_it() {
        let bench = Bench::new();
        let open = |n: usize| bench.open(&format!("base.raw,overlay={n}.qcow2")).unwrap();
        let all: Vec<_> = (0..30).map(open).collect();
        assert!(bench.refusal("base.raw,snapshot,format=qcow2").contains("no qcow2 image"));
        for text in ["base.raw,snapshot", "base.raw,overlay=31.qcow2"] {
            bench.write(text, 3);
        }
        let said = bench.refusal("0.qcow2");
        assert!(said.contains("/d/0.qcow2 is in use"), "{said}");
        let error = DiskFile::open(&bench.path("base.raw"), Access::default()).unwrap_err().to_string();
        assert!(error.contains("is in use") && error.contains("overlay=FILE"), "{error}");
        drop(all);
        let writer = DiskFile::open(&bench.path("base.raw"), Access::default()).unwrap();
        let said = bench.refusal("base.raw,overlay=0.qcow2");
        assert!(said.contains("/d/base.raw is in use"), "{said}");
        drop(writer);
    }

    #[test]
    fn what_is_written_to_a_snapshot_is_nowhere() {
        let bench = Bench::new();
        assert_eq!(bench.write("base.raw,snapshot", 7), [1, 1]);
        assert_eq!(bench.write("base.raw,snapshot", 8), [1, 1]);
        assert_eq!(bench.write("base.raw,overlay=new.qcow2,snapshot", 9), [1, 1]);
        assert_eq!(bench.names("."), ["base.raw", "tmp"], "no overlay is made for it");
        bench.write("base.raw,overlay=a.qcow2", 5);
        let before = fs::read(bench.path("a.qcow2")).unwrap();
        assert_eq!(bench.write("base.raw,overlay=a.qcow2,snapshot", 6), [5, 1]);
        assert_eq!(bench.write("a.qcow2,snapshot", 6), [5, 1]);
        assert!(fs::read(bench.path("a.qcow2")).unwrap() == before);
        let open = bench.open("base.raw,snapshot").unwrap();
        assert!(bench.names("tmp").is_empty(), "it has no name while it is used");
        drop(open);
        fs::remove_dir(bench.path("tmp")).unwrap();
        let said = bench.refusal("base.raw,snapshot");
        assert!(said.contains("/d/tmp") && said.contains("TMPDIR"), "{said}");
    }

    #[test]
    fn overlay_that_is_there_must_be_one_of_this_base() {
        let bench = Bench::new();
        fs::write(bench.path("other.raw"), vec![1; MIB]).unwrap();
        fs::write(bench.path("text"), "no image\n").unwrap();
        bench.write("base.raw,overlay=a.qcow2", 7);
        let alone = File::create_new(bench.path("alone.qcow2")).unwrap();
        diskimage::create(&alone, Path::new("x"), &CreateOptions::new(Format::Qcow2, MIB as u64)).unwrap();
        let before = fs::read(bench.path("a.qcow2")).unwrap();
        for (text, said) in [
            ("other.raw,overlay=a.qcow2", "the overlay /d/a.qcow2 lies on base.raw, and not on /d/other.raw"),
            ("base.raw,overlay=text", "/d/text is there and is no qcow2 image"),
            ("base.raw,overlay=alone.qcow2", "/d/alone.qcow2 is a qcow2 image that lies on no other"),
            ("alone.qcow2,format=raw,overlay=a.qcow2", "the overlay /d/a.qcow2 lies on base.raw"),
            ("base.raw,overlay=nowhere/a.qcow2", "the overlay /d/nowhere/a.qcow2 cannot be made"),
            ("base.raw,overlay=tmp", "/d/tmp is a directory"),
            ("none.raw,overlay=new.qcow2", "there is no disk /d/none.raw"),
        ] {
            let error = bench.refusal(text);
            assert!(error.contains(said), "{text}: {error}");
        }
        assert!(!bench.path("new.qcow2").exists());
        assert!(fs::read(bench.path("a.qcow2")).unwrap() == before);
        // The same base by another path is the same base.
        std::os::unix::fs::symlink("base.raw", bench.path("link.raw")).unwrap();
        assert_eq!(bench.write("link.raw,overlay=a.qcow2", 8), [7, 1]);
        fs::remove_file(bench.path("base.raw")).unwrap();
        let said = bench.refusal("other.raw,overlay=a.qcow2");
        assert!(said.contains("qemu-img rebase -u -b /d/other.raw"), "{said}");
    }

    #[test]
    fn format_of_the_base_is_the_one_in_the_overlay() {
        let bench = Bench::new();
        bench.write("base.raw,overlay=a.qcow2", 7);
        fs::rename(bench.path("a.qcow2"), bench.path("a.img")).unwrap();
        bench.write("a.img,format=qcow2,overlay=b.qcow2", 8);
        let said = bench.refusal("a.img,format=raw,overlay=b.qcow2");
        assert!(
            said.contains(
                "says that /d/a.img is qcow2, and here it is raw; give it as `/d/a.img,format=qcow2`"
            ),
            "{said}"
        );
    }

    #[test]
    fn raw_disk_on_which_a_guest_wrote_a_header_stays_raw() {
        let bench = Bench::new();
        let mut disk = vec![1; MIB];
        disk[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        fs::write(bench.path("base.raw"), &disk).unwrap();
        for text in ["base.raw,snapshot", "base.raw,overlay=a.qcow2"] {
            let said = bench.refusal(text);
            assert!(
                said.contains("/d/base.raw,format=qcow2") && said.contains("/d/base.raw,format=raw"),
                "{said}"
            );
        }
        for text in ["base.raw,snapshot,format=raw", "base.raw,overlay=a.qcow2,format=raw", "a.qcow2"] {
            let mut head = [0; 8];
            bench.open(text).unwrap().read_at(&mut head, 0).unwrap();
            assert_eq!(head, disk[..8], "{text}");
        }
        let alone = DiskFile::open_as(&bench.path("base.raw"), Access::default(), Some(Format::Raw)).unwrap();
        assert_eq!(alone.length(), MIB as u64);
        let said = DiskFile::open(&bench.path("base.raw"), Access { read_only: true, direct: false });
        assert!(matches!(said, Err(DiskError::Busy { .. })));
    }

    #[test]
    fn base_that_ends_inside_of_a_sector_is_filled_with_zeros() {
        let bench = Bench::new();
        fs::write(bench.path("odd.raw"), [1; 1101]).unwrap();
        let image = bench.open("odd.raw,overlay=a.qcow2").unwrap();
        assert_eq!(image.size(), 1536);
        let mut end = [9; 512];
        assert_eq!(image.read_at(&mut end, 1024).unwrap(), 512);
        assert!(end[..77].iter().all(|byte| *byte == 1) && end[77..].iter().all(|byte| *byte == 0));
    }
}
