//! An image: a chain of layers, open, with the bytes of its disk.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping};

use crate::backing::identity;
use crate::chain::{self, Found};
use crate::order::Order;
use crate::tables::Tables;
use crate::{Format, Header, ImageError, ImageFile, ImageOptions, Layer, Opener};

/// An open image: the top file and the backing files beneath.
///
/// Metadata that was changed is in memory until [`Image::flush`]; dropping the image brings it to the file, but tells nobody if
/// that fails.
#[derive(Debug)]
pub struct Image {
    pub(crate) access: FormatAccess<ImageFile>,
    layers: Vec<Layer>,
    files: Vec<ImageFile>,
    write: bool,
    /// Clusters were given back in memory, and mappings to them may still be in the file.
    freed: AtomicBool,
}

impl Image {
    /// Opens an image and its backing files. All headers are checked before anything else is read.
    pub fn open(path: &Path, options: &ImageOptions, opener: &mut dyn Opener) -> Result<Image, ImageError> {
        let mut found = chain::find(path, options, opener)?.into_iter();
        let Some(top) = found.next() else {
            return Err(ImageError::Unsupported {
                path: path.into(),
                reason: "there is no such image".into(),
            });
        };
        let mut below = None;
        for layer in found.rev() {
            below = Some(Image::build(layer, below, false)?);
        }
        Image::build(top, below, options.write)
    }

    /// Puts an open qcow2 file on an open image, whatever backing file its header names. This is how a temporary overlay is made,
    /// and an overlay on a disk that is open already.
    pub fn on(top: File, path: &Path, write: bool, below: Image) -> Result<Image, ImageError> {
        let found = Found::new(top, path, Format::Qcow2)?;
        for file in below.files() {
            let metadata = file.file().metadata().map_err(ImageError::io(file.path(), "look at"))?;
            if identity(&metadata) == found.identity {
                return Err(ImageError::Circle { path: file.path().into(), by: path.into() });
            }
        }
        Image::build(found, Some(below), write)
    }

    /// An image of one open file, without what its header may name as a backing file.
    pub fn alone(file: File, path: &Path, format: Format, write: bool) -> Result<Image, ImageError> {
        Image::build(Found::new(file, path, format)?, None, write)
    }

    fn build(found: Found, below: Option<Image>, write: bool) -> Result<Image, ImageError> {
        let Found { file, layer, .. } = found;
        let failed = |source| ImageError::Io { path: layer.path.clone(), action: "open", source };
        let (below, mut layers, mut files) = match below {
            Some(Image { access, layers, files, .. }) => (Some(access), layers, files),
            None => (None, Vec::new(), Vec::new()),
        };
        let tables = match &layer.header {
            Some(header) if write => Some(prepare(&file, &layer.path, header)?),
            _ => None,
        };
        let file = ImageFile::new(file, &layer.path, layers.len());
        let access = match layer.format {
            Format::Raw => FormatAccess::new(Raw::open_image(file.clone(), write).map_err(failed)?),
            Format::Qcow2 => {
                let builder = Qcow2::builder(file.clone()).write(write).backing(below).data_file(None);
                FormatAccess::new(builder.open(DenyImplicitOpenGate::default()).map_err(failed)?)
            }
        };
        if let (true, Some(header), Some(tables)) = (write, &layer.header, tables) {
            file.keep_order(Order::new(header, tables));
        }
        layers.insert(0, layer);
        files.insert(0, file);
        Ok(Image { access, layers, files, write, freed: AtomicBool::new(false) })
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.access.size()
    }

    /// The mappings of the disk, for an engine that moves the data itself.
    pub fn access(&self) -> &FormatAccess<ImageFile> {
        &self.access
    }

    /// The layers, top first, as they were when they were opened.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The open files, in the order of the layers.
    pub fn files(&self) -> &[ImageFile] {
        &self.files
    }

    /// The top layer.
    pub fn top(&self) -> Option<&Layer> {
        self.layers.first()
    }

    /// The path of the top file.
    pub fn path(&self) -> &Path {
        self.top().map_or(Path::new(""), |layer| &layer.path)
    }

    /// The format of the top file.
    pub fn format(&self) -> Format {
        self.top().map_or(Format::Raw, |layer| layer.format)
    }

    /// The header of the top file, as it was when it was opened.
    pub fn header(&self) -> Option<&Header> {
        self.top()?.header.as_ref()
    }

    /// Whether the image may be written.
    pub fn is_writable(&self) -> bool {
        self.write
    }

    /// Bytes that the top file takes on its disk now.
    pub fn used(&self) -> io::Result<u64> {
        self.files.first().map_or(Ok(0), |top| crate::storage::used(top.file()))
    }

    /// Reads the disk; fewer bytes at its end.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = usize::try_from(self.size().saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = buffer.len().min(left);
        let part = buffer.get_mut(..count).unwrap_or_default();
        if !part.is_empty() {
            self.access.read(part, offset)?;
        }
        Ok(count)
    }

    /// Writes all bytes, which must lie inside of the disk.
    pub fn write_at(&self, mut buffer: &[u8], mut offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.size());
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        while offset < end {
            let piece = self.end_of_table(offset).min(end) - offset;
            let (data, rest) = buffer
                .split_at_checked(usize::try_from(piece).unwrap_or(usize::MAX))
                .unwrap_or((buffer, &[]));
            let frees = self.is_anything_compressed(offset, piece)?;
            self.before_allocation()?;
            self.access.write(data, offset)?;
            if frees {
                self.freed();
            }
            (buffer, offset) = (rest, offset + piece);
        }
        Ok(())
    }

    /// Where the L2 table with this offset ends. Work of one call on one table never sees what it gave back itself.
    pub(crate) fn end_of_table(&self, offset: u64) -> u64 {
        let Some(header) = self.header() else { return u64::MAX };
        let table = 1 << (2 * header.cluster_bits - 3);
        (offset - offset % table).saturating_add(table)
    }

    pub(crate) fn is_anything_compressed(&self, mut offset: u64, length: u64) -> io::Result<bool> {
        let end = offset.saturating_add(length);
        while self.header().is_some() && offset < end {
            let (mapping, length) = self.access.get_mapping(offset, end - offset)?;
            if length == 0 || matches!(mapping, Mapping::Special { .. }) {
                return Ok(length > 0);
            }
            offset += length;
        }
        Ok(false)
    }

    /// To be called before something may be allocated: what was given back is given back in the file too, so that nothing there
    /// leads to what stands in its place next.
    pub(crate) fn before_allocation(&self) -> io::Result<()> {
        if self.freed.swap(false, Ordering::AcqRel) {
            let done = self.access.flush();
            if done.is_err() {
                self.freed();
            }
            return done;
        }
        Ok(())
    }

    /// Something was discarded, or written over compressed data.
    pub(crate) fn freed(&self) {
        self.freed.store(true, Ordering::Release);
    }

    /// Brings everything to the files, and the files to their disk.
    pub fn flush(&self) -> io::Result<()> {
        if !self.write {
            return Ok(());
        }
        self.freed.store(false, Ordering::Release);
        if let Err(error) = self.access.flush() {
            self.freed();
            return Err(error);
        }
        self.access.sync()
    }
}

/// Makes an image ready to be written.
fn prepare(file: &File, path: &Path, header: &Header) -> Result<Tables, ImageError> {
    header.check_writable(path)?;
    let tables = Tables::read(file, path, header)?;
    header.clear_features(file, path).map_err(ImageError::io(path, "write"))?;
    Ok(tables)
}
