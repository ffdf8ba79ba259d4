//! The disks of a clone: copies and overlays, so that two machines never write one image.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use diskimage::{ConvertOptions, Format, Image, ImageError, ImageOptions, Progress, set_backing_name};

use super::CloneArgs;
use super::error::CloneError;
use super::folder::CloneFolder;
use super::report::{ClonedDisk, Report};
use crate::host::disk::{base_of, copy_file};
use crate::host::disk_image::ImageOpener;
use crate::machine::disk_id;
use crate::saved::{WrittenDisk, copied_format, copy_name, note_overlays};
use crate::spec::{DiskSpec, Spec};

/// How the clone gets an image of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A copy that was made for it.
    Move,
    /// A copy of the file, which lies on what the original lies on.
    Copy,
    /// A copy of all that the disk shows.
    Flatten,
    /// An empty image on a copy that nobody writes to.
    Overlay,
}

/// Whose images they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner<'a> {
    /// Copies that were made for this clone.
    Clone,
    /// A saved folder's.
    Saved(&'a Path),
    /// A machine's that is off.
    Original,
}

/// Follows a copy, which may be given up.
pub(super) struct Following<'a> {
    pub(super) progress: &'a mut dyn Progress,
    pub(super) is_given_up: &'a dyn Fn() -> bool,
}

impl Progress for Following<'_> {
    fn at(&mut self, done: u64, total: u64) -> ControlFlow<()> {
        if (self.is_given_up)() { ControlFlow::Break(()) } else { self.progress.at(done, total) }
    }
}

/// The images that the guest of a machine that is off has written to.
pub(super) fn written_by(spec: &Spec) -> Result<Vec<WrittenDisk>, CloneError> {
    let mut written = Vec::new();
    for (index, disk) in spec.disk.iter().enumerate().filter(|(_, disk)| is_written(disk)) {
        let path = disk.image().to_owned();
        if fs::metadata(&path).is_ok_and(|found| found.file_type().is_block_device()) {
            return Err(CloneError::Device { id: disk_id(index), path });
        }
        written.push(WrittenDisk { index, path, base: None, is_copy: false });
    }
    Ok(written)
}

fn is_written(disk: &DiskSpec) -> bool {
    !disk.read_only && !disk.snapshot
}

/// Refuses what `--linked` refuses, as far as it is known without a look at the disks.
pub(super) fn check_linked(spec: &Spec) -> Result<(), CloneError> {
    let is_whole =
        |disk: &DiskSpec| is_written(disk) && disk.overlay.is_none() && disk.format() == Format::Raw;
    match spec.disk.iter().enumerate().find(|(_, disk)| is_whole(disk)) {
        Some((index, disk)) => Err(no_base(index, disk)),
        None => Ok(()),
    }
}

fn no_base(index: usize, disk: &DiskSpec) -> CloneError {
    CloneError::NoBase { id: disk_id(index), path: disk.image().into() }
}

/// The absolute path of what the image lies on.
fn base_at(path: &Path, format: Format) -> io::Result<Option<PathBuf>> {
    if format == Format::Raw {
        return Ok(None);
    }
    let base = base_of(&File::open(path)?, path, format)?;
    base.map(|name| std::path::absolute(path.parent().unwrap_or(Path::new("")).join(name))).transpose()
}

/// Gives the clone's description images of its own, and makes them in its folder.
pub(super) fn place(
    written: Vec<WrittenDisk>,
    owner: Owner<'_>,
    spec: &mut Spec,
    args: &CloneArgs,
    folder: &CloneFolder,
    following: &mut Following<'_>,
    report: &mut Report,
) -> Result<(), CloneError> {
    // What a saved folder says nothing of, such as a block device, would be written to by both.
    let is_known = |index: usize| written.iter().any(|disk| disk.index == index);
    let unknown = |(index, disk): &(usize, &DiskSpec)| is_written(disk) && !is_known(*index);
    if let Some((index, disk)) = spec.disk.iter().enumerate().find(unknown) {
        return Err(CloneError::Device { id: disk_id(index), path: disk.image().into() });
    }
    for disk in written {
        let Some(spec) = spec.disk.get_mut(disk.index) else { continue };
        let made = place_one(disk, owner, spec, args, folder, following)?;
        report.disk(made);
    }
    Ok(())
}

fn place_one(
    mut disk: WrittenDisk,
    owner: Owner<'_>,
    spec: &mut DiskSpec,
    args: &CloneArgs,
    folder: &CloneFolder,
    following: &mut Following<'_>,
) -> Result<ClonedDisk, CloneError> {
    let (index, id, format) = (disk.index, disk_id(disk.index), copied_format(spec));
    // Of a copy that is known.
    let is_new = !disk.is_copy && !disk.path.exists() && spec.overlay.is_some();
    let failed = |source| CloneError::Copy { id: id.clone(), to: folder.target().into(), source };
    if !disk.is_copy && !is_new {
        disk.base = base_at(&disk.path, format).map_err(failed)?;
    }
    let way = match owner {
        Owner::Saved(_) if disk.is_copy && !args.full => Way::Overlay,
        Owner::Saved(folder) if !disk.is_copy && !args.full => {
            return Err(CloneError::NoCopy { id, folder: folder.into() });
        }
        // Its overlay is made at its first start, and so is the clone's.
        _ if is_new => Way::Overlay,
        _ if args.full && disk.base.is_some() => Way::Flatten,
        _ if args.linked && disk.base.is_none() => return Err(no_base(index, spec)),
        Owner::Clone => Way::Move,
        _ => Way::Copy,
    };
    let made_as = match way {
        Way::Overlay | Way::Flatten => Format::Qcow2,
        Way::Move | Way::Copy => format,
    };
    let name = copy_name(index, made_as);
    make(way, &disk, spec, &name, made_as, folder, following).map_err(|error| match error {
        ImageError::Interrupted { .. } if (following.is_given_up)() => CloneError::GivenUp,
        ImageError::Interrupted { .. } => CloneError::Interrupted(0),
        ImageError::Io { source, .. } => failed(source),
        error => failed(io::Error::other(error.to_string())),
    })?;
    let path = folder.target().join(name);
    if let (Way::Overlay, Owner::Saved(saved)) = (way, owner) {
        note_overlays(saved, [path.as_path()].into_iter());
    }
    let base = point(spec, way, &disk, path.clone(), made_as, is_new);
    Ok(ClonedDisk { id, path, base })
}

fn make(
    way: Way,
    disk: &WrittenDisk,
    spec: &DiskSpec,
    name: &str,
    made_as: Format,
    folder: &CloneFolder,
    following: &mut Following<'_>,
) -> Result<(), ImageError> {
    let to = folder.now(name);
    let new = || folder.file(name).map_err(ImageError::io(&to, "make"));
    let mut opener = ImageOpener::default();
    match way {
        Way::Overlay => Ok(()),
        Way::Move => fs::rename(&disk.path, &to).map_err(ImageError::io(&to, "make")),
        Way::Copy if made_as != Format::Raw => {
            let from =
                opener.open_disk(&disk.path, false).map_err(|error| ImageError::Opener(Box::new(error)))?;
            let new = new()?;
            let following = RefCell::new(following);
            let wanted = || following.borrow_mut().at(0, 0).is_continue();
            copy_file(&from, &new, &wanted).map_err(|error| match error.kind() {
                io::ErrorKind::Interrupted => ImageError::Interrupted { path: to.clone() },
                _ => ImageError::io(&to, "write")(error),
            })?;
            if let Some(base) = &disk.base {
                let base = base
                    .to_str()
                    .ok_or_else(|| ImageError::io(base, "name")(io::Error::other("its path is not UTF-8")))?;
                set_backing_name(&new, &to, base)?;
            }
            new.sync_all().map_err(ImageError::io(&to, "write"))
        }
        Way::Copy | Way::Flatten => {
            let mut options = ImageOptions::new(copied_format(spec));
            options.backing = spec.backing.iter().chain(&disk.base).cloned().collect();
            let image = Image::open(&disk.path, &options, &mut opener)?;
            diskimage::convert(&image, &new()?, &to, &ConvertOptions::new(made_as), following).map(drop)
        }
    }
}

/// Has the description name the new image. Gives what that lies on.
fn point(
    spec: &mut DiskSpec,
    way: Way,
    disk: &WrittenDisk,
    to: PathBuf,
    made_as: Format,
    is_new: bool,
) -> Option<PathBuf> {
    let format = |path: &Path, format| (Format::of(path) != format).then_some(format);
    match way {
        // On the same base, which the description names already.
        Way::Overlay if is_new => {
            spec.overlay = Some(to);
            Some(spec.path.clone())
        }
        Way::Overlay => {
            let beneath = copied_format(spec);
            spec.path.clone_from(&disk.path);
            spec.format = format(&spec.path, beneath);
            spec.overlay = Some(to);
            spec.backing.extend(disk.base.clone());
            Some(disk.path.clone())
        }
        Way::Move | Way::Copy if spec.overlay.is_some() => {
            spec.overlay = Some(to);
            Some(spec.path.clone())
        }
        Way::Move | Way::Copy | Way::Flatten => {
            spec.format = format(&to, made_as);
            (spec.path, spec.overlay) = (to, None);
            if way == Way::Flatten {
                spec.backing.clear();
                return None;
            }
            spec.backing.extend(disk.base.clone());
            disk.base.clone()
        }
    }
}
