//! Feature bits of a header of version 3.

use serde::Serialize;

use super::bytes::Bytes;
use super::extensions::FeatureName;
use crate::words::text;

pub(crate) const DIRTY: u64 = 1 << 0;
pub(crate) const CORRUPT: u64 = 1 << 1;
pub(crate) const DATA_FILE: u64 = 1 << 2;
pub(crate) const COMPRESSION_TYPE: u64 = 1 << 3;
pub(crate) const EXTENDED_L2: u64 = 1 << 4;
/// Incompatible features that have a name here.
pub(crate) const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION_TYPE | EXTENDED_L2;
const LAZY_REFCOUNTS: u64 = 1 << 0;
pub(crate) const BITMAPS: u64 = 1 << 0;
const DATA_FILE_RAW: u64 = 1 << 1;
/// In the table of names: which of the three sets of bits.
const INCOMPATIBLE: u8 = 0;

/// What the feature bits say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Features {
    /// Reference counts may be out of date.
    pub dirty: bool,
    /// Some program found the image damaged.
    pub corrupt: bool,
    /// The data is in another file.
    #[serde(skip)]
    pub data_file: bool,
    /// Clusters have subclusters.
    pub extended_l2: bool,
    /// A program may keep reference counts back.
    pub lazy_refcounts: bool,
    /// There are dirty bitmaps that are up to date. Writing to the image makes them worthless, and clears this.
    pub bitmaps: bool,
    /// The external data file is a raw image.
    pub data_file_raw: bool,
    /// Incompatible features that are not known, by the names that the image gives them, printable.
    pub unknown: Vec<String>,
    /// Their bits.
    #[serde(skip)]
    unknown_bits: u64,
    /// Features that a program clears if it writes and does not know them.
    #[serde(skip)]
    pub(crate) autoclear: u64,
}

impl Features {
    pub(super) fn read(bytes: Bytes<'_>) -> Result<Features, String> {
        let (incompatible, compatible, autoclear) = (bytes.u64(72)?, bytes.u64(80)?, bytes.u64(88)?);
        Ok(Features {
            dirty: incompatible & DIRTY != 0,
            corrupt: incompatible & CORRUPT != 0,
            data_file: incompatible & DATA_FILE != 0,
            extended_l2: incompatible & EXTENDED_L2 != 0,
            lazy_refcounts: compatible & LAZY_REFCOUNTS != 0,
            bitmaps: autoclear & BITMAPS != 0,
            data_file_raw: autoclear & DATA_FILE_RAW != 0,
            unknown: Vec::new(),
            unknown_bits: incompatible & !KNOWN,
            autoclear,
        })
    }

    /// Gives the unknown bits the names that the image has for them.
    pub(super) fn named(mut self, names: &[FeatureName]) -> Features {
        for bit in (0..64).filter(|bit| self.unknown_bits & (1 << bit) != 0) {
            let name = names.iter().find(|name| name.set == INCOMPATIBLE && name.bit == bit);
            self.unknown.push(name.map_or_else(|| format!("bit {bit}"), |name| text(&name.name)));
        }
        self
    }
}
