//! What the host lends a machine for all its boots: opened and locked before the first boot and before any thread of the
//! machine exists, given back after the last.

use std::sync::Arc;

use virtio::balloon::BalloonControl;

use super::StartError;
use super::files::NamedFiles;
use crate::host::disk::{Access, DiskError, DiskFile};
use crate::host::ports::PortSocket;
use crate::host::tap::Tap;
use crate::image;
use crate::kvm::KvmDevice;
use crate::spec::{DiskSpec, Spec};

/// Descriptors of the host that every boot of a machine uses.
#[derive(Debug)]
pub(super) struct Resources {
    /// Locked; in the order of the spec.
    pub(super) disks: Vec<Arc<DiskFile>>,
    /// In the order of the spec.
    pub(super) taps: Vec<Arc<Tap>>,
    /// The kernel and the initrd, as far as the spec names them.
    pub(super) files: NamedFiles,
    pub(super) kvm: Arc<KvmDevice>,
    /// In the order of the spec.
    pub(super) ports: Vec<PortSocket>,
    pub(super) balloon: BalloonControl,
}

impl Resources {
    /// Opens everything that `spec` names; of the kernel and the initrd what is not in `files`.
    pub(super) fn open(spec: &Spec, files: Option<&NamedFiles>) -> Result<Self, StartError> {
        let balloon = spec.balloon.map_or(0, |balloon| balloon.mib());
        let disks = spec.disk.iter().map(|disk| open_disk(disk).map(Arc::new));
        let queues = u16::try_from(spec.cpus().get()).unwrap_or(u16::MAX);
        let taps = spec.tap.iter().map(|tap| Tap::open(tap.name.as_str(), queues).map(Arc::new));
        Ok(Resources {
            disks: disks.collect::<Result<_, _>>()?,
            files: files.map_or_else(|| NamedFiles::open(spec, None), |files| Ok(files.clone()))?,
            kvm: Arc::new(KvmDevice::open()?),
            taps: taps.collect::<Result<_, _>>()?,
            ports: spec.port.iter().map(PortSocket::open).collect::<Result<_, _>>()?,
            balloon: BalloonControl::new(balloon),
        })
    }

    /// The disks, to look for what the machine boots.
    pub(super) fn readers(&self) -> Result<Vec<image::DiskFile>, StartError> {
        let readers = self.disks.iter().map(|disk| {
            let (file, len, sector) = disk.reader().map_err(StartError::Descriptors)?;
            Ok(image::DiskFile { file, len, sector })
        });
        readers.collect()
    }
}

/// Opens a disk as its spec wants it.
pub(super) fn open_disk(disk: &DiskSpec) -> Result<DiskFile, DiskError> {
    DiskFile::open(&disk.path, Access { read_only: disk.read_only, direct: disk.direct })
}
