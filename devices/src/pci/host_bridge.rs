//! The host bridge, function 00:00.0: an identity and nothing behind it.
//!
//! Linux needs none on a machine described by ACPI, and every function costs it about sixteen configuration writes
//! while it sizes the six BARs and the ROM: put one in only for guests that insist on finding one.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::bar::BarIndex;
use super::config::{ConfigSpace, Identity};
use super::function::PciFunction;
use crate::bus::Effect;
use crate::component::{Component, State, StateError};

/// Red Hat's "QEMU PCIe Host bridge": a generic host bridge that no driver binds to and no quirk applies to.
const IDENTITY: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: 0x06_0000,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// The host bridge.
#[derive(Debug)]
pub struct HostBridge {
    config: ConfigSpace,
}

impl HostBridge {
    /// A host bridge as after power-on.
    pub fn new() -> Self {
        HostBridge { config: ConfigSpace::new(IDENTITY) }
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

const KIND: &str = "pci-host-bridge";
const VERSION: u16 = 1;

/// It has its configuration space only.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostBridgeState {}

impl Component for HostBridge {
    fn save(&self) -> Result<State, StateError> {
        State::new(KIND, VERSION, &HostBridgeState {})
    }

    fn load(&mut self, state: &State) -> Result<(), StateError> {
        state.open(KIND, VERSION).map(|HostBridgeState {}| ())
    }
}

impl PciFunction for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
    fn config_written(&mut self, _written: Range<u16>) {}
    fn bar_read(&mut self, _bar: BarIndex, _offset: u64, data: &mut [u8]) -> Option<Effect> {
        data.fill(0xff);
        None
    }
    fn bar_write(&mut self, _bar: BarIndex, _offset: u64, _data: &[u8]) -> Option<Effect> {
        None
    }
    fn bar_changed(&mut self, _bar: BarIndex, _address: Option<u64>) {}
}
