//! Commits: the backing file becomes what the overlay was, the overlay becomes empty, and nothing is lost when the work ends between.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use diskimage::{Committed, Format, Image, ImageError, NoProgress, Progress, commit};

use crate::support::{
    Folder, assert_same, assert_sound, dose, image, open, qemu_img, qemu_io, run, text, used,
};

fn commit_to(
    overlay: &Path,
    base: &Path,
    format: Format,
    progress: &mut dyn Progress,
) -> Result<Committed, ImageError> {
    let top = Image::alone(open(overlay, true), overlay, Format::Qcow2, true)?;
    commit(top, &image(base, format, true), progress)
}

/// A base of this format, and an overlay with data, zeroes, compressed clusters and a larger size on it.
fn overlay(folder: &Folder, format: &str, options: &str) -> (PathBuf, PathBuf) {
    let [base, top] = ["base", "top.qcow2"].map(|name| folder.path(name));
    qemu_img(&["create", "-q", "-f", format, text(&base), "5000k"]);
    qemu_io(&base, format, &["write -P 1 0 3M".into(), "write -P 9 4900k 100k".into()]);
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, "-F", format, "-b", "base", text(&top), "9M"]);
    let mut writes =
        ["write -c -P 2 2M 2M", "write -c -P 3 6M 2M", "write -P 4 2100k 3k", "write -P 0 4M 256k"].to_vec();
    writes.push("write -P 5 8M 1M");
    if !options.contains("0.10") {
        writes.push("write -z 0 256k");
    }
    qemu_io(&top, "qcow2", &writes.into_iter().map(String::from).collect::<Vec<_>>());
    (base, top)
}

const KINDS: [(&str, &str); 6] = [
    ("raw", "cluster_size=64k"),
    ("qcow2", "cluster_size=64k"),
    ("raw", "cluster_size=512"),
    ("qcow2", "cluster_size=4k,compat=0.10"),
    ("raw", "cluster_size=4k,refcount_bits=1"),
    ("qcow2", "cluster_size=2M,refcount_bits=64"),
];

#[test]
fn data_goes_to_the_backing_file_and_the_overlay_gives_its_space_back() {
    for (format, options) in KINDS {
        let folder = Folder::new();
        let (base, top) = overlay(&folder, format, options);
        let before = folder.path("before.raw");
        qemu_img(&["convert", "-f", "qcow2", "-O", "raw", text(&top), text(&before)]);
        let done = commit_to(&top, &base, format.parse().unwrap(), &mut NoProgress).unwrap();
        assert_eq!(done.grown, Some(9 << 20), "{format}, {options}");
        assert!(done.written >= 2 << 20, "{done:?}");
        let why = format!("{format}, {options}");
        assert_same(&base, format, &before, "raw", &why);
        assert_same(&top, "qcow2", &before, "raw", &why);
        assert_sound(&top, &why);
        if format == "qcow2" {
            assert_sound(&base, &why);
        }
        assert!(
            used(&top) <= if options.contains("2M") { 10 << 20 } else { 300 << 10 },
            "{why}: the empty overlay takes {} bytes",
            used(&top)
        );
        // The empty overlay is an overlay: it can be written and committed again.
        qemu_io(&top, "qcow2", &["write -P 77 3M 100k".into()]);
        commit_to(&top, &base, format.parse().unwrap(), &mut NoProgress).unwrap();
        qemu_io(&base, format, &["read -P 77 3M 100k".into()]);
        assert_sound(&top, &why);
    }
}

/// Calls of `progress` until the overlay is emptied: the steps of that are the last ones.
const LAST_STEPS: u64 = 4;

#[test]
fn commit_that_ends_at_any_step_loses_nothing() {
    let kinds = usize::try_from(dose(20)).unwrap().min(KINDS.len());
    for (format, options) in KINDS.into_iter().take(kinds) {
        let made = Folder::new();
        let (base, top) = overlay(&made, format, options);
        let before = made.path("before.raw");
        qemu_img(&["convert", "-f", "qcow2", "-O", "raw", text(&top), text(&before)]);
        // The first round counts the steps.
        let mut ends = vec![u64::MAX];
        while let Some(end_at) = ends.pop() {
            let why = format!("{format}, {options}, ended at {end_at}");
            let folder = Folder::new();
            let [base, top] = [&base, &top].map(|from| {
                let to = folder.path(from.file_name().unwrap().to_str().unwrap());
                std::fs::copy(from, &to).unwrap();
                to
            });
            let mut calls = 0;
            let mut give_up = |_: u64, _: u64| {
                calls += 1;
                if calls == end_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let ended = commit_to(&top, &base, format.parse().unwrap(), &mut give_up);
            if end_at == u64::MAX {
                assert!(ended.is_ok() && calls > LAST_STEPS + 3, "{ended:?}, {calls} steps");
                ends.extend([1, calls / 2]);
                ends.extend(calls - LAST_STEPS..=calls);
                continue;
            }
            assert!(matches!(ended, Err(ImageError::Interrupted { .. })), "{why}: {ended:?}");
            assert_same(&top, "qcow2", &before, "raw", &why);
            // Clusters may leak, and nothing worse.
            let status = run("qemu-img", &["check", "-q", "-f", "qcow2", text(&top)]).status.code();
            assert!(matches!(status, Some(0 | 3)), "{why}: {status:?}");
            commit_to(&top, &base, format.parse().unwrap(), &mut NoProgress).unwrap();
            assert_same(&base, format, &before, "raw", &why);
            assert_sound(&top, &why);
        }
    }
}

#[test]
fn image_without_backing_file_is_refused() {
    let folder = Folder::new();
    let (base, _) = overlay(&folder, "raw", "cluster_size=64k");
    let alone = folder.path("alone.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", text(&alone), "1M"]);
    let refused = commit_to(&alone, &base, Format::Raw, &mut NoProgress).unwrap_err().to_string();
    assert!(refused.contains("no backing file"), "{refused}");
}
