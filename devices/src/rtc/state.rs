//! Saving and loading a clock.
//!
//! No time is saved but the distance of the guest's clock from the host's: a guest that is loaded reads the time of the host
//! that it runs on.

use serde::{Deserialize, Serialize};

use super::{A_WRITABLE, B_SET, INDEX_MASK, REGISTERS, Rtc, STATUS_A, STATUS_B, STATUS_C, STATUS_D, TIME};
use crate::component::{Component, State, StateError, hex};

const KIND: &str = "rtc";
const VERSION: u16 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RtcState {
    /// Register that the data port shows.
    index: u8,
    /// The registers; those of the time are unused.
    #[serde(with = "hex")]
    ram: Vec<u8>,
    /// Seconds that the guest's clock is ahead of the host's.
    offset: i64,
    /// Seconds, minutes, hours, weekday, day, month, year, century as they stand while the guest sets them.
    frozen: Option<[u8; TIME.len()]>,
    /// The guest's time when it last read the seconds.
    read_at: i64,
}

impl Component for Rtc {
    fn save(&self) -> Result<State, StateError> {
        let Rtc { index, ref ram, offset, frozen, read_at, .. } = *self;
        State::new(KIND, VERSION, &RtcState { index, ram: ram.to_vec(), offset, frozen, read_at })
    }

    fn load(&mut self, state: &State) -> Result<(), StateError> {
        let RtcState { index, ram, offset, frozen, read_at } = state.open(KIND, VERSION)?;
        let ram: [u8; REGISTERS] = ram.as_slice().try_into().map_err(|_| {
            StateError::damaged(KIND, format_args!("it has {} registers instead of {REGISTERS}", ram.len()))
        })?;
        let status = ram.get(usize::from(STATUS_B)).copied().unwrap_or(0);
        if (status & B_SET != 0) != frozen.is_some() {
            return Err(StateError::damaged(KIND, "it is being set and is not, both at once"));
        }
        self.index = index & INDEX_MASK;
        (self.ram, self.offset, self.frozen, self.read_at) = (ram, offset, frozen, read_at);
        self.set_ram(STATUS_A, self.ram(STATUS_A) & A_WRITABLE);
        for unused in TIME.into_iter().chain([STATUS_C, STATUS_D]) {
            self.set_ram(unused, 0);
        }
        Ok(())
    }
}
