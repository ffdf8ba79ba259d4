//! The files that a spec names, open: kernel, initrd, disks. Opened once, so that what is removed or put in their place on the
//! host does not change what a machine boots.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::BootFile;
use crate::host::disk::{self, Drive, OpenDisk};
use crate::host::open_now::open_now;
use crate::host::share::SharedFolder;
use crate::image;
use crate::machine::StartError;
use crate::machine::deadline::Progress;
use crate::machine::run_resources::Image;
use crate::shown::path as shown;
use crate::spec::{Initrd, Spec};

/// A machine keeps them for all its boots.
#[derive(Debug, Clone, Default)]
pub(crate) struct OpenFiles {
    pub(super) kernel: Option<BootFile>,
    pub(super) initrd: OpenInitrd,
    /// With the disks in them, locked; in the order of the spec.
    pub(crate) drives: Vec<Arc<Drive>>,
    /// In the order of the spec.
    pub(crate) shares: Vec<Arc<SharedFolder>>,
}

/// Which initrd a machine gets.
#[derive(Debug, Clone, Default)]
pub(super) enum OpenInitrd {
    /// One that is looked for on the disk, or none: as the spec says.
    #[default]
    Unnamed,
    Named(BootFile),
    /// One that is made for the kernel, once that is known.
    ToBeMade,
    Made(BootFile),
    /// The machine goes on from one whose initrd was made, and is not there any more.
    Gone,
}

impl OpenFiles {
    /// Opens the files of `spec`.
    pub(crate) fn open(spec: &Spec, progress: &Progress) -> Result<Self, StartError> {
        Self::open_by(spec, progress, |what, path| {
            open(path).map_err(|source| StartError::Open { what, path: path.to_owned(), source })
        })
    }

    /// The same, the kernel and the initrd by `open`, which is told what they are.
    pub(crate) fn open_by<E: From<StartError>>(
        spec: &Spec,
        progress: &Progress,
        open: impl Fn(&'static str, &Path) -> Result<File, E>,
    ) -> Result<Self, E> {
        let open = |what: &'static str, path: &Path| {
            progress.begin(format!("opening the {what} {}", shown(path)));
            open(what, path).map(|file| BootFile::opened(path, file))
        };
        let kernel = spec.kernel.as_deref().map(|path| open("kernel", path)).transpose()?;
        let initrd = match &spec.initrd {
            Some(Initrd::File(path)) => OpenInitrd::Named(open("initrd", path)?),
            Some(Initrd::None) | None => OpenInitrd::Unnamed,
        };
        let drives = spec.disk.iter().map(|disk| {
            progress.begin(format!("opening the disk {}", shown(disk.image())));
            let open = OpenDisk::open(disk).map_err(StartError::Disk)?;
            Ok(Arc::new(Drive::new(open, disk.image(), disk.is_removable())))
        });
        let drives = drives.collect::<Result<_, E>>()?;
        let shares = spec.share.iter().map(|share| {
            progress.begin(format!("opening {}", share.origin.name(&share.path)));
            SharedFolder::open(share, spec.share.len()).map_err(|error| StartError::Share(error).into())
        });
        Ok(OpenFiles { kernel, initrd, drives, shares: shares.collect::<Result<_, E>>()? })
    }

    /// The same kernel and initrd, with other disks.
    #[must_use]
    pub(crate) fn with_drives(&self, drives: Vec<Arc<Drive>>) -> Self {
        OpenFiles { drives, ..self.clone() }
    }

    /// The initrd will be made for the kernel that is found, and replaces that of the spec.
    #[must_use]
    pub(crate) fn without_initrd(self) -> Self {
        OpenFiles { initrd: OpenInitrd::ToBeMade, ..self }
    }

    /// The initrd was made for a machine that this one goes on from, and was not kept.
    #[must_use]
    pub(super) fn with_initrd_gone(self) -> Self {
        OpenFiles { initrd: OpenInitrd::Gone, ..self }
    }

    /// Whether a machine that has these can boot.
    pub(crate) fn can_boot(&self) -> bool {
        !matches!(self.initrd, OpenInitrd::Gone)
    }

    pub(super) fn make_initrd(&mut self, image: &Arc<dyn Image>) -> BootFile {
        let made = BootFile::made("initrd", image);
        self.initrd = OpenInitrd::Made(made.clone());
        made
    }

    /// Whether the initrd is made for this machine.
    pub(crate) fn initrd_is_made(&self) -> bool {
        matches!(self.initrd, OpenInitrd::ToBeMade | OpenInitrd::Made(_))
    }

    /// The disks, to look for what the machine boots.
    pub(crate) fn readers(&self) -> Result<Vec<image::DiskFile>, StartError> {
        let readers = self.drives.iter().map(|drive| {
            let reader = drive.medium().reader().map_err(StartError::Descriptors)?;
            let bytes = match reader.bytes {
                disk::DiskBytes::File(file) => image::DiskBytes::File(Arc::new(file)),
                disk::DiskBytes::Mapped(reader) => {
                    image::DiskBytes::Mapped { cluster: reader.cluster(), image: Box::new(reader) }
                }
            };
            Ok(image::DiskFile { bytes, len: reader.len, sector: reader.sector })
        });
        readers.collect()
    }
}

/// A pipe is like a file without bytes.
fn open(path: &Path) -> io::Result<File> {
    open_now(path, File::options().read(true), 0)
}
