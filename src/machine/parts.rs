//! The parts of one boot while its vCPUs have no threads yet: here a saved state is loaded, by whoever makes the boot. A vCPU that has
//! not run belongs to no thread, so that none has to be asked for it.

use devices::component::Component;

use super::StartError;
use super::boot_once::Memory;
use super::components::{self, Components, States};
use super::saved::{GuestClock, RestoreError};
use super::vcpus::{VcpuContext, VcpuThreads};
use crate::kvm::Vm;
use crate::kvm::memory::MemoryLayout;
use crate::kvm::vcpu::Vcpu;

/// The id of kvm-clock.
const CLOCK: &str = "clock";

/// See the module, and [`components`] for the order.
#[derive(Debug)]
pub(super) struct Parts {
    before_vcpus: Components,
    vcpus: Vec<Vcpu>,
    behind_vcpus: Components,
}

impl Parts {
    /// With the devices of the board.
    pub(super) fn new(memory: &Memory, vm: &Vm, vcpus: Vec<Vcpu>, devices: Components) -> Self {
        let (mut before_vcpus, mut behind_vcpus) = (Components::default(), Components::default());
        before_vcpus.push("memory", MemoryLayout(memory.ram.clone()));
        before_vcpus.push(CLOCK, vm.clock());
        behind_vcpus.push("irqchip", vm.irqchip());
        behind_vcpus.append(devices);
        Parts { before_vcpus, vcpus, behind_vcpus }
    }

    /// Has all of them be as they were when they were saved. Nothing is at work before [`Components::go`].
    pub(super) fn load(&mut self, states: &States, clock: GuestClock, vm: &Vm) -> Result<(), RestoreError> {
        if let (GuestClock::Host, Some(clock)) = (clock, states.get(CLOCK)) {
            vm.follow_host_time(clock);
        }
        self.before_vcpus.quiesce();
        self.behind_vcpus.quiesce();
        let ids: Vec<_> = self.vcpus.iter().map(vcpu_id).collect();
        let vcpus = self.vcpus.iter_mut().map(|vcpu| vcpu as &mut dyn Component);
        let vcpus = ids.iter().map(String::as_str).zip(vcpus);
        let parts = self.before_vcpus.iter_mut().chain(vcpus).chain(self.behind_vcpus.iter_mut());
        components::load(parts, states)?;
        // A guest shall not take the time since then for a lockup of its own.
        self.vcpus.iter().for_each(Vcpu::was_stopped);
        Ok(())
    }

    /// Gives each vCPU its thread.
    pub(super) fn start(self, context: &VcpuContext) -> Result<(VcpuThreads, Components), StartError> {
        let Parts { before_vcpus: mut all, vcpus, behind_vcpus } = self;
        let ids: Vec<_> = vcpus.iter().map(vcpu_id).collect();
        let (threads, handles) = VcpuThreads::start(vcpus, context)?;
        ids.into_iter().zip(handles).for_each(|(id, vcpu)| all.push(id, vcpu));
        all.append(behind_vcpus);
        Ok((threads, all))
    }
}

fn vcpu_id(vcpu: &Vcpu) -> String {
    format!("vcpu{}", vcpu.id())
}
