//! Header extensions: format of the backing file, names of features, name of the data file. Others are skipped.

use super::bytes::Bytes;

pub(crate) const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const DATA_FILE: u32 = 0x4441_5441;
/// Bytes of an entry in the table of features' names.
const FEATURE_NAME: usize = 48;
/// More extensions than any program writes.
const MOST: usize = 128;
/// Names of features that are kept: one for every bit.
const MOST_NAMES: usize = 3 * 64;

/// What the extensions say.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) backing_format: Option<String>,
    pub(super) data_file: Option<String>,
    pub(super) feature_names: Vec<FeatureName>,
}

/// An image's name for a feature bit.
#[derive(Debug)]
pub(super) struct FeatureName {
    pub(super) set: u8,
    pub(super) bit: u8,
    pub(super) name: String,
}

impl Extensions {
    /// Reads the extensions that begin at `offset`, behind the header, and end before the backing file's name.
    pub(super) fn read(bytes: Bytes<'_>, mut offset: u64, name: Option<u64>) -> Result<Extensions, String> {
        let mut extensions = Extensions::default();
        // Version 2 may have none at all, and then the file's name stands here.
        let end = name.unwrap_or(bytes.0.len() as u64).min(bytes.0.len() as u64);
        for _ in 0..MOST {
            if offset.saturating_add(8) > end {
                return Ok(extensions);
            }
            let (kind, length) = (bytes.u32(offset)?, u64::from(bytes.u32(offset + 4)?));
            if kind == END {
                return Ok(extensions);
            }
            let data = offset + 8;
            if data.saturating_add(length) > end {
                return Err("a header extension is outside of the first cluster".into());
            }
            extensions.take(kind, bytes.range(data, length)?)?;
            offset = data + length.next_multiple_of(8);
        }
        Err(format!("it has more than {MOST} header extensions"))
    }

    fn take(&mut self, kind: u32, data: &[u8]) -> Result<(), String> {
        match kind {
            BACKING_FORMAT => self.backing_format = Some(one_text(self.backing_format.take(), data)?),
            DATA_FILE => self.data_file = Some(one_text(self.data_file.take(), data)?),
            FEATURE_NAMES => {
                let left = MOST_NAMES.saturating_sub(self.feature_names.len());
                self.feature_names
                    .extend(data.chunks_exact(FEATURE_NAME).take(left).filter_map(FeatureName::read));
            }
            _ => {}
        }
        Ok(())
    }
}

/// The text of an extension of which there may be one.
fn one_text(before: Option<String>, data: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(data).map_err(|_| "a header extension is no text in UTF-8")?;
    match before {
        Some(before) if before != text => Err("two header extensions contradict each other".into()),
        _ => Ok(text.into()),
    }
}

impl FeatureName {
    fn read(entry: &[u8]) -> Option<FeatureName> {
        let ([set, bit], name) = entry.split_first_chunk::<2>()?;
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(FeatureName { set: *set, bit: *bit, name: String::from_utf8_lossy(name).into_owned() })
    }
}
