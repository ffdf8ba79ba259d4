//! Opens the files of a chain, top first, and checks each before the next.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::backing::{Allowed, check_kind, check_top, identity, resolve};
use crate::storage::{length, used};
use crate::{Access, Format, Header, ImageError, ImageOptions, Opener};

/// Most layers of a chain.
pub const MOST_LAYERS: usize = 64;
/// Most memory for the tables of a chain.
const MOST_MEMORY: u64 = 1 << 30;
/// L2 tables and refcount blocks of a layer that imago keeps in memory.
const CACHED: u64 = 128 + 32;

/// One file of an image.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Layer {
    /// Its path.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Bytes of the disk in it.
    pub size: u64,
    /// Bytes that the file took on its disk when it was opened.
    pub used: u64,
    /// What its qcow2 header said when it was opened.
    pub header: Option<Header>,
}

/// An open file of a chain, with what is known of it.
pub(crate) struct Found {
    pub(crate) file: File,
    pub(crate) layer: Layer,
    pub(crate) identity: (u64, u64),
}

impl Layer {
    /// Reads what an open file says of itself. It may be an image that is not supported: see [`Header::check_supported`].
    pub fn read(file: &File, path: &Path, format: Format) -> Result<Layer, ImageError> {
        let header = match format {
            Format::Raw => None,
            Format::Qcow2 => Some(Header::read(file, path)?),
        };
        let size = match &header {
            Some(header) => header.size,
            None => length(file).map_err(ImageError::io(path, "read the size of"))?,
        };
        let used = used(file).map_err(ImageError::io(path, "look at"))?;
        Ok(Layer { path: path.into(), format, size, used, header })
    }
}

impl Found {
    pub(crate) fn new(file: File, path: &Path, format: Format) -> Result<Found, ImageError> {
        let layer = Layer::read(&file, path, format)?;
        if let Some(header) = &layer.header {
            header.check_supported(path)?;
        }
        let metadata = file.metadata().map_err(ImageError::io(path, "look at"))?;
        Ok(Found { file, layer, identity: identity(&metadata) })
    }
}

/// Opens all files of an image, top first.
pub(crate) fn find(
    path: &Path,
    options: &ImageOptions,
    opener: &mut dyn Opener,
) -> Result<Vec<Found>, ImageError> {
    let file = opener.open(path, Access::named(options.write))?;
    check_top(&file, path)?;
    let mut chain = vec![Found::new(file, path, options.format)?];
    while let Some((allowed, format)) = below(&chain, &options.backing)? {
        if chain.len() >= MOST_LAYERS {
            return Err(ImageError::TooDeep { path: path.into(), limit: MOST_LAYERS });
        }
        let by = chain.last().map(|found| found.layer.path.clone()).unwrap_or_default();
        refuse_circle(&chain, &allowed, &by)?;
        let file = opener.open(&allowed.path, Access { write: false, named: allowed.named })?;
        check_kind(&file, &allowed, &by)?;
        chain.push(Found::new(file, &allowed.path, format)?);
    }
    let memory =
        chain.iter().filter_map(|found| found.layer.header.as_ref()).map(memory).fold(0, u64::saturating_add);
    if memory > MOST_MEMORY {
        let reason =
            format!("its tables and those of its backing files would take {} MiB of memory", memory >> 20);
        return Err(ImageError::Unsupported { path: path.into(), reason });
    }
    Ok(chain)
}

/// Memory that the tables of a layer take. Of the layer that is written to, what is on the medium is known as well, with the places
/// of all L2 tables: about three times the L1 table. No layer is counted with less.
fn memory(header: &Header) -> u64 {
    let tables = header.l1().length().saturating_mul(4) + header.refcount_table().length().saturating_mul(2);
    tables + CACHED.min(u64::from(header.l1_entries) + 32) * header.cluster_size()
}

/// The file beneath the last one.
fn below(chain: &[Found], named: &[PathBuf]) -> Result<Option<(Allowed, Format)>, ImageError> {
    let Some(last) = chain.last().map(|found| &found.layer) else { return Ok(None) };
    let Some(backing) = last.header.as_ref().and_then(|header| header.backing.as_ref()) else {
        return Ok(None);
    };
    let allowed = resolve(backing, &last.path, named)?;
    Ok(Some((allowed, backing.format_of(&last.path)?)))
}

/// A file that is open already is not opened again: its lock would be in the way, and say something else.
fn refuse_circle(chain: &[Found], allowed: &Allowed, by: &Path) -> Result<(), ImageError> {
    let path = &allowed.path;
    let metadata = if allowed.named { std::fs::metadata(path) } else { std::fs::symlink_metadata(path) };
    // Whatever is wrong with it, the opener says it better.
    let Ok(found) = metadata.map(|metadata| identity(&metadata)) else { return Ok(()) };
    if chain.iter().any(|open| open.identity == found) {
        return Err(ImageError::Circle { path: path.clone(), by: by.into() });
    }
    Ok(())
}
