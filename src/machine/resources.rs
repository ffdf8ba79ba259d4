//! What all boots of a machine are made from: its spec, and everything that the host gives it. Opened once, before any thread
//! serves the guest, and given back after the last boot.

use std::sync::Arc;

use virtio::balloon::BalloonControl;

use super::StartError;
use super::console::Console;
use super::deadline::Progress;
use super::disks::Disks;
use super::events::Publisher;
use super::files::{BootFiles, OpenFiles};
use super::net_handles::{BoundForward, NetHandles};
use super::nets::NetResource;
use super::pci::MakeFunctions;
use super::port_end::PortEnd;
use super::run_resources::RunResources;
use crate::kvm::KvmDevice;
use crate::spec::Spec;

/// See the module.
#[derive(Debug)]
pub(super) struct Resources {
    pub(super) spec: Spec,
    /// Kernel and initrd, as far as the spec names them; the disks.
    pub(super) files: OpenFiles,
    pub(super) disk_handles: Disks,
    /// In the order of the spec.
    pub(super) nets: Vec<NetResource>,
    pub(super) net_handles: NetHandles,
    pub(super) kvm: Arc<KvmDevice>,
    /// In the order of the spec.
    pub(super) ports: Vec<PortEnd>,
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
    /// Opens everything that `spec` names besides `files`.
    pub(super) fn open(
        spec: Spec,
        files: OpenFiles,
        kvm: Arc<KvmDevice>,
        functions: MakeFunctions,
        run_resources: RunResources,
    ) -> Result<Self, StartError> {
        let progress = run_resources.progress.clone();
        let mut nets = NetResource::open_all(&spec, &progress)?;
        let ports = spec.port.iter().map(|port| PortEnd::open(port, &progress));
        let ports = ports.collect::<Result<_, _>>()?;
        NetResource::capture_all(&mut nets, &spec, &progress)?;
        let publisher = Publisher::default();
        let handles = nets.iter().map(|net| net.handle().clone());
        Ok(Resources {
            net_handles: NetHandles::new(handles, publisher.clone()),
            disk_handles: Disks::new(&spec.disk, &files.drives, publisher.clone()),
            files,
            nets,
            kvm,
            ports,
            balloon: BalloonControl::new(spec.balloon.map_or(0, |balloon| balloon.mib())),
            console: Console::new(spec.console()),
            publisher,
            spec,
            run_resources,
            functions,
        })
    }

    /// The ports of the host that lead to the guest.
    pub(super) fn forwards(&self) -> Vec<BoundForward> {
        self.net_handles.forwards()
    }

    /// Finds what the machine boots next: its disks are searched anew.
    pub(super) fn find_files(&self, progress: &Progress) -> Result<BootFiles, StartError> {
        BootFiles::find(&self.spec, &self.files, progress)
    }
}
