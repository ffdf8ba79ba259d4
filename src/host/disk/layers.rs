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
use crate::host::proc_path::proc_path;
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

/// As [`open`], of a disk with `snapshot`, on what another machine's guest has written to it.
///
/// # Errors
/// [`DiskError`], with its cure.
pub(super) fn open_on(spec: &DiskSpec, written: File) -> Result<(Image, ImageOpener), DiskError> {
    let (mut opener, folder) = (ImageOpener::default(), temporary_folder());
    let below = open_below(spec, &mut opener)?;
    let path = folder.join("(temporary file)");
    let image = Image::on(written, &path, false, below).map_err(DiskError::of)?;
    Ok((temporary(image, &folder)?, opener))
}

/// A copy of a temporary file, which nobody writes to meanwhile.
pub(super) fn copy(file: &File) -> io::Result<File> {
    let mut copy = nameless(&temporary_folder())?;
    // From its beginning, wherever its own position is.
    let mut from = File::open(proc_path(file))?;
    io::copy(&mut from, &mut copy)?;
    Ok(copy)
}

/// The same; a temporary file is made in `folder`.
fn open_with(spec: &DiskSpec, opener: &mut ImageOpener, folder: &Path) -> Result<Image, DiskError> {
    let image = open_below(spec, opener)?;
    if spec.snapshot { temporary(image, folder) } else { Ok(image) }
}

/// The images that have a name.
fn open_below(spec: &DiskSpec, opener: &mut ImageOpener) -> Result<Image, DiskError> {
    let writes = !spec.read_only && !spec.snapshot;
    let base = lowest(spec, writes && spec.overlay.is_none(), opener);
    let base = base.map_err(|error| match (error, &spec.overlay) {
        // An empty image beneath it would be another disk.
        (DiskError::NotFound { path }, Some(overlay)) if path == spec.path && exists(overlay) => {
            DiskError::NoBase { base: path, overlay: overlay.clone() }
        }
        (error, _) => error,
    })?;
    match &spec.overlay {
        // Nothing is there yet, and nothing will be: the temporary file lies on the base.
        Some(overlay) if spec.snapshot && !exists(overlay) => Ok(base),
        Some(overlay) => on_top(overlay, spec, base, writes, opener),
        None => Ok(base),
    }
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
mod tests;
