//! Makes images.

use std::fs::File;
use std::path::Path;

use imago::FormatCreateBuilder;
use imago::format::PreallocateMode;
use imago::qcow2::Qcow2;
use rustix::fs::FallocateFlags;

use crate::header::{CLUSTER_BITS, LONGEST_NAME, largest};
use crate::storage::{allocate, length};
use crate::words::shell;
use crate::{Format, ImageError, ImageFile};

/// What image is to be made.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CreateOptions {
    /// Its format.
    pub format: Format,
    /// Bytes of the disk.
    pub size: u64,
    /// The backing file: its name as it is to be written to the header, and its format.
    pub backing: Option<(String, Format)>,
    /// Bytes of a cluster; 64 KiB if nothing is said.
    pub cluster_size: Option<u32>,
    /// What space is taken at once.
    pub preallocate: Preallocate,
}

/// What space a new image takes at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Preallocate {
    /// None: the file grows with what is written.
    #[default]
    Off,
    /// The tables of a qcow2 image, all of them.
    Metadata,
    /// All space, by `fallocate`.
    Full,
}

impl CreateOptions {
    /// An image that takes no space.
    pub fn new(format: Format, size: u64) -> Self {
        CreateOptions { format, size, backing: None, cluster_size: None, preallocate: Preallocate::Off }
    }

    /// On a backing file, by the name that is written to the header.
    pub fn backing(mut self, name: &str, format: Format) -> Self {
        self.backing = Some((name.into(), format));
        self
    }

    /// With clusters of this size.
    pub fn cluster_size(mut self, bytes: u32) -> Self {
        self.cluster_size = Some(bytes);
        self
    }

    /// With this space taken.
    pub fn preallocate(mut self, preallocate: Preallocate) -> Self {
        self.preallocate = preallocate;
        self
    }
}

/// Makes an image in an empty file that is open for writing. Nothing is brought to the disk yet.
pub fn create(file: &File, path: &Path, options: &CreateOptions) -> Result<(), ImageError> {
    let failed = |source| ImageError::Io { path: path.into(), action: "write", source };
    match options.format {
        Format::Raw => {
            check_raw(path, options)?;
            file.set_len(options.size).map_err(failed)?;
            if options.preallocate == Preallocate::Full && options.size > 0 {
                allocate(file, FallocateFlags::empty(), 0, options.size).map_err(failed)?;
            }
            Ok(())
        }
        Format::Qcow2 => {
            check_qcow2(file, path, options)?;
            let storage = ImageFile::new(file.try_clone().map_err(failed)?, path, 0);
            let mode = match options.preallocate {
                Preallocate::Off => PreallocateMode::None,
                Preallocate::Metadata => PreallocateMode::FormatAllocate,
                Preallocate::Full => PreallocateMode::FullAllocate,
            };
            let mut builder =
                Qcow2::<ImageFile>::create_builder(storage).size(options.size).preallocate(mode);
            if let Some(size) = options.cluster_size {
                builder = builder.cluster_size(size as usize);
            }
            if let Some((name, format)) = &options.backing {
                builder = builder.backing(name.clone(), format.name().into());
            }
            builder.create().map_err(failed)
        }
    }
}

fn check_raw(path: &Path, options: &CreateOptions) -> Result<(), ImageError> {
    let unsupported =
        |reason: &str| Err(ImageError::Unsupported { path: path.into(), reason: reason.into() });
    if options.backing.is_some() {
        return Err(ImageError::NoBacking { path: path.into(), format: Format::Raw });
    }
    if options.cluster_size.is_some() {
        return unsupported("a raw image has no clusters");
    }
    if options.preallocate == Preallocate::Metadata {
        return unsupported("a raw image has no metadata; `full` takes the space of the data");
    }
    Ok(())
}

fn check_qcow2(file: &File, path: &Path, options: &CreateOptions) -> Result<(), ImageError> {
    let unsupported = |reason: String| Err(ImageError::Unsupported { path: path.into(), reason });
    let cluster_size = options.cluster_size.unwrap_or(64 << 10);
    if !cluster_size.is_power_of_two() || !CLUSTER_BITS.contains(&cluster_size.ilog2()) {
        return unsupported(format!(
            "clusters of {cluster_size} bytes: a power of two from 512 to 2097152 (2M) is possible"
        ));
    }
    let limit = largest(cluster_size.ilog2());
    if options.size > limit {
        let cluster_size = u64::from(cluster_size);
        return Err(ImageError::TooLarge { path: path.into(), size: options.size, cluster_size, limit });
    }
    if let Some((name, _)) = &options.backing {
        // The header with imago's table of features, the name and the format's extension stand in one cluster.
        let room = LONGEST_NAME.min(cluster_size as usize / 2 - 128);
        if name.is_empty() || name.contains('\0') || name.len() > room {
            return unsupported(format!(
                "the name of its backing file has {} bytes; 1 to {room} are possible",
                name.len()
            ));
        }
        if options.preallocate != Preallocate::Off {
            let flat = format!(
                "nothing is preallocated on a backing file; `qemu-img convert -O qcow2 {} NEW.qcow2` copies it",
                shell(path)
            );
            return unsupported(flat);
        }
    }
    match length(file) {
        Ok(0) => Ok(()),
        Ok(_) => unsupported("there is something in the file already".into()),
        Err(source) => Err(ImageError::Io { path: path.into(), action: "read the size of", source }),
    }
}
