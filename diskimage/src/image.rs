//! An image: a chain of layers, open, with the bytes of its disk.

use std::fs::File;
use std::io;
use std::path::Path;

use imago::FormatAccess;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatDriverBuilder};

use crate::chain::{self, Found};
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
        Image::build(Found::new(top, path, Format::Qcow2)?, Some(below), write)
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
        let file = ImageFile::new(file, &layer.path, layers.len());
        let access = match layer.format {
            Format::Raw => FormatAccess::new(Raw::open_image(file.clone(), write).map_err(failed)?),
            Format::Qcow2 => {
                let builder = Qcow2::builder(file.clone()).write(write).backing(below).data_file(None);
                FormatAccess::new(builder.open(DenyImplicitOpenGate::default()).map_err(failed)?)
            }
        };
        layers.insert(0, layer);
        files.insert(0, file);
        Ok(Image { access, layers, files, write })
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
    pub fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.access.write(buffer, offset)
    }

    /// Brings everything to the files, and the files to their disk.
    pub fn flush(&self) -> io::Result<()> {
        if !self.write {
            return Ok(());
        }
        self.access.flush()?;
        self.access.sync()
    }
}
