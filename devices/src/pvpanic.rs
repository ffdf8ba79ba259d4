//! pvpanic: the one port through which a guest's kernel reports a panic (QEMU docs/specs/pvpanic).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::bus::{BusDevice, Effect, read_bytewise, write_bytewise};
use crate::component::{Component, State, StateError};

/// The guest panicked and will do nothing about it.
const PANICKED: u8 = 1 << 0;
/// The guest panicked and goes on in its crash kernel.
const CRASH_LOADED: u8 = 1 << 1;

/// The port. A read gives the events it understands.
#[derive(Debug, Default)]
pub struct PvPanic {
    crash_loaded: Arc<AtomicBool>,
}

impl PvPanic {
    /// `crash_loaded` is set when the guest hands over to its crash kernel.
    pub fn new(crash_loaded: Arc<AtomicBool>) -> Self {
        PvPanic { crash_loaded }
    }
}

const KIND: &str = "pvpanic";
const VERSION: u16 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PvPanicState {
    crash_loaded: bool,
}

impl Component for PvPanic {
    fn save(&self) -> Result<State, StateError> {
        State::new(KIND, VERSION, &PvPanicState { crash_loaded: self.crash_loaded.load(Ordering::Acquire) })
    }

    fn load(&mut self, state: &State) -> Result<(), StateError> {
        let PvPanicState { crash_loaded } = state.open(KIND, VERSION)?;
        self.crash_loaded.store(crash_loaded, Ordering::Release);
        Ok(())
    }
}

impl BusDevice for PvPanic {
    fn size(&self) -> u64 {
        1
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> Option<Effect> {
        read_bytewise(offset, data, |_| PANICKED | CRASH_LOADED);
        None
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        write_bytewise(offset, data, |_, events| {
            if events & PANICKED != 0 {
                return Some(Effect::Panicked);
            }
            if events & CRASH_LOADED != 0 {
                // A kernel hands over once; one that reports it in a loop gets one line.
                if !self.crash_loaded.swap(true, Ordering::AcqRel) {
                    log::warn!("the guest's kernel panicked and hands over to its crash kernel");
                }
            }
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_events_are_offered() {
        let mut data = [0];
        PvPanic::default().read(0, &mut data);
        assert_eq!(data, [3]);
    }

    #[test]
    fn a_panic_ends_the_machine_and_a_crash_kernel_goes_on() {
        let crash_loaded = Arc::new(AtomicBool::new(false));
        let mut device = PvPanic::new(crash_loaded.clone());
        assert_eq!(device.write(0, &[1]), Some(Effect::Panicked));
        assert_eq!(device.write(0, &[3]), Some(Effect::Panicked));
        assert!(!crash_loaded.load(Ordering::Acquire));
        assert_eq!(device.write(0, &[2]), None);
        assert!(crash_loaded.load(Ordering::Acquire));
        assert_eq!(device.write(0, &[0xfc]), None);
    }

    #[test]
    fn crash_kernel_is_known_after_a_load() {
        let (old, new) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let mut device = PvPanic::new(old);
        device.write(0, &[CRASH_LOADED]);
        PvPanic::new(new.clone()).load(&device.save().unwrap()).unwrap();
        assert!(new.load(Ordering::Acquire));
    }
}
