//! Formats of disk images.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Format of a disk image. It comes from `format=` or from the file's ending, never from its content: what a guest has written to
/// a raw disk may look like any format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// The bytes of the disk, as on a block device.
    #[default]
    Raw,
    /// QEMU's format, version 2 or 3: it takes the space that is used, and may lie on a backing file.
    Qcow2,
}

impl Format {
    /// The format that the ending says: `.qcow2`; everything else is raw.
    pub fn of(path: &Path) -> Self {
        match path.extension() {
            Some(ending) if ending.eq_ignore_ascii_case("qcow2") => Format::Qcow2,
            _ => Format::Raw,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        let formats = [Format::Raw, Format::Qcow2];
        formats.into_iter().find(|format| format.name() == text).ok_or_else(|| UnknownFormat(text.into()))
    }
}

/// Not a format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a format of disk images that is known here; write `raw` or `qcow2`")]
#[non_exhaustive]
pub struct UnknownFormat(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ending_says_the_format() {
        for (path, format) in [
            ("vm0.raw", Format::Raw),
            ("a.b/cloud.qcow2", Format::Qcow2),
            ("CLOUD.QCOW2", Format::Qcow2),
            ("qcow2", Format::Raw),
            ("/dev/vg0/qcow2", Format::Raw),
            ("vm0.qcow2.img", Format::Raw),
        ] {
            assert_eq!(Format::of(path.as_ref()), format, "{path}");
        }
    }

    #[test]
    fn names_are_read_and_others_refused() {
        assert_eq!("qcow2".parse(), Ok(Format::Qcow2));
        assert_eq!(Format::Raw.to_string(), "raw");
        let said = "vdi".parse::<Format>().unwrap_err().to_string();
        assert!(said.contains("vdi") && said.contains("raw") && said.contains("qcow2"), "{said}");
    }
}
