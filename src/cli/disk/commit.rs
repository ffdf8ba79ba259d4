//! `minivmm disk commit`.

use diskimage::{Access, Image, ImageOptions, Opener};

use super::error::{DiskVerbError, shown};
use super::progress::Bar;
use super::size::Bytes;
use super::source::Source;
use super::{DiskCommitArgs, format_of};
use crate::cli::report;
use crate::host::disk_image::ImageOpener;

pub(super) fn commit(args: &DiskCommitArgs) -> Result<String, DiskVerbError> {
    let path = &args.overlay;
    let source = Source::new(path, &args.source);
    // The chain says what the image below is, and whether it may be opened.
    let chain = source.open(false, &mut ImageOpener::default())?;
    source.refuse_errors(&mut Bar::begin().map_err(DiskVerbError::Signals)?)?;
    let below = chain.layers().get(1).ok_or_else(|| DiskVerbError::NoBacking(path.clone()))?;
    let (base_path, base_format) = (below.path.clone(), below.format);
    drop(chain);
    let mut opener = ImageOpener::default();
    let overlay = opener.open(path, Access::named(true))?;
    let overlay = Image::alone(overlay, path, format_of(args.source.format, path), true)?;
    let base_options = ImageOptions::new(base_format).write(true).backing(args.source.backing.clone());
    let base = Image::open(&base_path, &base_options, &mut opener)?;
    let mut bar = Bar::begin().map_err(DiskVerbError::Signals)?;
    let done = diskimage::commit(overlay, &base, &mut bar).map_err(|error| {
        let unfinished = |error| DiskVerbError::CommitUnfinished {
            error: Box::new(error),
            overlay: path.clone(),
            base: base_path.clone(),
        };
        match bar.failed(error) {
            DiskVerbError::Interrupted(signal) => {
                let said = unfinished(DiskVerbError::Interrupted(signal)).to_string();
                report::message(&format_args!("minivmm: {said}\n"));
                DiskVerbError::Interrupted(signal)
            }
            error => unfinished(error),
        }
    })?;
    drop(bar);
    let grown = done.grown.map_or_else(String::new, |size| format!(", and {} in all", Bytes(size)));
    let (overlay, base) = (shown(path), shown(&base_path));
    Ok(format!(
        "{base} has the content of {overlay}, {} of data{grown}; {overlay} is empty",
        Bytes(done.written)
    ))
}
