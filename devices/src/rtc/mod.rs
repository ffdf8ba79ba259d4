//! The MC146818 real-time clock that a PC has at 0x70 and 0x71: time of day and 114 bytes of RAM.
//!
//! It answers at once: no update is ever in progress, because a second's registers are worked out when they are read.
//! It raises no interrupt and has no alarm that fires; the alarm registers are plain RAM.

mod civil;
mod state;
#[cfg(test)]
mod tests;

use std::fmt;

use civil::Civil;

use crate::bus::{BusDevice, Effect, read_bytewise, write_bytewise};

/// I/O ports of the clock: index and data.
pub const RTC_PORTS: u64 = 2;
/// Register of the century, where the FADT says so (ACPI 6.5 §5.2.9, CENTURY).
pub const RTC_CENTURY: u8 = 0x32;

/// Bytes behind the index; its top bit masks NMIs on a PC and is ignored.
const REGISTERS: usize = 128;
const INDEX_MASK: u8 = 0x7f;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;

/// 32.768 kHz time base, 1024 Hz rate: what a BIOS leaves. Bit 7, update in progress, is never set.
const A_DEFAULT: u8 = 0x26;
const A_WRITABLE: u8 = 0x7f;
/// Time registers stand still and may be written.
const B_SET: u8 = 0x80;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
/// Valid RAM and time: the battery is good.
const D_VALID: u8 = 0x80;
/// Afternoon, in the hours register of a 12-hour clock.
const PM: u8 = 0x80;

/// Time registers with their place in [`Rtc::frozen`].
const TIME: [u8; 8] = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, RTC_CENTURY];

/// The host's clock.
pub trait WallClock: fmt::Debug + Send {
    /// Seconds since 1970-01-01 00:00 of the civil time that the guest shall see: UTC, or shifted by the zone's
    /// offset where the guest wants local time.
    fn now(&self) -> i64;
}

/// The clock.
#[derive(Debug)]
pub struct Rtc {
    clock: Box<dyn WallClock>,
    index: u8,
    ram: [u8; REGISTERS],
    /// Seconds that the guest's clock is ahead of the host's, since the guest set it.
    offset: i64,
    /// The registers as the guest writes them while SET is on, in the order of [`TIME`].
    frozen: Option<[u8; TIME.len()]>,
    /// The guest's time when it last read the seconds. The other registers are of that same moment for a second,
    /// so that a guest that reads seconds first never sees half of an update.
    read_at: i64,
}

impl Rtc {
    /// A clock that shows `clock`'s time, in BCD and 24 hours.
    pub fn new(clock: Box<dyn WallClock>) -> Self {
        let mut rtc =
            Rtc { clock, index: 0, ram: [0; REGISTERS], offset: 0, frozen: None, read_at: i64::MIN };
        rtc.set_ram(STATUS_A, A_DEFAULT);
        rtc.set_ram(STATUS_B, B_24_HOURS);
        rtc
    }

    fn read_index(&mut self, index: u8) -> u8 {
        match index {
            STATUS_A | STATUS_B => self.ram(index),
            STATUS_C => 0,
            STATUS_D => D_VALID,
            _ => match TIME.iter().position(|register| *register == index) {
                None => self.ram(index),
                Some(place) => match self.frozen {
                    Some(frozen) => frozen.get(place).copied().unwrap_or(0),
                    None => {
                        let now = self.guest_now();
                        if index == SECONDS || now.saturating_sub(self.read_at) > 1 || now < self.read_at {
                            self.read_at = now;
                        }
                        self.encode(index, Civil::from_epoch(self.read_at))
                    }
                },
            },
        }
    }

    fn write_index(&mut self, index: u8, value: u8) {
        match index {
            STATUS_A => self.set_ram(STATUS_A, value & A_WRITABLE),
            STATUS_B => self.write_status_b(value),
            STATUS_C | STATUS_D => {}
            _ => match TIME.iter().position(|register| *register == index) {
                None => self.set_ram(index, value),
                Some(place) => {
                    let mut registers = self.frozen.unwrap_or_else(|| self.freeze());
                    if let Some(slot) = registers.get_mut(place) {
                        *slot = value;
                    }
                    if self.frozen.is_some() {
                        self.frozen = Some(registers);
                    } else {
                        self.set_time(&registers);
                    }
                }
            },
        }
    }

    /// SET stops the clock's registers and starts it again from what they then say, read in the format of the moment.
    fn write_status_b(&mut self, value: u8) {
        let set = value & B_SET != 0;
        if set && self.frozen.is_none() {
            self.frozen = Some(self.freeze());
        }
        self.set_ram(STATUS_B, value);
        if !set && let Some(registers) = self.frozen.take() {
            self.set_time(&registers);
        }
    }

    fn freeze(&self) -> [u8; TIME.len()] {
        let now = Civil::from_epoch(self.guest_now());
        TIME.map(|register| self.encode(register, now))
    }

    fn set_time(&mut self, registers: &[u8; TIME.len()]) {
        let [second, minute, hour, _weekday, day, month, year, century] = *registers;
        let civil = Civil {
            year: 100 * self.decode(century) + self.decode(year),
            month: self.decode(month),
            day: self.decode(day),
            hour: self.decode_hour(hour),
            minute: self.decode(minute),
            second: self.decode(second),
        };
        self.offset = civil.to_epoch().saturating_sub(self.clock.now());
        self.read_at = i64::MIN;
    }

    fn guest_now(&self) -> i64 {
        self.clock.now().saturating_add(self.offset)
    }

    fn encode(&self, register: u8, time: Civil) -> u8 {
        let hours_24 = self.ram(STATUS_B) & B_24_HOURS != 0;
        let (value, flag) = match register {
            SECONDS => (time.second, 0),
            MINUTES => (time.minute, 0),
            HOURS if hours_24 => (time.hour, 0),
            HOURS => ((time.hour + 11) % 12 + 1, if time.hour >= 12 { PM } else { 0 }),
            WEEKDAY => (time.weekday(), 0),
            DAY => (time.day, 0),
            MONTH => (time.month, 0),
            YEAR => (time.year % 100, 0),
            _ => (time.year / 100, 0),
        };
        let value = u8::try_from(value).unwrap_or(0);
        let coded = if self.ram(STATUS_B) & B_BINARY != 0 { value } else { value / 10 * 16 + value % 10 };
        coded | flag
    }

    /// A register's number. Digits past 9 in BCD count as what they weigh.
    fn decode(&self, value: u8) -> i64 {
        let value = i64::from(value);
        if self.ram(STATUS_B) & B_BINARY != 0 { value } else { value / 16 * 10 + value % 16 }
    }

    fn decode_hour(&self, value: u8) -> i64 {
        if self.ram(STATUS_B) & B_24_HOURS != 0 {
            return self.decode(value);
        }
        let afternoon = if value & PM != 0 { 12 } else { 0 };
        self.decode(value & !PM) % 12 + afternoon
    }

    fn ram(&self, index: u8) -> u8 {
        self.ram.get(usize::from(index)).copied().unwrap_or(0xff)
    }

    fn set_ram(&mut self, index: u8, value: u8) {
        if let Some(byte) = self.ram.get_mut(usize::from(index)) {
            *byte = value;
        }
    }
}

impl BusDevice for Rtc {
    fn size(&self) -> u64 {
        RTC_PORTS
    }

    /// The index port cannot be read, as on a PC: all ones.
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Option<Effect> {
        read_bytewise(offset, data, |at| if at == 1 { self.read_index(self.index) } else { 0xff });
        None
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        write_bytewise(offset, data, |at, byte| {
            match at {
                0 => self.index = byte & INDEX_MASK,
                _ => self.write_index(self.index, byte),
            }
            None
        })
    }
}
