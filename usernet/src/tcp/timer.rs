//! What a connection does when nothing comes: it sends again, probes a closed window or a silent guest, and gives up.

use std::time::{Duration, Instant};

use super::connection::{Connection, Context, Fate, Phase};
use crate::host::Host;

/// The first retransmission. The guest is next door, but its vCPU may have to wait for the host's processor.
const FIRST: Duration = Duration::from_millis(200);
/// The longest pause between two.
const LONGEST: Duration = Duration::from_secs(30);
/// A guest that answers none of so many, some two minutes in all, is gone.
const MOST_UNANSWERED: u32 = 10;
/// A handshake, or an attempt of the host to connect, takes no longer.
const HANDSHAKE: Duration = Duration::from_secs(75);
/// A connection idle for so long is probed (RFC 9293 §3.8.4).
const IDLE: Duration = Duration::from_secs(2 * 60 * 60);
/// Pause between such probes.
const PROBE: Duration = Duration::from_secs(75);

/// The timer of a connection.
#[derive(Debug)]
pub(super) struct Timer {
    /// The handshake, or its part that is going on, began.
    began: Instant,
    /// The guest was last heard.
    heard: Instant,
    /// What is on its way is sent again, or the closed window probed.
    retransmit: Option<Instant>,
    /// Retransmissions without progress.
    backoff: u32,
    /// Segments in vain since the guest was heard, and when the last was sent.
    unanswered: u32,
    probed: Instant,
    /// The entry in the list of all timers. It may be too early, never too late.
    pub(super) queued: Option<Instant>,
}

impl Timer {
    pub(super) fn new(now: Instant) -> Self {
        Timer {
            began: now,
            heard: now,
            retransmit: None,
            backoff: 0,
            unanswered: 0,
            probed: now,
            queued: None,
        }
    }

    pub(super) fn restart(&mut self, now: Instant) {
        self.began = now;
    }

    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.unanswered = 0;
    }

    /// The guest acknowledged something new, or opened its window.
    pub(super) fn progress(&mut self) {
        self.retransmit = None;
        self.backoff = 0;
    }

    /// Nothing happened for `pause`, which does not count.
    pub(super) fn stood_still(&mut self, pause: Duration, now: Instant) {
        for instant in [&mut self.began, &mut self.heard, &mut self.probed] {
            *instant = (*instant + pause).min(now);
        }
        for instant in [&mut self.retransmit, &mut self.queued].into_iter().flatten() {
            *instant += pause;
        }
    }

    fn pause(&self) -> Duration {
        LONGEST.min(FIRST * 2u32.saturating_pow(self.backoff.min(16)))
    }
}

impl<H: Host> Connection<H> {
    /// When [`Connection::expire`] is due, as things are now.
    pub(super) fn deadline(&mut self, now: Instant) -> Instant {
        if self.phase == Phase::Connecting {
            return self.timer.began + HANDSHAKE;
        }
        if self.sender.in_flight() == 0 && !self.sender.is_stuck() {
            self.timer.retransmit = None;
        } else if self.timer.retransmit.is_none() {
            self.timer.retransmit = Some(now + self.timer.pause());
        }
        match self.timer.retransmit {
            Some(at) => at,
            None if self.phase != Phase::Open => self.timer.began + HANDSHAKE,
            None if self.timer.unanswered > 0 => self.timer.probed + PROBE,
            None => self.timer.heard + IDLE,
        }
    }

    /// Does what is due.
    pub(super) fn expire(&mut self, context: &mut Context<'_, H>) -> Fate {
        let now = context.now;
        let timer = &mut self.timer;
        if self.phase != Phase::Open && now >= timer.began + HANDSHAKE {
            return match self.phase {
                // As on a real network, where nobody answers either.
                Phase::Connecting => Fate::Over,
                _ => Fate::ResetBoth,
            };
        }
        timer.unanswered += 1;
        if timer.unanswered > MOST_UNANSWERED {
            return Fate::ResetBoth;
        }
        timer.probed = now;
        let retransmits = timer.retransmit.take().is_some();
        if retransmits {
            timer.backoff += 1;
        }
        if retransmits
            && self.sender.in_flight() > 0
            && (self.sender.window() > 0 || self.phase != Phase::Open)
        {
            self.sender.resend();
        } else {
            self.acks.probe = true;
        }
        Fate::Lives
    }
}
