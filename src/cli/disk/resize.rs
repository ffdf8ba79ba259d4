//! `minivmm disk resize`.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use boot::read::ReadAt;
use diskimage::{Format, Image, Progress};
use vmm_sys_util::seek_hole::SeekHole;

use super::error::{DiskVerbError, shown};
use super::progress::Bar;
use super::size::Bytes;
use super::source::Source;
use super::target::{DiskTarget, MachineDisk};
use super::users::{User, disk_on};
use super::{DiskResizeArgs, gpt, live};
use crate::host::disk_image::ImageOpener;
use crate::image::{Budget, Usage, usage_of};

/// The sector of an image.
const SECTOR: u64 = 512;
/// Bytes that are looked at at once.
const PIECE: usize = 1 << 20;

pub(super) fn resize(args: &DiskResizeArgs) -> Result<String, DiskVerbError> {
    match DiskTarget::of(&args.file) {
        DiskTarget::Machine(disk) => resize_live(&disk, args),
        DiskTarget::File(path) => match resize_file(&path, args) {
            // A running machine does it itself, and tells its guest.
            Err(DiskVerbError::InUse { path: file, user: User::Machine(machine) }) if file == path => {
                match disk_on(&machine, &path) {
                    Some(disk) => resize_live(&disk, args),
                    None => Err(DiskVerbError::InUse { path, user: User::Machine(machine) }),
                }
            }
            done => done,
        },
    }
}

fn resize_live(disk: &MachineDisk, args: &DiskResizeArgs) -> Result<String, DiskVerbError> {
    if args.shrink {
        return Err(DiskVerbError::ShrinkLive(format!("{}:{}", disk.machine, disk.id)));
    }
    Ok(live::resize(disk, args.size)?)
}

fn resize_file(path: &Path, args: &DiskResizeArgs) -> Result<String, DiskVerbError> {
    // Not opened at all: of a loop device the lock would be in its own way.
    if std::fs::metadata(path).is_ok_and(|there| there.file_type().is_block_device()) {
        return Err(DiskVerbError::Device(path.into()));
    }
    let (mut opener, source) = (ImageOpener::default(), Source::new(path, &args.source));
    source.refuse_errors(&mut Bar::begin().map_err(DiskVerbError::Signals)?)?;
    let mut image = source.open(true, &mut opener)?;
    let from = image.size();
    let to = args.size.applied(from)?;
    if to < from {
        if !args.shrink {
            return Err(DiskVerbError::Smaller { path: path.into(), from, to });
        }
        if may_shrink(path, &image, to)? == Table::Gpt {
            gpt::move_copy(&image, to).map_err(|error| DiskVerbError::Io { path: path.into(), error })?;
        }
    }
    image.resize(to, args.shrink)?;
    Ok(format!("{}: {}, before {}", shown(path), Bytes(to), Bytes(from)))
}

/// What a smaller disk needs beside its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Table {
    /// A GPT has a copy at the disk's end.
    Gpt,
    Other,
}

/// Refuses a size that what is in use does not fit into, as far as that can be known.
fn may_shrink(path: &Path, image: &Image, to: u64) -> Result<Table, DiskVerbError> {
    let budget = Budget::new();
    let usage = usage_of(&Content(image), SECTOR, &budget);
    let usage = usage.map_err(|error| DiskVerbError::Content { path: path.into(), error })?;
    match usage {
        Usage::Until { end, what, .. } if end > to => {
            Err(DiskVerbError::Used { path: path.into(), to, what, end })
        }
        Usage::Until { gpt: true, .. } => Ok(Table::Gpt),
        Usage::Until { .. } => Ok(Table::Other),
        Usage::Unknown(content) => match first_data(path, image, to)? {
            Some(at) => Err(DiskVerbError::Data { path: path.into(), to, at, content }),
            None => Ok(Table::Other),
        },
    }
}

/// The first byte from `from` on that is not zero.
fn first_data(path: &Path, image: &Image, from: u64) -> Result<Option<u64>, DiskVerbError> {
    let mut bar = Bar::begin().map_err(DiskVerbError::Signals)?;
    let mut bytes = vec![0; PIECE];
    let mut at = from;
    while let Some(next) = next_data(image, at).filter(|next| *next < image.size()) {
        at = next;
        if bar.at(at - from, image.size() - from).is_break() {
            let error = io::ErrorKind::Interrupted.into();
            return Err(bar.failed(DiskVerbError::Io { path: path.into(), error }));
        }
        let read =
            image.read_at(&mut bytes, at).map_err(|error| DiskVerbError::Io { path: path.into(), error })?;
        let piece = bytes.get(..read).unwrap_or_default();
        if let Some(place) = piece.iter().position(|byte| *byte != 0) {
            return Ok(Some(at + place as u64));
        }
        at += read.max(1) as u64;
    }
    Ok(None)
}

/// Where the first byte from `at` on is that may not be zero: holes of a raw image are passed over.
fn next_data(image: &Image, at: u64) -> Option<u64> {
    let [file] = image.files() else { return Some(at) };
    if image.format() != Format::Raw {
        return Some(at);
    }
    // Where holes cannot be told, everything may be data.
    file.file().try_clone().and_then(|mut file| file.seek_data(at)).unwrap_or(Some(at))
}

/// What the guest sees of an image.
struct Content<'a>(&'a Image);

impl ReadAt for Content<'_> {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.size())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }
}
