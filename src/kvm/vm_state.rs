//! State that KVM keeps for a whole VM: the interrupt controllers and the clock.

use std::sync::Arc;

use devices::component::{Component, State, StateError};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
};
use kvm_ioctls::{Error, VmFd};
use serde::{Deserialize, Serialize};

use super::raw::Raw;
use super::vm::Vm;

const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];
const VERSION: u16 = 1;

/// The I/O APIC, and the two PICs that KVM makes beside it. The vCPUs have the local APICs, and the devices their messages.
#[derive(Debug)]
pub(crate) struct IrqChip(Arc<VmFd>);

/// The clock behind kvm-clock, which counts nanoseconds since the guest booted.
#[derive(Debug)]
pub(crate) struct Clock(Arc<VmFd>);

impl Vm {
    /// The interrupt controllers.
    pub(crate) fn irqchip(&self) -> IrqChip {
        IrqChip(self.fd().clone())
    }

    /// The clock.
    pub(crate) fn clock(&self) -> Clock {
        Clock(self.fd().clone())
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IrqChipState {
    pic_master: Raw<kvm_irqchip>,
    pic_slave: Raw<kvm_irqchip>,
    ioapic: Raw<kvm_irqchip>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClockState {
    nanoseconds: u64,
}

fn refused(kind: &'static str, what: &'static str) -> impl Fn(Error) -> StateError {
    move |error| {
        let source = std::io::Error::from_raw_os_error(error.errno());
        StateError::refused(kind, format!("KVM refused to {what}: {source}"))
    }
}

impl IrqChip {
    const KIND: &'static str = "irqchip";

    fn read(&self, chip_id: u32) -> Result<Raw<kvm_irqchip>, StateError> {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        self.0.get_irqchip(&mut chip).map_err(refused(Self::KIND, "give an interrupt controller"))?;
        Ok(Raw(chip))
    }
}

impl Component for IrqChip {
    fn save(&self) -> Result<State, StateError> {
        let [master, slave, ioapic] = CHIPS;
        let state = IrqChipState {
            pic_master: self.read(master)?,
            pic_slave: self.read(slave)?,
            ioapic: self.read(ioapic)?,
        };
        State::new(Self::KIND, VERSION, &state)
    }

    fn load(&mut self, state: &State) -> Result<(), StateError> {
        let IrqChipState { pic_master, pic_slave, ioapic } = state.open(Self::KIND, VERSION)?;
        let chips = [pic_master, pic_slave, ioapic].map(|Raw(chip)| chip);
        if chips.iter().zip(CHIPS).any(|(chip, id)| chip.chip_id != id) {
            return Err(StateError::damaged(Self::KIND, "a controller stands in another one's place"));
        }
        let refused = refused(Self::KIND, "take an interrupt controller");
        chips.iter().try_for_each(|chip| self.0.set_irqchip(chip).map_err(&refused))
    }
}

impl Clock {
    const KIND: &'static str = "clock";
}

/// A loaded clock goes on where it was when it was saved, as the vCPUs' TSCs do: the time between is no time to the guest.
impl Component for Clock {
    fn save(&self) -> Result<State, StateError> {
        let clock = self.0.get_clock().map_err(refused(Self::KIND, "give its time"))?;
        State::new(Self::KIND, VERSION, &ClockState { nanoseconds: clock.clock })
    }

    fn load(&mut self, state: &State) -> Result<(), StateError> {
        let ClockState { nanoseconds } = state.open(Self::KIND, VERSION)?;
        let clock = kvm_clock_data { clock: nanoseconds, ..Default::default() };
        self.0.set_clock(&clock).map_err(refused(Self::KIND, "take a time"))
    }
}
