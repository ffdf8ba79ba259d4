//! What a clock is at one moment, for snapshots.

use super::{
    A_WRITABLE, B_SET, INDEX_MASK, REGISTERS, Rtc, STATUS_A, STATUS_B, STATUS_C, STATUS_D, TIME, WallClock,
};

/// A saved clock. It saves no time but how far the guest's clock is ahead of the host's: a restored guest reads the
/// time of its restoration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RtcState {
    /// Layout of this structure; [`RtcState::VERSION`].
    pub version: u16,
    /// Register that the data port shows.
    pub index: u8,
    /// The 128 registers; those of the time are unused.
    pub ram: Vec<u8>,
    /// Seconds that the guest's clock is ahead of the host's.
    pub offset: i64,
    /// Seconds, minutes, hours, weekday, day, month, year, century as they stand while the guest sets them.
    pub frozen: Option<[u8; 8]>,
}

impl RtcState {
    /// The only layout so far.
    pub const VERSION: u16 = 1;
}

/// A saved clock that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RtcStateError {
    /// Written by another version of this program.
    #[error("the saved clock has version {0}, and only version {version} is understood; restore it with the program that saved it", version = RtcState::VERSION)]
    Version(u16),
    /// Not 128 registers.
    #[error("the saved clock has {0} registers instead of {REGISTERS}; the file is damaged")]
    Registers(usize),
    /// The SET bit and the frozen registers contradict each other.
    #[error("the saved clock is being set and is not, both at once; the file is damaged")]
    HalfSet,
}

impl Rtc {
    /// What this clock is now.
    pub fn state(&self) -> RtcState {
        RtcState {
            version: RtcState::VERSION,
            index: self.index,
            ram: self.ram.to_vec(),
            offset: self.offset,
            frozen: self.frozen,
        }
    }

    /// A clock as `state` says, on this host's time.
    ///
    /// # Errors
    /// [`RtcStateError`] where no clock can be in such a state.
    pub fn from_state(state: &RtcState, clock: Box<dyn WallClock>) -> Result<Self, RtcStateError> {
        if state.version != RtcState::VERSION {
            return Err(RtcStateError::Version(state.version));
        }
        let ram: [u8; REGISTERS] =
            state.ram.as_slice().try_into().map_err(|_| RtcStateError::Registers(state.ram.len()))?;
        let mut rtc = Rtc {
            clock,
            index: state.index & INDEX_MASK,
            ram,
            offset: state.offset,
            frozen: state.frozen,
            read_at: i64::MIN,
        };
        if (rtc.ram(STATUS_B) & B_SET != 0) != rtc.frozen.is_some() {
            return Err(RtcStateError::HalfSet);
        }
        rtc.set_ram(STATUS_A, rtc.ram(STATUS_A) & A_WRITABLE);
        for unused in TIME.into_iter().chain([STATUS_C, STATUS_D]) {
            rtc.set_ram(unused, 0);
        }
        Ok(rtc)
    }
}
