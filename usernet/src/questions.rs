//! Frames for addresses whose owner is asked for. Few wait, and not for long.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::offload::Offload;

/// Addresses that are asked for at once.
const QUESTIONS: usize = 64;
/// Frames that wait for one of them.
const FRAMES: usize = 4;
/// Bytes of all frames that wait.
const BYTES: usize = 256 << 10;
/// An address is asked for so often, with a pause after each time.
const TRIES: u8 = 3;
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Question {
    asked: Instant,
    tries: u8,
    frames: Vec<(Vec<u8>, Offload)>,
}

/// All questions.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    open: HashMap<IpAddr, Question>,
    bytes: usize,
}

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// It waits, and the question has to be asked.
    Asks,
    /// It waits for a question that was asked.
    Waits,
    /// There is no room for it.
    Lost,
}

impl Questions {
    /// Keeps `frame` until the owner of `address` is known.
    pub(crate) fn hold(&mut self, address: IpAddr, frame: &[u8], offload: Offload, now: Instant) -> Held {
        if self.bytes + frame.len() > BYTES {
            return Held::Lost;
        }
        let (count, new) = (self.open.len(), !self.open.contains_key(&address));
        if new && count >= QUESTIONS {
            return Held::Lost;
        }
        let question =
            self.open.entry(address).or_insert(Question { asked: now, tries: 1, frames: Vec::new() });
        if question.frames.len() >= FRAMES {
            return Held::Lost;
        }
        self.bytes += frame.len();
        question.frames.push((frame.to_vec(), offload));
        if new { Held::Asks } else { Held::Waits }
    }

    /// The frames that waited for `address`.
    pub(crate) fn answered(&mut self, address: IpAddr) -> Vec<(Vec<u8>, Offload)> {
        let frames = self.open.remove(&address).map(|question| question.frames).unwrap_or_default();
        self.bytes -= frames.iter().map(|(frame, _)| frame.len()).sum::<usize>();
        frames
    }

    /// When [`Questions::timeout`] has something to do.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.open.values().map(|question| question.asked + PAUSE).min()
    }

    /// The addresses that have to be asked for again. Those that were asked for in vain are given up.
    pub(crate) fn timeout(&mut self, now: Instant) -> Vec<IpAddr> {
        let mut again = Vec::new();
        let due = |question: &Question| question.asked + PAUSE <= now;
        self.open.retain(|address, question| {
            if !due(question) {
                return true;
            }
            if question.tries >= TRIES {
                self.bytes -= question.frames.iter().map(|(frame, _)| frame.len()).sum::<usize>();
                return false;
            }
            question.tries += 1;
            question.asked = now;
            again.push(*address);
            true
        });
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: u8) -> IpAddr {
        [10, 0, 2, host].into()
    }

    #[test]
    fn few_frames_wait_for_few_addresses_and_none_for_ever() {
        let (mut questions, mut now) = (Questions::default(), Instant::now());
        let mut hold =
            |host, len: usize| questions.hold(address(host), &vec![0; len], Offload::default(), now);
        assert_eq!(
            [hold(1, 60), hold(1, 60), hold(1, 60), hold(1, 60), hold(1, 60)],
            [Held::Asks, Held::Waits, Held::Waits, Held::Waits, Held::Lost]
        );
        assert_eq!([hold(2, BYTES), hold(2, 65_000), hold(3, 65_000)], [Held::Lost, Held::Asks, Held::Asks]);
        assert_eq!((hold(4, 65_000), hold(4, 67_000)), (Held::Asks, Held::Lost));
        let asked = (5..200).filter(|host| hold(*host, 60) == Held::Asks).count();
        assert_eq!(asked, QUESTIONS - 4);
        assert_eq!(questions.answered(address(2)).len(), 1);
        for again in [QUESTIONS - 1, QUESTIONS - 1, 0] {
            now = questions.next_timeout().unwrap();
            assert_eq!(questions.timeout(now).len(), again);
        }
        assert_eq!((questions.next_timeout(), questions.bytes), (None, 0));
    }
}
