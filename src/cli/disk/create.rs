//! `minivmm disk create`.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use diskimage::{CreateOptions, Format, Image};
use log::Level;

use super::error::{DiskVerbError, shown};
use super::size::Bytes;
use super::source::Source;
use super::{DiskCreateArgs, format_of};
use crate::cli::report;
use crate::host::disk_image::ImageOpener;
use crate::host::new_file::NewFile;
use crate::image::printable;

/// The unit of a disk.
const SECTOR: u64 = 512;

pub(super) fn create(args: &DiskCreateArgs) -> Result<String, DiskVerbError> {
    let file = &args.file;
    let format = format_of(args.format, file);
    if fs::symlink_metadata(file).is_ok() {
        return Err(DiskVerbError::Exists(file.clone()));
    }
    let base = args.backing.first();
    if base.is_some() && format == Format::Raw {
        return Err(DiskVerbError::RawOverlay(file.clone()));
    }
    // Open until the overlay is there, so that nobody changes the size of what it lies on.
    let mut opener = ImageOpener::default();
    let base = base.map(|base| open_base(base, args, &mut opener)).transpose()?;
    let size = match (args.size, &base) {
        (Some(size), _) => size.bytes(),
        // A raw base may end inside of a sector.
        (None, Some(base)) => base.size().next_multiple_of(SECTOR),
        // clap asks for one of them.
        (None, None) => 0,
    };
    let mut options = CreateOptions::new(format, size);
    if let Some(base) = &base {
        let name = written_name(base.path(), file)?;
        warn_if_smaller(base, size);
        if name.contains('/') {
            let name = printable(&name);
            warn(&format!(
                "{name} is in another folder, where it is read only if you name it: `--disk {},backing={name}`",
                shown(file)
            ));
        }
        options = options.backing(&name, base.format());
    }
    make(file, &options)?;
    let on = base.map_or_else(String::new, |base| format!(", on {}", shown(base.path())));
    Ok(format!("{}: {}, {format}{on}", shown(file), Bytes(size)))
}

fn open_base(base: &Path, args: &DiskCreateArgs, opener: &mut ImageOpener) -> Result<Image, DiskVerbError> {
    let backing = args.backing.get(1..).unwrap_or_default();
    Source { path: base, format: args.backing_format, flag: "--backing-format", backing }.open(false, opener)
}

fn warn_if_smaller(base: &Image, size: u64) {
    if size < base.size() {
        let (base, whole) = (shown(base.path()), Bytes(base.size()));
        warn(&format!("{base} has {whole}: the guest does not see what is behind the first {}", Bytes(size)));
    }
}

fn warn(text: &str) {
    report::message_at(Level::Warn, &format_args!("minivmm: warning: {text}\n"));
}

/// Makes the image, as a whole or not at all.
fn make(path: &Path, options: &CreateOptions) -> Result<(), DiskVerbError> {
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::AlreadyExists => DiskVerbError::Exists(path.into()),
        _ => DiskVerbError::Make { path: path.into(), error },
    };
    let new = NewFile::create(path).map_err(failed)?;
    diskimage::create(new.file(), path, options)?;
    new.keep(false).map_err(failed)
}

/// The name of an overlay's base as the overlay has it: a plain name in the same folder, so that both can be moved together; else
/// the whole path.
fn written_name(base: &Path, overlay: &Path) -> Result<String, DiskVerbError> {
    let io = |error| DiskVerbError::Io { path: base.into(), error };
    // What it is a link to may be in another folder; a link itself is not followed when the overlay is opened.
    let whole = fs::canonicalize(base).map_err(io)?;
    let folder = overlay.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside = fs::canonicalize(folder).is_ok_and(|folder| Some(folder.as_path()) == whole.parent());
    let name = whole.file_name().filter(|name| beside && !is_protocol(name));
    let name = name.map_or(whole.clone(), PathBuf::from);
    name.into_os_string().into_string().map_err(|_| {
        io(std::io::Error::other("its name is not UTF-8, and cannot be written into an overlay"))
    })
}

/// Whether QEMU would take a name for that of a protocol.
fn is_protocol(name: &OsStr) -> bool {
    name.as_encoded_bytes().contains(&b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_beside_its_overlay_has_a_plain_name_and_another_one_a_whole_path() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        fs::create_dir(folder.join("sub")).unwrap();
        for name in ["base.raw", "a:b.raw"] {
            fs::write(folder.join(name), "").unwrap();
        }
        std::os::unix::fs::symlink(folder.join("base.raw"), folder.join("sub/link")).unwrap();
        let written =
            |base: &str, overlay: &str| written_name(&folder.join(base), &folder.join(overlay)).unwrap();
        assert_eq!(written("base.raw", "student1.qcow2"), "base.raw");
        assert_eq!(written("sub/../base.raw", "sub/../student1.qcow2"), "base.raw");
        let whole = folder.join("base.raw").display().to_string();
        assert_eq!(written("base.raw", "sub/student1.qcow2"), whole);
        assert_eq!(written("sub/link", "sub/student1.qcow2"), whole);
        assert_eq!(written("sub/link", "student1.qcow2"), "base.raw");
        assert_eq!(written("a:b.raw", "student1.qcow2"), folder.join("a:b.raw").display().to_string());
        assert!(written_name(&folder.join("gone.raw"), &folder.join("x.qcow2")).is_err());
    }
}
