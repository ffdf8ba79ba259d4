//! What the guest `power` does to its disk, round by round, and what stands in each sector that it writes. The test
//! that reads the disk after a power cut computes the same from the same seed.

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
/// Words of a sector.
pub const WORDS: u64 = SECTOR / 8;
/// Sectors of the disk.
pub const SECTORS: u64 = 8 << 11;
/// Operations of a round.
pub const MOST: usize = 6;
/// Sectors of an operation.
pub const LONGEST: u64 = 256;
/// What the first word of a written sector begins with.
pub const MAGIC: u64 = 0x706f_7765 << 32;

/// What an operation does to its sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Each gets its [`content`].
    Write,
    /// They read as zeros.
    Zeroes,
    /// What they read as is nobody's business, but it is nothing of other sectors.
    Discard,
}

/// One request. No two of a round overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// What it does.
    pub kind: Kind,
    /// No other operation of any round has the same.
    pub id: u64,
    /// The first sector.
    pub sector: u64,
    /// How many.
    pub sectors: u64,
}

impl Operation {
    /// The first sector behind it.
    pub const fn end(&self) -> u64 {
        self.sector + self.sectors
    }
}

/// The operations that are completed before the flush of a round, and one that is under way during it.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    operations: [Operation; MOST],
    count: usize,
}

impl Round {
    /// Those that the flush of this round makes durable.
    pub fn before(&self) -> &[Operation] {
        self.operations.get(..self.count).unwrap_or_default()
    }

    /// The one that it need not: the next round's flush does.
    pub fn beside(&self) -> Option<&Operation> {
        self.operations.get(self.count)
    }
}

/// Round `number`, from 1 on. `space`: with zeroing and discards.
pub fn round(seed: u64, number: u64, space: bool) -> Round {
    let mut chance = Chance(seed ^ number << 20);
    let nothing = Operation { kind: Kind::Write, id: 0, sector: 0, sectors: 0 };
    let mut operations = [nothing; MOST];
    let count = usize::try_from(1 + chance.below(MOST as u64 - 1)).unwrap_or(1);
    // Half of them close together: in clusters and tables that another one is at.
    let centre = chance.below(SECTORS);
    for at in 0..=count {
        loop {
            let sectors = match chance.below(8) {
                0..=2 => 8,
                3 => 1 + chance.below(8),
                4..=5 => 8 * (1 + chance.below(4)),
                6 => 1 + chance.below(40),
                _ => 8 * (1 + chance.below(LONGEST / 8)),
            };
            let from = if chance.below(2) == 0 { centre + chance.below(256) } else { chance.below(SECTORS) };
            // Most drivers write whole pages, where direct I/O and whole clusters can be.
            let sector = if sectors.is_multiple_of(8) { from / 8 * 8 } else { from };
            let kind = match chance.below(10) {
                0 if space => Kind::Discard,
                1 if space => Kind::Zeroes,
                _ => Kind::Write,
            };
            let new = Operation { kind, id: number * 16 + at as u64, sector, sectors };
            let before = operations.iter().take(at);
            if new.end() <= SECTORS
                && before.clone().all(|old| old.end() <= new.sector || new.end() <= old.sector)
            {
                if let Some(operation) = operations.get_mut(at) {
                    *operation = new;
                }
                break;
            }
        }
    }
    Round { operations, count }
}

/// Word `word` of `sector` as operation `id` writes it: who, where, and what no other sector has.
pub const fn content(id: u64, sector: u64, word: u64) -> u64 {
    match word {
        0 => MAGIC | id,
        1 => sector,
        _ => {
            let mixed = (id << 32 ^ sector << 8 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            mixed ^ mixed >> 29
        }
    }
}

/// Numbers that are the same again for the same seed (SplitMix64).
#[derive(Debug, Clone)]
pub struct Chance(pub u64);

impl Chance {
    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`.
    pub const fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
