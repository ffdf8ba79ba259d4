//! What the host lends a machine for all its boots: opened and locked before the first, given back after the last.

use std::sync::Arc;

use virtio::balloon::BalloonControl;

use super::StartError;
use crate::host::disk::{Access, DiskError, DiskFile};
use crate::host::ports::PortSocket;
use crate::image;
use crate::spec::{DiskSpec, Spec};

/// The host's side of the machine's devices.
#[derive(Debug)]
pub(super) struct Backends {
    /// Locked; in the order of the spec.
    pub(super) disks: Vec<Arc<DiskFile>>,
    /// In the order of the spec.
    pub(super) ports: Vec<PortSocket>,
    pub(super) balloon: BalloonControl,
}

impl Backends {
    /// Opens all that `spec` names.
    pub(super) fn open(spec: &Spec) -> Result<Self, StartError> {
        let balloon = spec.balloon.map_or(0, |balloon| balloon.mib());
        let disks = spec.disk.iter().map(|disk| open_disk(disk).map(Arc::new));
        Ok(Backends {
            disks: disks.collect::<Result<_, _>>()?,
            ports: spec.port.iter().map(PortSocket::open).collect::<Result<_, _>>()?,
            balloon: BalloonControl::new(balloon),
        })
    }

    /// The first disk, to look for what it boots.
    pub(super) fn first_disk(&self) -> Result<Option<image::DiskFile>, StartError> {
        let first =
            self.disks.first().map(|disk| disk.reader()).transpose().map_err(StartError::Descriptors)?;
        Ok(first.map(|(file, len, sector)| image::DiskFile { file, len, sector }))
    }
}

/// Opens a disk as its spec wants it.
pub(super) fn open_disk(disk: &DiskSpec) -> Result<DiskFile, DiskError> {
    DiskFile::open(&disk.path, Access { read_only: disk.read_only, direct: disk.direct })
}
