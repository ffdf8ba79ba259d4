//! `minivmm disk convert`.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use diskimage::{ConvertOptions, Image};

use super::error::DiskVerbError;
use super::progress::Bar;
use super::source::Source;
use super::{DiskConvertArgs, format_of, info};
use crate::host::disk_image::ImageOpener;
use crate::host::identity::identity;
use crate::host::new_file::NewFile;

pub(super) fn convert(args: &DiskConvertArgs) -> Result<String, DiskVerbError> {
    let from = &args.from;
    let to = &behind_links(&args.to)?;
    let mut opener = ImageOpener::default();
    let source =
        Source { path: from, format: args.from_format, flag: "--from-format", backing: &args.backing };
    let image = source.open(false, &mut opener)?;
    source.refuse_errors(&mut Bar::begin().map_err(DiskVerbError::Signals)?)?;
    // Locked for as long as this takes, so that no machine begins to use what is replaced.
    let mut replaced = ImageOpener::default();
    may_replace(args, to, &image, &mut replaced)?;
    let format = format_of(args.format, to);
    let failed = |error: io::Error| match error.kind() {
        ErrorKind::AlreadyExists => DiskVerbError::ExistsUnforced(to.clone()),
        _ => DiskVerbError::Make { path: to.clone(), error },
    };
    let mut bar = Bar::begin().map_err(DiskVerbError::Signals)?;
    let new = NewFile::create(to).map_err(failed)?;
    let options = ConvertOptions::new(format);
    diskimage::convert(&image, new.file(), to, &options, &mut bar).map_err(|error| bar.failed(error))?;
    drop(bar);
    let used = new.used().map_err(failed)?;
    new.keep(args.force).map_err(failed)?;
    Ok(info::in_a_line(to, format, image.size(), used))
}

/// Where a link leads, so that its file is replaced and not the link.
fn behind_links(path: &Path) -> Result<PathBuf, DiskVerbError> {
    if !fs::symlink_metadata(path).is_ok_and(|there| there.is_symlink()) {
        return Ok(path.into());
    }
    fs::canonicalize(path).map_err(|error| DiskVerbError::Io { path: path.into(), error })
}

/// Refuses to replace what was not to be replaced, or is in use.
fn may_replace(
    args: &DiskConvertArgs,
    to: &Path,
    image: &Image,
    opener: &mut ImageOpener,
) -> Result<(), DiskVerbError> {
    let Ok(there) = fs::symlink_metadata(to) else { return Ok(()) };
    let is_read = |path: &Path| {
        fs::metadata(path)
            .is_ok_and(|read| fs::metadata(to).is_ok_and(|there| identity(&read) == identity(&there)))
    };
    if let Some(layer) = image.layers().iter().find(|layer| is_read(&layer.path)) {
        return Err(if layer.path == args.from {
            DiskVerbError::SameFile(layer.path.clone(), to.into())
        } else {
            DiskVerbError::Below { from: args.from.clone(), to: to.into() }
        });
    }
    if there.file_type().is_block_device() {
        return Err(DiskVerbError::ToDevice(to.into()));
    }
    if there.is_dir() {
        return Err(DiskVerbError::Make { path: to.into(), error: ErrorKind::IsADirectory.into() });
    }
    if !there.is_file() {
        return Err(DiskVerbError::NoFile(to.into()));
    }
    if !args.force {
        return Err(DiskVerbError::ExistsUnforced(to.into()));
    }
    opener.open_disk(to, true)?;
    Ok(())
}
