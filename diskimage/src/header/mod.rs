//! The qcow2 header, read and checked before anything else of an image is believed.
//!
//! Names of fields and limits are those of QEMU's `docs/interop/qcow2.txt`. What is read here is bounded: the first cluster, at
//! most 2 MiB.

mod bytes;
pub(crate) mod extensions;
pub(crate) mod features;
mod kinds;
mod rename;
mod tables;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use features::Features;
pub use kinds::{Compression, Encryption};
pub use rename::set_backing_name;
pub(crate) use tables::{MOST_L1_BYTES, MOST_REFCOUNT_TABLE_BYTES, MOST_SNAPSHOTS, largest};

use crate::layout::Table;
use crate::words::{name, text};
use crate::{Format, ImageError};
pub(crate) use bytes::Bytes;
use extensions::Extensions;

/// The first four bytes of a qcow2 file.
pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Cluster sizes, as bits.
pub(crate) const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Length of a header of version 2; one of version 3 says its own.
pub(crate) const V2_LENGTH: u64 = 72;
pub(crate) const V3_LENGTH: u64 = 104;
/// Where the autoclear features stand.
const AUTOCLEAR: u64 = 88;
/// Longest name of a backing file.
pub(crate) const LONGEST_NAME: usize = 1023;

/// What the header of a qcow2 image says, after its checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Header {
    /// 2 or 3 (`compat` 0.10 and 1.1).
    pub version: u32,
    /// The size of a cluster, as a power of two.
    pub cluster_bits: u32,
    /// Bytes of the disk.
    pub size: u64,
    /// The file beneath.
    pub backing: Option<Backing>,
    /// Snapshots inside of the image.
    pub snapshots: u32,
    /// Bits of a reference count.
    pub refcount_bits: u32,
    /// How the data is encrypted.
    pub encryption: Option<Encryption>,
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// The file with the data, if it is not this one; empty if the header does not name it.
    pub data_file: Option<String>,
    /// Feature bits.
    #[serde(flatten)]
    pub features: Features,
    /// Entries of the L1 table, and where it begins.
    pub l1_entries: u32,
    /// Where the L1 table begins.
    pub l1_offset: u64,
    /// Clusters of the refcount table.
    pub refcount_table_clusters: u32,
    /// Where the refcount table begins.
    pub refcount_table_offset: u64,
}

/// The file beneath an image, as its header names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Backing {
    /// The name, as written. It is not to be shown or opened as it stands.
    pub name: PathBuf,
    /// Its format, as written.
    pub format: Option<String>,
}

impl Header {
    /// Reads and checks the header of an open image. It may describe what [`Header::check_supported`] refuses.
    pub fn read(file: &File, path: &Path) -> Result<Header, ImageError> {
        let length = crate::storage::length(file).map_err(ImageError::io(path, "read the size of"))?;
        let start = read_start(file, V3_LENGTH.min(length)).map_err(ImageError::io(path, "read"))?;
        if !start.starts_with(&MAGIC) {
            return Err(ImageError::NotQcow2 { path: path.into() });
        }
        let damaged = |problem: String| ImageError::Damaged { path: path.into(), problem };
        let version = Bytes(&start).u32(4).map_err(damaged)?;
        if !matches!(version, 2 | 3) {
            return Err(ImageError::Version { path: path.into(), version });
        }
        let cluster_bits = Bytes(&start).u32(20).map_err(damaged)?;
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(damaged(format!("its clusters have 2^{cluster_bits} bytes")));
        }
        let cluster =
            read_start(file, (1_u64 << cluster_bits).min(length)).map_err(ImageError::io(path, "read"))?;
        let header = Header::parse(&cluster, version, cluster_bits).map_err(damaged)?;
        header.check_tables(length).map_err(damaged)?;
        Ok(header)
    }

    /// Reads the fields; `cluster` is the first cluster, or what there is of it.
    fn parse(cluster: &[u8], version: u32, cluster_bits: u32) -> Result<Header, String> {
        let bytes = Bytes(cluster);
        let length = if version == 2 { V2_LENGTH } else { header_length(bytes, cluster_bits)? };
        let refcount_order = if version == 2 { 4 } else { bytes.u32(96)? };
        if refcount_order > 6 {
            return Err(format!("its reference counts have 2^{refcount_order} bits"));
        }
        let features = if version == 2 { Features::default() } else { Features::read(bytes)? };
        let name = backing_name(bytes, cluster_bits)?;
        let extensions = Extensions::read(bytes, length, name.as_ref().map(|name| name.offset))?;
        let compression =
            if length > V3_LENGTH { Compression::of(bytes.u8(V3_LENGTH)?) } else { Compression::Zlib };
        Ok(Header {
            version,
            cluster_bits,
            size: bytes.u64(24)?,
            backing: name.map(|name| Backing { name: name.path, format: extensions.backing_format }),
            snapshots: bytes.u32(60)?,
            refcount_bits: 1 << refcount_order,
            encryption: Encryption::of(bytes.u32(32)?),
            compression,
            data_file: features.data_file.then(|| extensions.data_file.unwrap_or_default()),
            features: features.named(&extensions.feature_names),
            l1_entries: bytes.u32(36)?,
            l1_offset: bytes.u64(40)?,
            refcount_table_clusters: bytes.u32(56)?,
            refcount_table_offset: bytes.u64(48)?,
        })
    }

    pub(crate) fn l1(&self) -> Table {
        Table { offset: self.l1_offset, entries: self.l1_entries.into() }
    }

    pub(crate) fn refcount_table(&self) -> Table {
        let entries = u64::from(self.refcount_table_clusters) << (self.cluster_bits - 3);
        Table { offset: self.refcount_table_offset, entries }
    }

    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Refuses what is not supported, by its name and with the command that mends it.
    pub fn check_supported(&self, path: &Path) -> Result<(), ImageError> {
        let path = || path.to_path_buf();
        if let Some(method) = self.encryption {
            return Err(ImageError::Encrypted { path: path(), method });
        }
        if self.features.corrupt {
            return Err(ImageError::Corrupt { path: path() });
        }
        if self.features.dirty {
            return Err(ImageError::Dirty { path: path() });
        }
        let feature = if self.features.data_file {
            let file = self.data_file.as_deref().unwrap_or_default();
            format!("an external data file (`{}`)", text(file))
        } else if self.features.extended_l2 {
            "extended L2 entries (subclusters)".into()
        } else if self.compression != Compression::Zlib {
            format!("the compression type {}", self.compression)
        } else if let Some(unknown) = self.features.unknown.first() {
            format!("the feature `{unknown}`")
        } else {
            return Ok(());
        };
        Err(ImageError::Feature { path: path(), feature })
    }

    /// Refuses to write what would be destroyed by it.
    pub(crate) fn check_writable(&self, path: &Path) -> Result<(), ImageError> {
        if self.snapshots > 0 {
            return Err(ImageError::Snapshots { path: path.into(), count: self.snapshots });
        }
        Ok(())
    }

    /// Clears the features that end with the first write by a program that does not know them: bitmaps of changed clusters. One
    /// write of eight bytes; imago would write the whole header anew, and a power cut could leave half of it.
    pub(crate) fn clear_features(&self, file: &File, path: &Path) -> std::io::Result<()> {
        if self.features.autoclear == 0 {
            return Ok(());
        }
        if self.features.bitmaps {
            log::warn!(
                "the bitmaps of changed clusters in {} are not kept: it is opened for writing",
                name(path)
            );
        }
        file.write_all_at(&[0; 8], AUTOCLEAR)?;
        file.sync_data()
    }
}

impl Backing {
    /// Its format: what the header says, or else what the name's ending says. It is never guessed from the file's content.
    pub fn format_of(&self, path: &Path) -> Result<Format, ImageError> {
        match self.format.as_deref() {
            None => Ok(Format::of(&self.name)),
            Some(word) => {
                word.parse().map_err(|_| ImageError::BackingFormat { path: path.into(), format: text(word) })
            }
        }
    }
}

struct Name {
    offset: u64,
    path: PathBuf,
}

fn header_length(bytes: Bytes<'_>, cluster_bits: u32) -> Result<u64, String> {
    let length = u64::from(bytes.u32(100)?);
    if length < V3_LENGTH || !length.is_multiple_of(8) || length > 1 << cluster_bits {
        return Err(format!("its header says that it has {length} bytes"));
    }
    Ok(length)
}

fn backing_name(bytes: Bytes<'_>, cluster_bits: u32) -> Result<Option<Name>, String> {
    let (offset, length) = (bytes.u64(8)?, u64::from(bytes.u32(16)?));
    if offset == 0 || length == 0 {
        return Ok(None);
    }
    if length > LONGEST_NAME as u64 {
        return Err(format!("the name of its backing file has {length} bytes"));
    }
    // imago refuses a name that ends with the cluster.
    if offset.checked_add(length).is_none_or(|end| end >= 1 << cluster_bits) {
        return Err("the name of its backing file is outside of the first cluster".into());
    }
    let name = std::str::from_utf8(bytes.range(offset, length)?);
    match name {
        Ok(name) if !name.contains('\0') => Ok(Some(Name { offset, path: name.into() })),
        _ => Err("the name of its backing file is no text in UTF-8".into()),
    }
}

fn read_start(file: &File, length: u64) -> std::io::Result<Vec<u8>> {
    let mut start = vec![0; usize::try_from(length).unwrap_or_default()];
    file.read_exact_at(&mut start, 0)?;
    Ok(start)
}
