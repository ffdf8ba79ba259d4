//! Folders of the host in the guest of a command: `--volume`, and the one of `--root`.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use diskimage::shell_word;

use super::args::{RunArgs, is_volume};
use super::busybox::Busybox;
use super::error::RunError;
use crate::host::share::ShareError;
use crate::shown::path as shown;
use crate::spec::{GuestFolder, MOST_SHARES, ShareOrigin, ShareSpec, Spec};

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
        let wrong = || wrong_form(bytes, read_only);
        let colon = bytes.iter().rposition(|byte| *byte == b':').ok_or_else(wrong)?;
        let (host, guest) =
            (bytes.get(..colon).unwrap_or_default(), bytes.get(colon + 1..).unwrap_or_default());
        if host.is_empty() || !guest.starts_with(b"/") {
            return Err(wrong());
        }
        let guest = OsStr::from_bytes(guest).to_str().ok_or("the guest's path is no UTF-8")?;
        // As `--share` has them. Taken for a part of the path, the share would be writable.
        if let Some((guest, options)) = guest.split_once(',') {
            let ro = if read_only || options.split(',').any(|option| option == "ro") { ":ro" } else { "" };
            let host = shown(Path::new(OsStr::from_bytes(host)));
            return Err(format!("options of --volume follow a colon; write {host}:{guest}{ro}"));
        }
        let guest = guest.parse().map_err(|error| format!("{error}"))?;
        Ok(Volume { host: OsStr::from_bytes(host).into(), guest, read_only })
    }
}

/// What is wrong with `bytes`, which are no `HOST:/GUEST`.
fn wrong_form(bytes: &[u8], read_only: bool) -> String {
    const FORM: &str = "it is a directory here and one in the guest, such as .:/work, and may end with :ro";
    let show = |bytes: &[u8]| shown(Path::new(OsStr::from_bytes(bytes)));
    let Some(colon) = bytes.iter().rposition(|byte| *byte == b':') else {
        return format!("it does not say where in the guest: {FORM}");
    };
    let (host, last) = (bytes.get(..colon).unwrap_or_default(), bytes.get(colon + 1..).unwrap_or_default());
    if host.is_empty() || last.is_empty() {
        let missing = if host.is_empty() { "here, in front of" } else { "of the guest, behind" };
        return format!("there is no directory {missing} the colon: {FORM}");
    }
    let ro: fn(bool) -> &'static [u8] = |read_only| if read_only { b":ro" } else { b"" };
    let write = |parts: &[&[u8]]| shell_word(Path::new(OsStr::from_bytes(&parts.concat())));
    if !is_volume(OsStr::from_bytes(host)) {
        let written = write(&[host, b":/", last, ro(read_only)]);
        return format!("`{}` is no absolute path of the guest: write {written}", show(last));
    }
    let mut options = last.split(|byte| *byte == b',');
    let read_only = read_only || options.clone().any(|option| option == b"ro");
    let odd = options.find(|option| !matches!(*option, b"ro" | b"rw")).unwrap_or_default();
    let why = match odd {
        b"z" | b"Z" | b"cached" | b"delegated" | b"consistent" => "is not needed, leave it out",
        b"" => "is no option",
        _ => "is no option of --volume, which has ro and rw",
    };
    format!("`{}` {why}: write {}", show(odd), write(&[host, ro(read_only)]))
}

/// Adds the shares of a run to its machine. That of `--root` is the last one.
pub(super) fn share(args: &RunArgs, spec: &mut Spec, busybox: &Busybox) -> Result<(), RunError> {
    add_shares(args, spec, busybox)?;
    let asked = spec.share.len();
    if asked > MOST_SHARES { Err(RunError::Shares { asked }) } else { Ok(()) }
}

fn add_shares(args: &RunArgs, spec: &mut Spec, busybox: &Busybox) -> Result<(), RunError> {
    for Volume { host, guest, read_only } in &args.volume {
        let mut share =
            ShareSpec::new(host).mounted_at(guest.clone()).asked_by(ShareOrigin::Option("--volume"));
        share.read_only = *read_only;
        ShareError::look_at(&share)?;
        spec.share.push(share);
    }
    let Some(root) = &args.root else { return Ok(()) };
    let mut share = ShareSpec::new(root).asked_by(ShareOrigin::Option("--root"));
    // A guest that is kept has its files in its memory. Without a busybox there is nobody to mount them.
    let is_shared = args.root_rw || args.warm.is_none() && busybox.is_there();
    if let Some(tag) = ROOT_TAG.parse().ok().filter(|_| is_shared) {
        ShareError::look_at(&share)?;
        share.tag = Some(tag);
        share.read_only = !args.root_rw;
        spec.share.push(share);
    } else {
        ShareError::look_into(&share)?;
    }
    Ok(())
}

/// Refuses a folder for the files of `--out` where the guest can write by itself: it could exchange that for another meanwhile. Folders are
/// compared, not names, of which one may have several.
pub(super) fn refuse_out(args: &RunArgs, spec: &Spec, out: &Path) -> Result<(), RunError> {
    let volumes =
        args.volume.iter().filter(|volume| !volume.read_only).map(|volume| ("volume", &volume.host));
    let shares = spec.share.iter().filter(|share| !share.read_only).map(|share| ("share", &share.path));
    let root = args.root.as_ref().filter(|_| args.root_rw).map(|root| ("root-rw", root));
    let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    // It may be there, and empty.
    let parent = std::path::absolute(out).ok().and_then(|out| out.parent()?.canonicalize().ok());
    let around: Vec<_> =
        parent.iter().flat_map(|parent| parent.ancestors()).chain([out]).filter_map(identity).collect();
    match volumes
        .chain(shares)
        .chain(root)
        .find(|(_, host)| identity(host).is_some_and(|own| around.contains(&own)))
    {
        Some((option, folder)) => {
            Err(RunError::OutInShare { path: out.into(), option, folder: folder.clone() })
        }
        None => Ok(()),
    }
}

/// Whether the guest can have its files from a share.
pub(super) fn has_root(spec: &Spec) -> bool {
    let tag = spec.share.last().and_then(|share| share.tag.as_ref());
    tag.is_some_and(|tag| tag.as_str() == ROOT_TAG)
}

/// Where in the guest it does, without the `/` in front.
pub(super) fn folders(spec: &Spec) -> impl Iterator<Item = &str> {
    spec.share.iter().filter_map(|share| Some(share.mount.as_ref()?.as_str().trim_start_matches('/')))
}

/// What init mounts: three lines for each share, its tag, options and folder. A folder comes before those in it, which it would hide.
pub(super) fn list(spec: &Spec) -> String {
    let shares = spec.shares().filter_map(|(tag, share)| Some((share.mount.as_ref()?.as_str(), tag, share)));
    let mut shares: Vec<_> = shares.collect();
    shares.sort_by_key(|(folder, ..)| *folder);
    let lines = shares.into_iter().map(|(folder, tag, share)| {
        let options = if share.read_only { "ro" } else { "rw" };
        format!("{tag}\n{options}\n{folder}\n")
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
    fn folder_is_mounted_before_those_in_it() {
        let spec = ["/a:/x/y", "/b:/z", "/c:/x,ro"]
            .into_iter()
            .fold(Spec::new("k"), |spec, share| spec.with_share(share.parse().unwrap()));
        let list = list(&spec);
        let lines: Vec<_> = list.lines().collect();
        let folders: Vec<_> = lines.chunks(3).map(|share| (share[1], share[2])).collect();
        assert_eq!(folders, [("ro", "/x"), ("rw", "/x/y"), ("rw", "/z")]);
    }

    #[test]
    fn volume_is_said_as_to_podman() {
        let is = |host: &str, guest: &str, read_only| Ok((host.to_owned(), guest.to_owned(), read_only));
        assert_eq!(parsed(".:/work"), is(".", "/work", false));
        assert_eq!(parsed("/a:b:/my work:ro"), is("/a:b", "/my work", true));
        assert_eq!(parsed("~/x:/y:rw"), is("~/x", "/y", false));
        for wrong in ["", "work", "./proj", ":/work", "a:"] {
            assert!(parsed(wrong).unwrap_err().contains("such as .:/work"), "{wrong}");
        }
        for (wrong, said) in [
            ("./proj:work", "`work` is no absolute path of the guest: write ./proj:/work"),
            ("./proj:work:ro", "`work` is no absolute path of the guest: write ./proj:/work:ro"),
            ("a:/work:z", "`z` is not needed, leave it out: write a:/work"),
            ("a:/work:Z", "`Z` is not needed, leave it out: write a:/work"),
            ("a:/work:ro,z", "`z` is not needed, leave it out: write a:/work:ro"),
            ("a:/work:z,ro", "`z` is not needed, leave it out: write a:/work:ro"),
            ("a:/work:z:ro", "`z` is not needed, leave it out: write a:/work:ro"),
            ("a:/work:cached", "`cached` is not needed, leave it out: write a:/work"),
            ("a:/work:delegated", "`delegated` is not needed, leave it out: write a:/work"),
            ("a:/work:noexec", "`noexec` is no option of --volume, which has ro and rw: write a:/work"),
        ] {
            assert_eq!(parsed(wrong).unwrap_err(), said, "{wrong}");
        }
        assert!(parsed(".:/work,ro").unwrap_err().ends_with("write .:/work:ro"));
        assert!(parsed(".:/work,rw").unwrap_err().ends_with("write .:/work"));
    }

    #[test]
    fn files_come_out_where_the_guest_cannot_write() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: RunArgs,
        }
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name);
        ["work/sub", "read", "root"].iter().for_each(|name| fs::create_dir_all(path(name)).unwrap());
        std::os::unix::fs::symlink(path("work/sub"), path("link")).unwrap();
        let share = |name: &str, guest: &str| format!("{}:{guest}", path(name).display());
        let (work, read) = (share("work", "/w"), share("read", "/r:ro"));
        let root = path("root").display().to_string();
        let judge = |line: &[&str], shares: &[&str], out: &str| {
            let line = ["run"].iter().chain(line).chain(&["true"]);
            let args = <Line as clap::Parser>::parse_from(line).args;
            let spec = shares
                .iter()
                .map(|share| share.parse::<ShareSpec>().unwrap())
                .fold(Spec::new("k"), Spec::with_share);
            refuse_out(&args, &spec, &path(out)).map_err(|error| error.to_string())
        };
        let volumes = ["--volume", &work, "--volume", &read, "--root", &root];
        for out in ["work/new", "work/sub/new", "work", "work/sub", "link/new", "link/../new"] {
            let refused = judge(&volumes, &[], out).unwrap_err();
            assert!(refused.contains("work of --volume, where the guest can write"), "{out}: {refused}");
        }
        for out in ["new", "read/new", "root/new", "none/new", "worker"] {
            judge(&volumes, &[], out).unwrap();
        }
        assert!(
            judge(&["--root", &root, "--root-rw"], &[], "root/new").unwrap_err().contains("of --root-rw")
        );
        let work = path("work").display().to_string();
        assert!(judge(&[], &[&work], "work/new").unwrap_err().contains("of --share"));
        judge(&[], &[&format!("{work},ro")], "work/new").unwrap();
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
