//! A function whose one BAR has a doorbell and an MSI-X table of two vectors: what the tiny guests for MSI-X expect.

use std::ops::Range;
use std::sync::Arc;

use devices::bus::Effect;
use devices::component::{Component, State, StateError};
use devices::irq::{Irq, MsiAllocator};
use devices::pci::bar::{Bar, BarIndex, BarKind};
use devices::pci::config::{ConfigSpace, Identity};
use devices::pci::function::PciFunction;
use devices::pci::msix::{Msix, MsixLayout};

#[derive(Debug)]
pub(super) struct Doorbell {
    config: ConfigSpace,
    msix: Msix,
    /// Break down when the bell is rung.
    pub(super) panics: bool,
}

impl Doorbell {
    pub(super) fn new(kind: BarKind, msi: &Arc<dyn MsiAllocator>) -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x10fe,
            revision: 1,
            class: 0xff_0000,
            subsystem_vendor: 0x1af4,
            subsystem: 1,
        });
        let bar = BarIndex::new(0).unwrap();
        config.add_bar(Bar::new(bar, kind, 0x4000).unwrap()).unwrap();
        // A capability before the one that is looked for.
        config.add_capability(0x09, &[4, 0], &[0, 0]).unwrap();
        let msix = Msix::new(&mut config, 2, MsixLayout { bar, table: 0x800, pending: 0x1008 }, msi).unwrap();
        Doorbell { config, msix, panics: false }
    }
}

impl Component for Doorbell {
    fn save(&self) -> Result<State, StateError> {
        State::new("doorbell", 1, &self.msix.state())
    }

    fn load(&mut self, state: &State) -> Result<(), StateError> {
        self.msix.load(&state.open::<Vec<_>>("doorbell", 1)?);
        Ok(())
    }

    fn go(&mut self) {
        self.msix.go(&self.config);
    }
}

impl PciFunction for Doorbell {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_written(&mut self, written: Range<u16>) {
        self.msix.config_written(&self.config, &written);
    }

    fn bar_read(&mut self, _: BarIndex, offset: u64, data: &mut [u8]) -> Option<Effect> {
        self.msix.read(offset, data);
        None
    }

    fn bar_write(&mut self, _: BarIndex, offset: u64, data: &[u8]) -> Option<Effect> {
        match (offset, data) {
            (0, [number @ 1..=255, 0, 0, 0]) => {
                assert!(!self.panics, "a test's device breaks down, on purpose");
                let vector = self
                    .msix
                    .vector(u16::from(number - 1))
                    .expect("the guest rings for vectors that are there");
                vector.trigger().unwrap();
            }
            _ => self.msix.write(offset, data),
        }
        None
    }

    fn bar_changed(&mut self, _: BarIndex, _: Option<u64>) {}
}
