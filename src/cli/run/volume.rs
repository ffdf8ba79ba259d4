//! Folders of the host in the guest of a command: `--volume`, and the one of `--root`.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::args::RunArgs;
use super::busybox;
use super::error::RunError;
use crate::spec::{GuestFolder, MOST_SHARES, ShareSpec, Spec};

/// The tag of the share that is the guest's `/`; resources/initramfs/run.sh has the same one.
const ROOT_TAG: &str = "minivmm-root";

/// What `--volume` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    host: PathBuf,
    guest: GuestFolder,
    read_only: bool,
}

impl Volume {
    /// `HOST:GUEST`, with `:ro` or `:rw` behind it. The host's path may have colons in it.
    pub(super) fn parse(text: OsString) -> Result<Self, String> {
        let bytes = text.as_bytes();
        let (bytes, read_only) = match (bytes.strip_suffix(b":ro"), bytes.strip_suffix(b":rw")) {
            (Some(rest), _) => (rest, true),
            (None, rest) => (rest.unwrap_or(bytes), false),
        };
        let form = || {
            "it is a directory here and one in the guest, such as .:/work, and may end with :ro".to_owned()
        };
        let colon = bytes.iter().rposition(|byte| *byte == b':').ok_or_else(form)?;
        let (host, guest) =
            (bytes.get(..colon).unwrap_or_default(), bytes.get(colon + 1..).unwrap_or_default());
        if host.is_empty() || !guest.starts_with(b"/") {
            return Err(form());
        }
        let guest = OsStr::from_bytes(guest).to_str().ok_or("the guest's path is no UTF-8")?;
        // As `--share` has them. Taken for a part of the path, the share would be writable.
        if let Some((guest, options)) = guest.split_once(',') {
            let ro = if read_only || options.split(',').any(|option| option == "ro") { ":ro" } else { "" };
            let host = String::from_utf8_lossy(host);
            return Err(format!("options of --volume follow a colon; write {host}:{guest}{ro}"));
        }
        let guest = guest.parse().map_err(|error| format!("{error}"))?;
        Ok(Volume { host: OsStr::from_bytes(host).into(), guest, read_only })
    }
}

/// Adds the shares of a run to its machine. That of `--root` is the last one.
pub(super) fn share(args: &RunArgs, spec: &mut Spec) -> Result<(), RunError> {
    add_shares(args, spec)?;
    let asked = spec.share.len();
    if asked > MOST_SHARES { Err(RunError::Shares { asked }) } else { Ok(()) }
}

fn add_shares(args: &RunArgs, spec: &mut Spec) -> Result<(), RunError> {
    for Volume { host, guest, read_only } in &args.volume {
        let mut share = ShareSpec::new(host).mounted_at(guest.clone());
        share.read_only = *read_only;
        spec.share.push(share);
        is_folder("volume", host)?;
    }
    let Some(root) = &args.root else { return Ok(()) };
    is_folder("root", root)?;
    // A guest that is kept has its files in its memory. Without a busybox there is nobody to mount them.
    let is_shared = args.warm.is_none() && busybox::find(&std::env::var("PATH").unwrap_or_default()).is_ok();
    if let Some(tag) = ROOT_TAG.parse().ok().filter(|_| is_shared || args.root_rw) {
        let mut share = ShareSpec::new(root).with_tag(tag);
        share.read_only = !args.root_rw;
        spec.share.push(share);
    }
    Ok(())
}

fn is_folder(option: &'static str, path: &Path) -> Result<(), RunError> {
    let found = fs::metadata(path).map_err(|source| RunError::Read { path: path.to_path_buf(), source })?;
    if found.is_dir() { Ok(()) } else { Err(RunError::NotADirectory { option, path: path.to_path_buf() }) }
}

/// Whether the guest can have its files from a share.
pub(super) fn has_root(spec: &Spec) -> bool {
    let tag = spec.share.last().and_then(|share| share.tag.as_ref());
    tag.is_some_and(|tag| tag.as_str() == ROOT_TAG)
}

/// What init mounts: three lines for each share, its tag, options and folder.
pub(super) fn list(spec: &Spec) -> String {
    let lines = spec.shares().filter_map(|(tag, share)| {
        let options = if share.read_only { "ro" } else { "rw" };
        Some(format!("{tag}\n{options}\n{}\n", share.mount.as_ref()?.as_str()))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<(String, String, bool), String> {
        let volume = Volume::parse(text.into())?;
        Ok((volume.host.display().to_string(), volume.guest.as_str().to_owned(), volume.read_only))
    }

    #[test]
    fn volume_is_said_as_to_podman() {
        let is = |host: &str, guest: &str, read_only| Ok((host.to_owned(), guest.to_owned(), read_only));
        assert_eq!(parsed(".:/work"), is(".", "/work", false));
        assert_eq!(parsed("/a:b:/my work:ro"), is("/a:b", "/my work", true));
        assert_eq!(parsed("~/x:/y:rw"), is("~/x", "/y", false));
        for wrong in ["", "work", ":/work", "a:work", "a:", "a:ro", "a:/work:z"] {
            assert!(parsed(wrong).unwrap_err().contains("such as .:/work"), "{wrong}");
        }
        assert!(parsed(".:/work,ro").unwrap_err().ends_with("write .:/work:ro"));
        assert!(parsed(".:/work,rw").unwrap_err().ends_with("write .:/work"));
    }

    #[test]
    fn shares_are_mounted_where_they_are_said_to_be() {
        let share = |text: &str| text.parse().unwrap();
        let mut spec = Spec::new("k").with_share(share("src")).with_share(share("a:/mnt,ro"));
        assert_eq!(list(&spec), "share1\nro\n/mnt\n");
        assert!(!has_root(&spec));
        spec.share.push(ShareSpec::new("r").with_tag(ROOT_TAG.parse().unwrap()));
        assert!(has_root(&spec));
        assert_eq!(list(&spec), "share1\nro\n/mnt\n");
    }
}
