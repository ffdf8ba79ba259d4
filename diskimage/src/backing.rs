//! Which file a backing name in a header means, and whether it may be opened.

use std::fs::{File, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use crate::ImageError;
use crate::header::Backing;

/// A backing file that may be opened.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Allowed {
    pub(crate) path: PathBuf,
    /// The user named it, and may mean a link or a device.
    pub(crate) named: bool,
}

/// Finds the file that the image at `image` names.
///
/// Allowed are a plain name, in the folder of the image, and what the user named. Everything else is refused, without a look at
/// the file system: to look for a file may already do something.
pub(crate) fn resolve(backing: &Backing, image: &Path, named: &[PathBuf]) -> Result<Allowed, ImageError> {
    let name = &backing.name;
    if is_protocol(name) {
        return Err(ImageError::BackingProtocol { path: image.into(), backing: name.clone() });
    }
    let folder = image.parent().unwrap_or(Path::new(""));
    let path = folder.join(name);
    let wanted = normal(&path);
    if let Some(path) = named.iter().find(|path| normal(path) == wanted) {
        return Ok(Allowed { path: path.clone(), named: true });
    }
    let mut parts = name.components();
    let is_plain = matches!(parts.next(), Some(Component::Normal(part)) if part == name.as_os_str())
        && parts.next().is_none();
    if is_plain {
        return Ok(Allowed { path, named: false });
    }
    Err(ImageError::BackingElsewhere { path: image.into(), backing: name.clone(), allowed: wanted })
}

/// Refuses what is opened on behalf of an image and is neither a file nor named by the user.
pub(crate) fn check_kind(file: &File, allowed: &Allowed, image: &Path) -> Result<(), ImageError> {
    let metadata = file.metadata().map_err(ImageError::io(&allowed.path, "look at"))?;
    let kind = metadata.file_type();
    let kind = if kind.is_file() || (kind.is_block_device() && allowed.named) {
        return Ok(());
    } else if kind.is_block_device() {
        "a block device"
    } else {
        return Err(not_a_file(&allowed.path));
    };
    Err(ImageError::BackingKind { path: image.into(), backing: allowed.path.clone(), kind })
}

/// Refuses a top file that can hold no image.
pub(crate) fn check_top(file: &File, path: &Path) -> Result<(), ImageError> {
    let kind = file.metadata().map_err(ImageError::io(path, "look at"))?.file_type();
    if kind.is_file() || kind.is_block_device() { Ok(()) } else { Err(not_a_file(path)) }
}

fn not_a_file(path: &Path) -> ImageError {
    ImageError::Unsupported { path: path.into(), reason: "it is neither a file nor a block device".into() }
}

/// Which file it is, by whatever name.
pub(crate) fn identity(metadata: &Metadata) -> (u64, u64) {
    if metadata.file_type().is_block_device() {
        (0, metadata.rdev())
    } else {
        (metadata.dev(), metadata.ino())
    }
}

/// `nbd://`, `json:` and everything else that QEMU takes for a protocol: a colon before the first slash.
fn is_protocol(name: &Path) -> bool {
    let text = name.to_string_lossy();
    text.split('/').next().is_some_and(|start| start.contains(':'))
}

/// A path from the root, without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut whole = PathBuf::new();
    for part in std::path::absolute(path).as_deref().unwrap_or(path).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                whole.pop();
            }
            part => whole.push(part),
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(name: &str, named: &[&str]) -> Result<Allowed, ImageError> {
        let backing = Backing { name: name.into(), format: None };
        resolve(&backing, Path::new("/vms/a/top.qcow2"), &named.iter().map(PathBuf::from).collect::<Vec<_>>())
    }

    #[test]
    fn names_in_the_folder_are_allowed_and_others_only_if_named() {
        assert_eq!(
            resolved("base.raw", &[]).unwrap(),
            Allowed { path: "/vms/a/base.raw".into(), named: false }
        );
        for elsewhere in
            ["../base.raw", "/etc/shadow", "b/base.raw", "./base.raw", "..", ".", "/dev/sda", "base.raw/"]
        {
            assert!(
                matches!(resolved(elsewhere, &[]), Err(ImageError::BackingElsewhere { .. })),
                "{elsewhere}"
            );
        }
        for (name, named) in [
            ("../base.raw", "/vms/base.raw"),
            ("/vms/b/base.raw", "/vms/b/base.raw"),
            ("base.raw", "/vms/a/base.raw"),
        ] {
            assert_eq!(resolved(name, &["/x", named]).unwrap(), Allowed { path: named.into(), named: true });
        }
    }

    #[test]
    fn protocols_are_refused_even_if_a_user_names_them() {
        for name in
            ["nbd://host/x", "json:{\"file\":1}", "https://a/b", "fat:rw:/tmp", "file:base.raw", "a:b"]
        {
            assert!(matches!(resolved(name, &[name]), Err(ImageError::BackingProtocol { .. })), "{name}");
        }
        assert!(resolved("/vms/a:b", &["/vms/a:b"]).is_ok(), "a colon behind a slash is part of a name");
    }
}
