//! Checks of the options of a machine's disks against each other, independent of the host. Where two paths lead to one file, its
//! lock tells.

use std::path::{Path, PathBuf};

use super::{DiskFormat, DiskSpec, SpecError};

/// Refuses options that exclude each other, and images that two disks would destroy.
pub(super) fn check(disks: &[DiskSpec]) -> Result<(), SpecError> {
    disks.iter().try_for_each(one)?;
    for (at, one) in disks.iter().enumerate() {
        disks.iter().skip(at + 1).try_for_each(|other| two(one, other))?;
    }
    Ok(())
}

fn one(disk: &DiskSpec) -> Result<(), SpecError> {
    let path = disk.image().to_path_buf();
    match &disk.overlay {
        Some(_) if disk.read_only => Err(SpecError::ReadOnlyAnd { path, word: "overlay" }),
        Some(overlay) if *overlay == disk.path || disk.backing.contains(overlay) => {
            Err(SpecError::OverlayOnItself { path })
        }
        None if disk.read_only && disk.snapshot => Err(SpecError::ReadOnlyAnd { path, word: "snapshot" }),
        _ if disk.format() == DiskFormat::Raw && !disk.backing.is_empty() => {
            Err(SpecError::BackingOfRaw { path: disk.path.clone() })
        }
        _ => Ok(()),
    }
}

fn two(one: &DiskSpec, other: &DiskSpec) -> Result<(), SpecError> {
    let layered = |disk: &DiskSpec| disk.overlay.is_some() || disk.snapshot || !disk.backing.is_empty();
    let layered = layered(one) || layered(other);
    if let Some(path) = one.written().filter(|path| other.written() == Some(path)) {
        let path = path.to_path_buf();
        return Err(if layered { SpecError::OverlayTwice { path } } else { SpecError::DiskTwice { path } });
    }
    match below(one, other).or_else(|| below(other, one)) {
        Some(path) if layered => Err(SpecError::BackingWritten { path }),
        Some(path) => Err(SpecError::DiskTwice { path }),
        None => Ok(()),
    }
}

/// The image that `one` writes and `other` reads.
fn below(one: &DiskSpec, other: &DiskSpec) -> Option<PathBuf> {
    let written = one.written()?;
    other.only_read().any(|path| path == written).then(|| Path::to_path_buf(written))
}

#[cfg(test)]
mod tests {
    use super::super::Spec;
    use super::*;

    fn disks(texts: &[&str]) -> Result<Spec, SpecError> {
        let disk = texts.iter().map(|text| text.parse().unwrap()).collect();
        Spec { disk, ..Spec::new("k") }.settled()
    }

    #[test]
    fn image_may_be_there_twice_only_if_nobody_writes() {
        assert!(matches!(disks(&["a", "b", "a"]), Err(SpecError::DiskTwice { path }) if path.ends_with("a")));
        assert!(matches!(disks(&["a", "a,ro"]), Err(SpecError::DiskTwice { .. })));
        assert!(disks(&["a,ro", "a,ro", "b"]).is_ok());
    }

    #[test]
    fn base_serves_many_overlays_and_an_overlay_one_disk() {
        for (texts, said) in [
            (&["b,overlay=o", "b,overlay=o"][..], "two disks write to the image o"),
            (&["b,overlay=o", "o"], "two disks write to the image o"),
            (&["b,overlay=o", "b"], "the image b is written by one disk and is below another"),
            (&["b", "b,snapshot"], "the image b is written by one disk"),
            (&["b,overlay=o", "o,snapshot"], "the image o is written by one disk"),
            (&["b,overlay=o", "o,ro"], "the image o is written by one disk"),
            (&["b.qcow2,overlay=o,backing=c", "c"], "the image c is written by one disk"),
            (&["b,overlay=b"], "b cannot be its own overlay"),
            (&["b.qcow2,overlay=o,backing=o"], "o cannot be its own overlay"),
            (&["b,ro,overlay=o"], "the disk o has `ro` and `overlay`"),
            (&["b,ro,snapshot"], "the disk b has `ro` and `snapshot`"),
            (&["b,overlay=o,backing=c"], "the disk b is raw and lies on no other file"),
        ] {
            let error = disks(texts).expect_err(&texts.join(" ")).to_string();
            assert!(error.contains(said), "{texts:?}: {error}");
        }
        for texts in [
            &["b,overlay=o", "b,overlay=p", "b,snapshot", "b,ro"][..],
            &["b,overlay=o,snapshot", "b,overlay=o,snapshot"],
            &["b.qcow2,backing=c", "d,format=qcow2,backing=c"],
            &["b.qcow2,overlay=o,backing=c"],
        ] {
            disks(texts).unwrap();
        }
    }
}
