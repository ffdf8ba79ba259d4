//! State that KVM keeps for a whole VM: the interrupt controllers and the clock.

use std::sync::Arc;

use devices::component::{Component, State, StateError};
use kvm_bindings::{
    KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
};
use kvm_ioctls::{Cap, Error, VmFd};
use serde::{Deserialize, Serialize};

use super::clocks::{Clocks, Reading, host_time};
use super::raw::Raw;
use super::vm::Vm;

const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];
const VERSION: u16 = 1;

/// The I/O APIC, and the two PICs that KVM makes beside it. The vCPUs have the local APICs, and the devices their messages.
#[derive(Debug)]
pub(crate) struct IrqChip(Arc<VmFd>);

/// The clock behind kvm-clock, which counts nanoseconds since the guest booted.
#[derive(Debug)]
pub(crate) struct Clock {
    fd: Arc<VmFd>,
    clocks: Clocks,
}

impl Vm {
    /// The interrupt controllers.
    pub(crate) fn irqchip(&self) -> IrqChip {
        IrqChip(self.fd().clone())
    }

    /// The clock.
    pub(crate) fn clock(&self) -> Clock {
        Clock { fd: self.fd().clone(), clocks: self.clocks().clone() }
    }

    /// What is loaded from now on goes on from the host's time, not from that at which `clock` was saved, if that is known.
    pub(crate) fn follow_host_time(&self, clock: &State) {
        if let Some(realtime) = ClockState::read(clock).ok().and_then(|state| state.realtime) {
            self.clocks().follow_host_time(realtime);
        }
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
    /// What the host's clock showed then, in nanoseconds since 1970. Version 1 has none.
    #[serde(default)]
    realtime: Option<u64>,
    /// What the host's TSC showed then. Versions 1 and 2 have none.
    #[serde(default)]
    host_tsc: Option<u64>,
}

impl ClockState {
    const VERSION: u16 = 3;

    fn read(state: &State) -> Result<Self, StateError> {
        state.open(Clock::KIND, state.version.clamp(1, Self::VERSION))
    }
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

    fn get(&self) -> Result<kvm_clock_data, StateError> {
        self.fd.get_clock().map_err(refused(Self::KIND, "give its time"))
    }
}

/// What the host's TSC showed at that moment, where KVM says it.
fn host_tsc(clock: &kvm_clock_data) -> Option<u64> {
    (clock.flags & KVM_CLOCK_HOST_TSC != 0).then_some(clock.host_tsc)
}

/// A loaded clock goes on where it was when it was saved, or from the host's time. The vCPUs' TSCs, which are loaded after it, do as it
/// does.
impl Component for Clock {
    fn save(&self) -> Result<State, StateError> {
        let clock = self.get()?;
        // All at one moment, where KVM can say that (Linux 5.16).
        let paired = clock.flags & KVM_CLOCK_REALTIME != 0;
        let realtime = Some(if paired { clock.realtime } else { host_time() });
        let host_tsc = host_tsc(&clock).filter(|_| !self.clocks.is_scaled());
        State::new(
            Self::KIND,
            ClockState::VERSION,
            &ClockState { nanoseconds: clock.clock, realtime, host_tsc },
        )
    }

    fn load(&mut self, state: &State) -> Result<(), StateError> {
        let ClockState { nanoseconds, host_tsc: tsc_then, .. } = ClockState::read(state)?;
        let adds = u32::try_from(self.fd.check_extension_int(Cap::AdjustClock)).unwrap_or(0);
        let clock = match self.clocks.saved_at() {
            // KVM adds the time since then, at the moment of the call.
            Some(realtime) if adds & KVM_CLOCK_REALTIME != 0 => kvm_clock_data {
                clock: nanoseconds,
                flags: KVM_CLOCK_REALTIME,
                realtime,
                ..Default::default()
            },
            _ => {
                let clock = nanoseconds.saturating_add(self.clocks.elapsed());
                kvm_clock_data { clock, ..Default::default() }
            }
        };
        self.fd.set_clock(&clock).map_err(refused(Self::KIND, "take a time"))?;
        let now = self.get()?;
        let now = Reading { nanoseconds: now.clock, host_tsc: host_tsc(&now) };
        self.clocks.loaded(Reading { nanoseconds, host_tsc: tsc_then }, now);
        Ok(())
    }
}
