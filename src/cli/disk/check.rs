//! `minivmm disk check`.

use std::path::Path;

use diskimage::{Format, Report, Verdict, shell_word};

use super::error::{DiskVerbError, shown};
use super::progress::Bar;
use super::source::Source;
use super::{DiskCheckArgs, Done, format_of};
use crate::cli::exit::Status;
use crate::host::disk_image::ImageOpener;
use crate::image::printable;

pub(super) fn check(args: &DiskCheckArgs) -> Result<Done, DiskVerbError> {
    let source = Source { path: &args.file, format: args.format, flag: "--format", backing: &[] };
    let file = source.open_file(false, &mut ImageOpener::default())?;
    let mut bar = Bar::begin().map_err(DiskVerbError::Signals)?;
    let report = diskimage::check(&file, &args.file, format_of(args.format, &args.file), &mut bar);
    let report = report.map_err(|error| bar.failed(error))?;
    drop(bar);
    // No machine opens an image with one of these marks.
    let is_unusable = report.verdict() == Verdict::Corrupt || report.marked_corrupt || report.dirty;
    let status = if is_unusable { Status::Failed } else { Status::Done };
    Ok(Done { text: text(&report, &args.file), status })
}

/// What was found, line by line.
fn text(report: &Report, path: &Path) -> String {
    let (name, word) = (shown(path), shell_word(path));
    if report.format == Format::Raw {
        return format!("{name}: raw, which is whatever it is: there is nothing to check");
    }
    let mut lines: Vec<String> =
        report.findings.iter().map(|finding| printable(&finding.to_string())).collect();
    let (leaks, errors) = (report.leaks, report.corruptions);
    if errors + leaks > report.findings.len() as u64 {
        lines.push("...".into());
    }
    for (marked, mark) in [(report.marked_corrupt, "as corrupt"), (report.dirty, "as not closed (dirty)")] {
        if marked {
            lines
                .push(format!("{name} is marked {mark}; `qemu-img check -r all {word}` takes the mark away"));
        }
    }
    lines.push(match report.verdict() {
        Verdict::Corrupt => format!(
            "{name}: errors: {errors}; make a copy, then `qemu-img check -r all {word}` mends what can be mended"
        ),
        Verdict::Leaky => format!(
            "{name}: no errors; leaked clusters: {leaks}, whose space `qemu-img check -r leaks {word}` gives back"
        ),
        _ => format!("{name}: no errors; {} of {} clusters are in use", report.allocated_clusters, report.total_clusters),
    });
    lines.join("\n")
}
