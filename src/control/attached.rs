//! A client at the guest's console.

use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use devices::thread::{Role, spawn_scoped};

use super::Limits;
use super::answer::Answer;
use super::conversation::{LOOK, is_there};
use super::request::CONSOLE;
use super::subject::{Console, Keyboard, Subject};
use super::wire::{Wire, is_late};
use crate::host::ready::has_left;

/// How long to leave a guest alone that reads nothing of what is typed.
const NO_ROOM: Duration = Duration::from_millis(10);
/// How long the client may type nothing before we look whether it is to go on.
const SILENCE: Duration = Duration::from_secs(3600);

/// Carries what the guest says to the client, and what the client types to the guest if it asked for that, until the
/// machine ends or the client goes. A client that takes nothing for a while is let go; the guest does not wait for it.
pub(super) fn console(wire: &mut impl Wire, subject: &dyn Subject, limits: &Limits, typing: bool) {
    let mut console = subject.console();
    let head =
        if typing { Answer::upgrade_head(CONSOLE) } else { Answer::stream_head("application/octet-stream") };
    if wire.write(&head, Instant::now() + limits.write).is_err() {
        return;
    }
    // Two threads on one connection: std's sockets need no lock for that.
    let second = wire.second().filter(|_| typing).and_then(|stream| stream.try_clone().ok());
    let Some(second) = second else {
        return show(wire, &mut *console, limits, |wire, discarded| is_there(wire, discarded));
    };
    // `typed`: the client has closed its writing half, and may read on.
    let (gone, typed, keyboard) = (AtomicBool::new(false), AtomicBool::new(false), console.keyboard());
    thread::scope(|scope| {
        let typist = spawn_scoped(scope, Role::ControlClient, "control-typist", || {
            let end = if carry(&second, keyboard, &gone, limits) { &typed } else { &gone };
            end.store(true, Ordering::Release);
        });
        if typist.is_ok() {
            show(wire, &mut *console, limits, |_, _| {
                let left = || typed.load(Ordering::Acquire) && has_left(&second);
                !gone.load(Ordering::Acquire) && !left()
            });
        }
        gone.store(true, Ordering::Release);
        // Wakes the other thread; the client has gone, or there is nothing more to say to it.
        let _ = second.shutdown(Shutdown::Both);
    });
}

/// To the client.
fn show<W: Wire>(
    wire: &mut W,
    console: &mut dyn Console,
    limits: &Limits,
    is_there: impl Fn(&mut W, &mut usize) -> bool,
) {
    let (mut bytes, mut discarded) = ([0; 4096], 0);
    loop {
        match console.read(&mut bytes, LOOK) {
            Ok(0) => return,
            Ok(n) => {
                let said = bytes.get(..n).unwrap_or_default();
                if wire.write(said, Instant::now() + limits.write).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == ErrorKind::TimedOut && is_there(wire, &mut discarded) => {}
            Err(_) => return,
        }
    }
}

/// To the guest, until the client's last byte; false if that did not come. While the guest reads nothing, nothing is taken
/// from the client; whether that is still there is asked of the connection itself, since nobody reads it then.
fn carry(stream: &UnixStream, mut keyboard: Box<dyn Keyboard>, gone: &AtomicBool, limits: &Limits) -> bool {
    let (mut from, mut bytes) = (stream, [0; 4096]);
    // Until when the guest may take what a client has left behind.
    let mut left_until = None;
    while !gone.load(Ordering::Acquire) {
        let mut rest = match Wire::read(&mut from, &mut bytes, Instant::now() + SILENCE) {
            Ok(0) => return true,
            Ok(n) => bytes.get(..n).unwrap_or_default(),
            Err(error) if is_late(&error) => continue,
            Err(_) => return false,
        };
        while !rest.is_empty() && !gone.load(Ordering::Acquire) {
            let taken = keyboard.type_in(rest);
            rest = rest.get(taken..).unwrap_or_default();
            if taken > 0 {
                continue;
            }
            if has_left(stream) {
                let until = *left_until.get_or_insert_with(|| Instant::now() + limits.write);
                if Instant::now() >= until {
                    return false;
                }
            }
            thread::sleep(NO_ROOM);
        }
    }
    false
}
