//! LZMA2: chunks of LZMA, or of plain bytes. The names are those of Igor Pavlov's "LZMA specification".

use super::Bytes;
use super::range::{EVEN, Range};

/// States of what came last; those from here on say that it was no literal.
const STATES: usize = 12;
const NO_LITERAL: usize = 7;
/// Positions that are told apart, at most.
const POSITIONS: usize = 16;
/// Probabilities of a literal; there are 16 sets at most.
const LITERAL: usize = 0x300;
const MOST_LITERAL_BITS: u8 = 4;
const LEAST_LENGTH: usize = 2;
/// Slots from the first on have bits of their own behind them, from the last on the lowest four alone are not plain.
const FIRST_SLOT: usize = 4;
const LAST_SLOT: usize = 14;
const ALIGN_BITS: u32 = 4;
/// Control bytes: no more chunks, plain ones with and without all that came before, and LZMA.
const END: u8 = 0;
const PLAIN_ANEW: u8 = 1;
const PLAIN: u8 = 2;
const COMPRESSED: u8 = 0x80;

/// The probabilities of a length.
#[derive(Debug)]
struct Length {
    choice: [u16; 2],
    low: [[u16; 8]; POSITIONS],
    middle: [[u16; 8]; POSITIONS],
    high: [u16; 256],
}

impl Length {
    const NEW: Self = Length {
        choice: [EVEN; 2],
        low: [[EVEN; 8]; POSITIONS],
        middle: [[EVEN; 8]; POSITIONS],
        high: [EVEN; 256],
    };

    fn read(&mut self, from: &mut Range<'_>, position: usize) -> Option<usize> {
        Some(
            LEAST_LENGTH
                + if from.bit(&mut self.choice, 0)? == 0 {
                    from.number(self.low.get_mut(position)?, 3)?
                } else if from.bit(&mut self.choice, 1)? == 0 {
                    8 + from.number(self.middle.get_mut(position)?, 3)?
                } else {
                    16 + from.number(&mut self.high, 8)?
                },
        )
    }
}

/// What a reset of the state begins anew.
#[derive(Debug)]
struct Model {
    state: usize,
    /// The last four distances, less one.
    last: [usize; 4],
    is_match: [[u16; POSITIONS]; STATES],
    is_rep: [u16; STATES],
    is_rep0: [u16; STATES],
    is_rep1: [u16; STATES],
    is_rep2: [u16; STATES],
    is_rep0_long: [[u16; POSITIONS]; STATES],
    slots: [[u16; 64]; 4],
    special: [u16; 115],
    align: [u16; 1 << ALIGN_BITS],
    length: Length,
    rep_length: Length,
    literals: Vec<u16>,
}

impl Model {
    fn new(literal_bits: u8) -> Self {
        Model {
            state: 0,
            last: [0; 4],
            is_match: [[EVEN; POSITIONS]; STATES],
            is_rep: [EVEN; STATES],
            is_rep0: [EVEN; STATES],
            is_rep1: [EVEN; STATES],
            is_rep2: [EVEN; STATES],
            is_rep0_long: [[EVEN; POSITIONS]; STATES],
            slots: [[EVEN; 64]; 4],
            special: [EVEN; 115],
            align: [EVEN; 1 << ALIGN_BITS],
            length: Length::NEW,
            rep_length: Length::NEW,
            literals: vec![EVEN; LITERAL << literal_bits],
        }
    }
}

/// Bits of the byte before that a literal's probabilities depend on, and of the position: theirs, and those of all else.
#[derive(Debug, Clone, Copy)]
struct Properties {
    lc: u8,
    lp: u8,
    pb: u8,
}

impl Properties {
    fn read(byte: u8) -> Option<Self> {
        let (lc, lp, pb) = (byte % 9, byte / 9 % 5, byte / 45);
        (lc + lp <= MOST_LITERAL_BITS && pb <= 4).then_some(Properties { lc, lp, pb })
    }
}

/// The decoder of a block.
#[derive(Debug, Default)]
pub(super) struct Lzma {
    /// Once a chunk has said them.
    properties: Option<Properties>,
    model: Option<Box<Model>>,
    /// Where what may be copied from begins in the output, once a chunk has begun it.
    begun: Option<usize>,
}

impl Lzma {
    /// Unpacks all chunks behind `out`, which gets no longer than `most`.
    pub(super) fn unpack(&mut self, from: &mut Bytes<'_>, out: &mut Vec<u8>, most: usize) -> Option<()> {
        let word = |from: &mut Bytes<'_>| match *from.take(2)? {
            [high, low] => Some(usize::from(high) << 8 | usize::from(low)),
            _ => None,
        };
        loop {
            let [control] = *from.take(1)? else { return None };
            if control == END {
                return Some(());
            }
            let resets = if control < COMPRESSED { 0 } else { control >> 5 & 3 };
            if control == PLAIN_ANEW || resets == 3 {
                self.begun = Some(out.len());
            }
            // The first chunk has to.
            let begun = self.begun?;
            match control {
                PLAIN_ANEW | PLAIN => {
                    let bytes = word(from).and_then(|size| from.take(size + 1))?;
                    room(out, bytes.len(), most)?;
                    out.extend_from_slice(bytes);
                }
                COMPRESSED.. => {
                    let size = (usize::from(control & 0x1f) << 16) + word(from)? + 1;
                    let packed = word(from)? + 1;
                    room(out, size, most)?;
                    if resets >= 2 {
                        let [byte] = *from.take(1)? else { return None };
                        self.properties = Some(Properties::read(byte)?);
                    }
                    let properties = self.properties?;
                    if resets > 0 {
                        self.model = Some(Box::new(Model::new(properties.lc + properties.lp)));
                    }
                    let range = Range::new(from.take(packed)?)?;
                    let end = out.len() + size;
                    chunk(range, properties, self.model.as_mut()?, out, begun, end)?;
                }
                _ => return None,
            }
        }
    }
}

fn room(out: &mut Vec<u8>, size: usize, most: usize) -> Option<()> {
    let fits = out.len().checked_add(size)? <= most;
    fits.then(|| out.reserve(size))
}

/// One chunk of LZMA, which ends when `out` has `end` bytes. Nothing before `begun` is copied.
fn chunk(
    mut from: Range<'_>,
    properties: Properties,
    model: &mut Model,
    out: &mut Vec<u8>,
    begun: usize,
    end: usize,
) -> Option<()> {
    let Properties { lc, lp, pb } = properties;
    while out.len() < end {
        let at = out.len() - begun;
        let position = at & ((1 << pb) - 1);
        if from.bit(model.is_match.get_mut(model.state)?, position)? == 0 {
            let before = if at == 0 { 0 } else { usize::from(*out.last()?) };
            let set = ((at & ((1 << lp) - 1)) << lc) + (before >> (8 - lc));
            let probabilities = model.literals.get_mut(set * LITERAL..(set + 1) * LITERAL)?;
            let like = (model.state >= NO_LITERAL).then_some(model.last[0]);
            let like = like.map(|distance| byte_before(out, begun, distance).map(usize::from));
            out.push(literal(&mut from, probabilities, like.map_or(Some(None), |like| like.map(Some))?)?);
            model.state = match model.state {
                0..4 => 0,
                4..10 => model.state - 3,
                _ => model.state - 6,
            };
            continue;
        }
        let count = match repeated(&mut from, model, position)? {
            Some(count) => count,
            None => {
                let count = model.length.read(&mut from, position)?;
                let [first, second, third, _] = model.last;
                model.last = [distance(&mut from, model, count)?, first, second, third];
                model.state = if model.state < NO_LITERAL { NO_LITERAL } else { NO_LITERAL + 3 };
                count
            }
        };
        if count > end - out.len() {
            return None;
        }
        let back = model.last[0].checked_add(1).filter(|back| *back <= out.len() - begun)?;
        copy(out, back, count)?;
    }
    from.is_at_end().then_some(())
}

/// The length of a match at one of the last distances, which is the last one then; `None` in it for one at a new distance.
#[allow(clippy::option_option, reason = "the outer one is for a damaged chunk")]
fn repeated(from: &mut Range<'_>, model: &mut Model, position: usize) -> Option<Option<usize>> {
    let state = model.state;
    if from.bit(&mut model.is_rep, state)? == 0 {
        return Some(None);
    }
    let after = |literal: usize, other: usize| if state < NO_LITERAL { literal } else { other };
    let [first, second, third, fourth] = model.last;
    if from.bit(&mut model.is_rep0, state)? == 0 {
        if from.bit(model.is_rep0_long.get_mut(state)?, position)? == 0 {
            model.state = after(9, 11);
            return Some(Some(1));
        }
    } else if from.bit(&mut model.is_rep1, state)? == 0 {
        model.last = [second, first, third, fourth];
    } else if from.bit(&mut model.is_rep2, state)? == 0 {
        model.last = [third, first, second, fourth];
    } else {
        model.last = [fourth, first, second, third];
    }
    model.state = after(8, 11);
    model.rep_length.read(from, position).map(Some)
}

/// A literal. The byte at the last distance is likely to be like it, if there was a match just now.
fn literal(from: &mut Range<'_>, probabilities: &mut [u16], like: Option<usize>) -> Option<u8> {
    let mut symbol = 1;
    if let Some(mut like) = like {
        while symbol < 0x100 {
            let expected = like >> 7 & 1;
            like <<= 1;
            let bit = from.bit(probabilities, ((1 + expected) << 8) + symbol)?;
            symbol = symbol << 1 | bit;
            if bit != expected {
                break;
            }
        }
    }
    while symbol < 0x100 {
        symbol = symbol << 1 | from.bit(probabilities, symbol)?;
    }
    u8::try_from(symbol & 0xff).ok()
}

/// A new distance, less one.
fn distance(from: &mut Range<'_>, model: &mut Model, count: usize) -> Option<usize> {
    let slot = from.number(model.slots.get_mut((count - LEAST_LENGTH).min(3))?, 6)?;
    if slot < FIRST_SLOT {
        return Some(slot);
    }
    let bits = u32::try_from(slot / 2 - 1).ok()?;
    let high = (2 | slot & 1) << bits;
    if slot < LAST_SLOT {
        return Some(high + from.reversed(&mut model.special, high - slot, bits)?);
    }
    let middle = from.plain(bits - ALIGN_BITS)? << ALIGN_BITS;
    Some(high + middle + from.reversed(&mut model.align, 0, ALIGN_BITS)?)
}

fn byte_before(out: &[u8], begun: usize, distance: usize) -> Option<u8> {
    let at = out.len().checked_sub(distance.checked_add(1)?).filter(|at| *at >= begun)?;
    out.get(at).copied()
}

/// Copies `count` bytes from `back` bytes before the end, which may be those that it copies.
fn copy(out: &mut Vec<u8>, back: usize, count: usize) -> Option<()> {
    let mut left = count;
    while left > 0 {
        let from = out.len().checked_sub(back)?;
        let run = left.min(back);
        out.extend_from_within(from..from.checked_add(run)?);
        left -= run;
    }
    Some(())
}
