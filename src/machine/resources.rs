//! What all boots of a machine are made from: its spec, and everything that the host gives it. Opened once, before any thread
//! serves the guest, and given back after the last boot.

use std::sync::Arc;

use virtio::balloon::BalloonControl;

use super::StartError;
use super::console::Console;
use super::events::Publisher;
use super::files::NamedFiles;
use super::pci::MakeFunctions;
use super::run_resources::RunResources;
use crate::host::disk::{Access, DiskError, DiskFile};
use crate::host::ports::PortSocket;
use crate::host::tap::Tap;
use crate::image;
use crate::kvm::KvmDevice;
use crate::spec::{DiskSpec, Spec};

/// See the module.
#[derive(Debug)]
pub(super) struct Resources {
    pub(super) spec: Spec,
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
    /// The queues of the guest's console.
    pub(super) console: Console,
    pub(super) run_resources: RunResources,
    /// Tells listeners what happens.
    pub(super) publisher: Publisher,
    /// Makes what goes on the PCI bus.
    pub(super) functions: MakeFunctions,
}

impl Resources {
    /// Opens everything that `spec` names, less what `run_resources` has open already.
    pub(super) fn open(
        spec: Spec,
        functions: MakeFunctions,
        mut run_resources: RunResources,
    ) -> Result<Self, StartError> {
        let balloon = spec.balloon.map_or(0, |balloon| balloon.mib());
        let disks = spec.disk.iter().map(|disk| open_disk(disk).map(Arc::new));
        let queues = u16::try_from(spec.cpus().get()).unwrap_or(u16::MAX);
        let taps = spec.tap.iter().map(|tap| Tap::open(tap.name.as_str(), queues).map(Arc::new));
        Ok(Resources {
            disks: disks.collect::<Result<_, _>>()?,
            files: run_resources.files.take().map_or_else(|| NamedFiles::open(&spec, None), Ok)?,
            kvm: Arc::new(KvmDevice::open()?),
            taps: taps.collect::<Result<_, _>>()?,
            ports: spec.port.iter().map(PortSocket::open).collect::<Result<_, _>>()?,
            balloon: BalloonControl::new(balloon),
            console: Console::new(spec.console()),
            publisher: Publisher::default(),
            spec,
            run_resources,
            functions,
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
