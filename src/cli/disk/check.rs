//! `minivmm disk check`.

use diskimage::{Format, Report, Verdict};

use super::error::{DiskVerbError, shown};
use super::progress::Bar;
use super::{DiskCheckArgs, Done, format_of};
use crate::cli::exit::Status;
use crate::host::disk_image::ImageOpener;
use crate::image::printable;

pub(super) fn check(args: &DiskCheckArgs) -> Result<Done, DiskVerbError> {
    let file = ImageOpener::default().open_disk(&args.file, false)?;
    let mut bar = Bar::begin()?;
    let report = diskimage::check(&file, &args.file, format_of(args.format, &args.file), &mut bar);
    let report = report.map_err(|error| bar.failed(error))?;
    drop(bar);
    let status = if report.verdict() == Verdict::Corrupt { Status::Failed } else { Status::Done };
    Ok(Done { text: text(&report, &shown(&args.file)), status })
}

/// What was found, line by line.
fn text(report: &Report, name: &str) -> String {
    if report.format == Format::Raw {
        return format!("{name}: raw, which is whatever it is: there is nothing to check");
    }
    let mut lines: Vec<String> = report.findings.iter().map(|finding| printable(&finding.to_string())).collect();
    let (leaks, errors) = (report.leaks, report.corruptions);
    if errors + leaks > report.findings.len() as u64 {
        lines.push("...".into());
    }
    lines.push(match report.verdict() {
        Verdict::Corrupt => format!(
            "{name}: {errors} errors; make a copy, then `qemu-img check -r all {name}` mends what can be mended"
        ),
        Verdict::Leaky => format!(
            "{name}: no errors; {leaks} clusters are lost space, which `qemu-img check -r leaks {name}` gives back"
        ),
        _ => format!("{name}: no errors; {} of {} clusters are in use", report.allocated_clusters, report.total_clusters),
    });
    lines.join("\n")
}
