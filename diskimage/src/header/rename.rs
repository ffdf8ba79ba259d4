//! Another name for the backing file in the header of an image that nobody else has open.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::bytes::Bytes;
use super::{Header, LONGEST_NAME, backing_name, read_start};
use crate::ImageError;

/// Where the length of the name stands; its offset stands at 8.
const NAME_LENGTH: u64 = 16;

/// Writes `name` to the header of the image `file` in place of the name of its backing file. For a copy at a new place: the file beneath
/// stays the same. Nothing is brought to the disk, and the two writes are not one: nobody may use the image yet.
///
/// # Errors
/// The image has no backing file, or its first cluster no room for the name.
pub fn set_backing_name(file: &File, path: &Path, name: &str) -> Result<(), ImageError> {
    let header = Header::read(file, path)?;
    let unsupported = |reason: String| ImageError::Unsupported { path: path.into(), reason };
    let cluster = read_start(file, header.cluster_size()).map_err(ImageError::io(path, "read"))?;
    let present = backing_name(Bytes(&cluster), header.cluster_bits)
        .map_err(|problem| ImageError::Damaged { path: path.into(), problem })?
        .ok_or_else(|| unsupported("it has no backing file".into()))?;
    // Header and extensions end before the present name.
    let room = (header.cluster_size().saturating_sub(present.offset + 1)).min(LONGEST_NAME as u64);
    let length = u32::try_from(name.len()).ok().filter(|length| u64::from(*length) <= room && *length > 0);
    let Some(length) = length.filter(|_| !name.contains('\0')) else {
        return Err(unsupported(format!(
            "the name of its backing file would have {} bytes; 1 to {room} are possible",
            name.len()
        )));
    };
    file.write_all_at(name.as_bytes(), present.offset)
        .and_then(|()| file.write_all_at(&length.to_be_bytes(), NAME_LENGTH))
        .map_err(ImageError::io(path, "write"))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::{CreateOptions, Format, create};

    fn image(cluster: u32, name: Option<&str>) -> File {
        let file = tempfile::tempfile().unwrap();
        let mut options = CreateOptions::new(Format::Qcow2, 1 << 20).cluster_size(cluster);
        if let Some(name) = name {
            options = options.backing(name, Format::Raw);
        }
        create(&file, Path::new("top.qcow2"), &options).unwrap();
        file
    }

    fn named(file: &File) -> (PathBuf, Option<String>) {
        let backing = Header::read(file, Path::new("top.qcow2")).unwrap().backing.unwrap();
        (backing.name, backing.format)
    }

    #[test]
    fn name_is_longer_or_shorter_afterwards_and_all_else_is_kept() {
        let file = image(64 << 10, Some("base.raw"));
        let before = Header::read(&file, Path::new("")).unwrap();
        for name in ["/a/rather/longer/path/to/base.raw", "b", &"x".repeat(1023)] {
            set_backing_name(&file, Path::new("top.qcow2"), name).unwrap();
            assert_eq!(named(&file), (name.into(), Some("raw".into())));
        }
        set_backing_name(&file, Path::new("top.qcow2"), "base.raw").unwrap();
        assert_eq!(Header::read(&file, Path::new("")).unwrap(), before);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_changes_nothing() {
        let small = image(512, Some("base.raw"));
        let before = named(&small);
        for name in ["x".repeat(400), String::new(), "a\0b".into()] {
            let said = set_backing_name(&small, Path::new("top.qcow2"), &name).unwrap_err().to_string();
            assert!(said.contains("are possible"), "{said}");
        }
        assert_eq!(named(&small), before);
        let alone = image(64 << 10, None);
        let said = set_backing_name(&alone, Path::new("top.qcow2"), "base.raw").unwrap_err().to_string();
        assert!(said.contains("no backing file"), "{said}");
    }
}
