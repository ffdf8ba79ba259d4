//! What a disk may hold after a power cut: what the last acknowledged flush covers, and of later requests anything.

use tiny_guest::plan::{Kind, MAGIC, Operation, SECTORS, WORDS, content, round};

/// What a sector holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    Zero,
    /// What an operation wrote; [`BASE`] for what was there before.
    By(u64),
}

/// Stands for what the base of an overlay holds.
pub(crate) const BASE: u64 = u32::MAX as u64;

impl Value {
    fn is(self, sector: u64, bytes: &[u8]) -> bool {
        let word = |at: usize| u64::from_le_bytes(bytes[8 * at..8 * at + 8].try_into().unwrap());
        match self {
            Value::Zero => bytes.iter().all(|byte| *byte == 0),
            Value::By(id) => (0..WORDS).zip(0..).all(|(n, at)| word(at) == content(id, sector, n)),
        }
    }
}

/// The content of a base.
pub(crate) fn base() -> Vec<u8> {
    let words = (0..SECTORS).flat_map(|sector| (0..WORDS).map(move |word| content(BASE, sector, word)));
    words.flat_map(u64::to_le_bytes).collect()
}

/// What each sector may hold, and what it has ever held.
pub(crate) struct Promise {
    may: Vec<Vec<Value>>,
    ever: Vec<Vec<Value>>,
}

impl Promise {
    /// The flush of round `acknowledged` is the last one that was acknowledged. `on_base`: there is a base below. Of the rounds
    /// `failed` the flushes have failed: what these should have covered may be lost for good.
    pub(crate) fn new(seed: u64, acknowledged: u64, space: bool, on_base: bool, failed: &[u64]) -> Self {
        let first = if on_base { Value::By(BASE) } else { Value::Zero };
        let all = vec![vec![first]; usize::try_from(SECTORS).unwrap()];
        let mut promise = Promise { may: all.clone(), ever: all };
        let fails = |number| failed.contains(&number);
        // The next round may have begun, and those before it whose flush failed.
        let last = (acknowledged + 1..).find(|number| !fails(*number)).unwrap();
        for number in 1..=last {
            let round = round(seed, number, space);
            let before = number <= acknowledged && !fails(number);
            // It may have been under way when either flush was.
            let beside = number < acknowledged && !fails(number) && !fails(number + 1);
            round.before().iter().for_each(|operation| promise.add(operation, before));
            round.beside().into_iter().for_each(|operation| promise.add(operation, beside));
        }
        promise
    }

    fn add(&mut self, operation: &Operation, durable: bool) {
        for sector in operation.sector..operation.end() {
            let sector = usize::try_from(sector).unwrap();
            let (may, ever) = (&mut self.may[sector], &mut self.ever[sector]);
            let new = if operation.kind == Kind::Write { Value::By(operation.id) } else { Value::Zero };
            if operation.kind == Kind::Discard {
                may.clone_from(ever);
            } else if durable {
                may.clear();
            }
            may.push(new);
            ever.push(new);
        }
    }

    /// Whether the content of a disk holds to it; if not, what is wrong with the first sector that does not.
    pub(crate) fn check(&self, disk: &[u8]) -> Result<(), String> {
        let all = SECTORS * 8 * WORDS;
        if disk.len() as u64 != all {
            return Err(format!("the disk has {} bytes instead of {all}", disk.len()));
        }
        let part = |at: usize| (at as u64, &disk[512 * at..512 * (at + 1)]);
        let wrong = |at: &usize| {
            let (sector, bytes) = part(*at);
            !self.may[*at].iter().rev().any(|value| value.is(sector, bytes))
        };
        let mut bad = (0..self.may.len()).filter(wrong);
        let Some(at) = bad.next() else { return Ok(()) };
        let ((sector, bytes), may) = (part(at), &self.may[at]);
        let word = |at: usize| u64::from_le_bytes(bytes[8 * at..8 * at + 8].try_into().unwrap());
        let holds = match word(0) {
            first if first & MAGIC == MAGIC => {
                format!("what operation {} wrote to sector {}", first ^ MAGIC, word(1))
            }
            _ if Value::Zero.is(sector, bytes) => "zeros".to_owned(),
            _ => format!("{:02x?}..", &bytes[..16]),
        };
        let ever = &self.ever[at];
        let others = bad.count();
        Err(format!("sector {sector} holds {holds}, may hold {may:?} of {ever:?}; so do {others} others"))
    }
}
