//! `minivmm disk commit`.

use diskimage::{Access, Image, ImageOptions, Opener};

use super::error::{DiskVerbError, shown};
use super::progress::Bar;
use super::{DiskCommitArgs, format_of};
use crate::host::disk_image::ImageOpener;

pub(super) fn commit(args: &DiskCommitArgs) -> Result<String, DiskVerbError> {
    let path = &args.overlay;
    let options = args.source.options(path);
    // The chain says what the image below is, and whether it may be opened.
    let chain = Image::open(path, &options, &mut ImageOpener::default())?;
    let below = chain.layers().get(1).ok_or_else(|| DiskVerbError::NoBacking(path.clone()))?;
    let (base_path, base_format) = (below.path.clone(), below.format);
    drop(chain);
    let mut opener = ImageOpener::default();
    let overlay = opener.open(path, Access::named(true))?;
    let overlay = Image::alone(overlay, path, format_of(args.source.format, path), true)?;
    let base_options = ImageOptions::new(base_format).write(true).backing(options.backing);
    let mut base = Image::open(&base_path, &base_options, &mut opener)?;
    let mut bar = Bar::begin()?;
    diskimage::commit(overlay, &mut base, &mut bar).map_err(|error| bar.failed(error))?;
    drop(bar);
    Ok(format!("{} has the content of {} now", shown(&base_path), shown(path)))
}
