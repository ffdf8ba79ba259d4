//! What makes a port worse than memory: delay, jitter, loss and rate, with their units.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::spec::text::by_text_as;
use crate::spec::words::DeviceError;

/// What befalls frames in one direction of a port. `None`: nothing was said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Impairment {
    /// Time that each frame takes.
    pub delay: Option<Delay>,
    /// The most by which the delay of a frame is longer or shorter, at random.
    pub jitter: Option<Delay>,
    /// Share of frames that are lost, at random.
    pub loss: Option<Loss>,
    /// Bits a second that pass at most.
    pub rate: Option<Rate>,
}

impl Impairment {
    /// Takes over what `change` says; a zero ends what it is the amount of.
    pub(super) fn apply(&mut self, change: Self) {
        let Impairment { delay, jitter, loss, rate } = change;
        self.delay = changed(self.delay, delay);
        self.jitter = changed(self.jitter, jitter);
        self.loss = changed(self.loss, loss);
        self.rate = changed(self.rate, rate);
    }
}

/// The amount after a change; zero is none.
fn changed<T: Default + PartialEq>(old: Option<T>, change: Option<T>) -> Option<T> {
    change.or(old).filter(|amount| *amount != T::default())
}

/// A time with its unit: `20ms`, `500us`, `1.5s`, `0`; at most [`Delay::MAX`], in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Delay(u32);

impl Delay {
    /// The longest.
    pub const MAX: Duration = Duration::from_secs(10);
    const UNITS: [(&str, u64); 3] = [("s", 1_000_000), ("ms", 1000), ("us", 1)];

    /// The time.
    pub fn duration(self) -> Duration {
        Duration::from_micros(self.0.into())
    }
}

impl FromStr for Delay {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let micros =
            quantity(text, &Self::UNITS).filter(|micros| Duration::from_micros(*micros) <= Self::MAX);
        let micros = micros.and_then(|micros| micros.try_into().ok());
        micros.map(Delay).ok_or_else(|| DeviceError::Delay(text.into()))
    }
}

impl fmt::Display for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        in_largest_unit(f, self.0.into(), &Self::UNITS)
    }
}

/// A share of frames: `1%`, `0.05%`, `0`; in parts of a million.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Loss(u32);

impl Loss {
    const ALL: u64 = 1_000_000;
    const UNITS: [(&str, u64); 1] = [("%", 10_000)];

    /// Parts of a million.
    pub fn per_million(self) -> u32 {
        self.0
    }
}

impl FromStr for Loss {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let parts = quantity(text, &Self::UNITS).filter(|parts| *parts <= Self::ALL);
        let parts = parts.and_then(|parts| parts.try_into().ok());
        parts.map(Loss).ok_or_else(|| DeviceError::Loss(text.into()))
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 10_000, self.0 % 10_000);
        let rest = format!("{rest:04}");
        match rest.trim_end_matches('0') {
            "" if whole == 0 => f.write_str("0"),
            "" => write!(f, "{whole}%"),
            rest => write!(f, "{whole}.{rest}%"),
        }
    }
}

/// Bits a second: `10mbit`, `512kbit`, `1gbit`; `0`: without a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u64);

impl Rate {
    /// The least: at less, one frame takes minutes.
    pub const MIN: u64 = 1000;
    /// The largest: a terabit a second.
    pub const MAX: u64 = 1_000_000_000_000;
    // As in tc(8).
    const UNITS: [(&str, u64); 4] =
        [("gbit", 1_000_000_000), ("mbit", 1_000_000), ("kbit", 1000), ("bit", 1)];

    /// Bits a second; `None`: without a limit.
    pub fn bits_per_second(self) -> Option<u64> {
        (self.0 != 0).then_some(self.0)
    }
}

impl FromStr for Rate {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let bits = quantity(&text.to_ascii_lowercase(), &Self::UNITS);
        let bits = bits.filter(|bits| *bits == 0 || (Self::MIN..=Self::MAX).contains(bits));
        bits.map(Rate).ok_or_else(|| DeviceError::Rate(text.into()))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        in_largest_unit(f, self.0, &Self::UNITS)
    }
}

by_text_as! {
    Delay, "a time with its unit such as \"20ms\"";
    Loss, "a percentage such as \"1%\"";
    Rate, "bits a second with their unit such as \"10mbit\"";
}

/// The amount of `text`, a number with one of `units`, in what has the size 1; 0 needs no unit. `None`: not an amount, or not a
/// whole one.
fn quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match (number, unit) {
        ("0", "") => 1,
        (_, unit) => units.iter().find(|(name, _)| *name == unit)?.1,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.contains('.') || fraction.len() > 9 {
        return None;
    }
    let one = 10u64.checked_pow(fraction.len().try_into().ok()?)?;
    let fraction = fraction.parse::<u64>().ok()?.checked_mul(unit)?;
    if !fraction.is_multiple_of(one) {
        return None;
    }
    whole.parse::<u64>().ok()?.checked_mul(unit)?.checked_add(fraction / one)
}

/// Writes `amount` in the largest of `units` that divides it. The last one is 1.
fn in_largest_unit(f: &mut fmt::Formatter<'_>, amount: u64, units: &[(&str, u64)]) -> fmt::Result {
    let unit = units.iter().find(|(_, size)| amount.is_multiple_of(*size));
    match unit {
        _ if amount == 0 => f.write_str("0"),
        Some((name, size)) => write!(f, "{}{name}", amount / size),
        None => write!(f, "{amount}"),
    }
}
