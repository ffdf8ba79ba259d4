//! A machine that is none.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::subject::{Balloon, Console, EventSource, Fact, Info, Keyboard, Next, ResetError, Subject};
use crate::machine::{BalloonError, MachineEvent, MachineState, PauseError, Stats};

/// Says yes to everything, and remembers what it was asked.
#[derive(Debug, Default)]
pub(super) struct Fake {
    pub(super) orders: Mutex<Vec<&'static str>>,
    pub(super) state: Mutex<MachineState>,
    pub(super) events: Arc<Mutex<VecDeque<MachineEvent>>>,
    pub(super) typed: Arc<Mutex<VecDeque<u8>>>,
    /// The guest reads nothing of what is typed.
    pub(super) deaf: Arc<AtomicBool>,
    balloon: AtomicU64,
}

impl Fake {
    fn order(&self, order: &'static str) {
        self.orders.lock().unwrap().push(order);
    }
}

impl Subject for Fake {
    fn info(&self) -> Info {
        let spec = Some(serde_json::json!({ "kernel": "k" }));
        let name = Some("vm0".to_owned());
        let made_of = vec![Fact { name: "Kernel".into(), value: "/boot/vmlinuz".into() }];
        Info {
            name,
            pid: 1,
            version: "0",
            state: self.state(),
            uptime: 1.5,
            mem: 512,
            cpus: 1,
            console: "ttyS0",
            made_of,
            spec,
        }
    }

    fn state(&self) -> MachineState {
        *self.state.lock().unwrap()
    }

    fn pause(&self, limit: Duration) -> Result<(), PauseError> {
        self.order("pause");
        match (self.state(), limit) {
            (MachineState::Ended, _) => Err(PauseError::Ended),
            (_, Duration::ZERO) => Err(PauseError::TimedOut(limit)),
            _ => Ok(()),
        }
    }

    fn resume(&self) {
        self.order("resume");
    }

    fn reset(&self, _: Duration) -> Result<(), ResetError> {
        self.order("reset");
        match self.state() {
            MachineState::Ended => Err(ResetError::Ended("it panicked".into())),
            _ => Ok(()),
        }
    }

    fn power_button(&self) {
        self.order("power-button");
    }

    fn kill(&self) {
        self.order("kill");
    }

    fn balloon(&self) -> Balloon {
        Balloon { mib: self.balloon.load(Ordering::Relaxed), actual_mib: 0 }
    }

    fn set_balloon(&self, mib: u64) -> Result<(), BalloonError> {
        let mem = "512".parse().unwrap();
        match (self.state(), mib) {
            (_, 512..) => Err(BalloonError::NothingLeft { mib, mem }),
            (MachineState::Ended, _) => Err(BalloonError::Ended),
            _ => {
                self.balloon.store(mib, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    fn stats(&self) -> Option<Stats> {
        (self.state() != MachineState::Ended).then(Stats::sample)
    }

    fn events(&self) -> Box<dyn EventSource> {
        Box::new(Queue(self.events.clone()))
    }

    fn console(&self) -> Box<dyn Console> {
        Box::new(Line { typed: self.typed.clone(), deaf: self.deaf.clone() })
    }
}

/// Says at once what is typed, and ends with the byte 4.
#[derive(Debug, Clone)]
struct Line {
    typed: Arc<Mutex<VecDeque<u8>>>,
    deaf: Arc<AtomicBool>,
}

impl Console for Line {
    fn read(&mut self, into: &mut [u8], _: Duration) -> io::Result<usize> {
        std::thread::sleep(Duration::from_millis(5));
        let mut typed = self.typed.lock().unwrap();
        match typed.pop_front() {
            Some(4) => Ok(0),
            Some(byte) => {
                into[0] = byte;
                Ok(1)
            }
            None => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn keyboard(&self) -> Box<dyn Keyboard> {
        Box::new(self.clone())
    }
}

impl Keyboard for Line {
    fn type_in(&mut self, bytes: &[u8]) -> usize {
        if self.deaf.load(Ordering::Relaxed) {
            return 0;
        }
        // Sometimes there is no room.
        let taken = bytes.len() / 2 + bytes.len() % 2;
        self.typed.lock().unwrap().extend(&bytes[..taken]);
        taken
    }
}

struct Queue(Arc<Mutex<VecDeque<MachineEvent>>>);

impl EventSource for Queue {
    fn next(&mut self, _: Duration) -> Next {
        let event = self.0.lock().unwrap().pop_front();
        if event.is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        event.map_or(Next::Nothing, Next::Event)
    }
}
