//! Several measurements of one thing as a few words: the middle one, and from where to where they went.

use std::fmt;

/// What was measured, once a round.
#[derive(Debug, Clone, Default)]
pub struct Series(Vec<f64>);

impl Series {
    /// One more round.
    pub fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The middle one.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// Each in another unit.
    pub fn scaled(&self, by: f64) -> Series {
        Series(self.0.iter().map(|value| value * by).collect())
    }

    /// Each round divided by what another measured in the same round.
    pub fn over(&self, other: &Series) -> Series {
        Series(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }
}

/// `median (least to most)`, with as many decimals as the precision says.
impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = f.precision().unwrap_or(2);
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        write!(f, "{:.decimals$} ({least:.decimals$} to {most:.decimals$})", self.median())
    }
}
