//! A client that is connected to the guest's console.

use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use devices::thread::{Role, spawn_scoped};

use super::Limits;
use super::answer::Answer;
use super::connection::{CHECK_INTERVAL, is_connected};
use super::request::CONSOLE;
use super::target::{Console, Keyboard};
use super::wire::{Wire, is_timeout};
use crate::host::ready::is_hung_up;

/// Pause between two attempts to type while the guest reads no input.
const RETRY_DELAY: Duration = Duration::from_millis(10);
/// How long a read of the client's input may block before it is started again.
const READ_LIMIT: Duration = Duration::from_secs(3600);

/// Copies the guest's output to the client and, for an upgraded connection, the client's input to the guest,
/// until the machine ends or the client disconnects. A client that reads nothing for `limits.write` is
/// disconnected; the guest never waits for it.
pub(super) fn serve(wire: &mut impl Wire, mut console: Box<dyn Console>, limits: &Limits, typing: bool) {
    let head = if typing {
        Answer::upgrade_head(CONSOLE, &[])
    } else {
        Answer::stream_head("application/octet-stream")
    };
    if wire.write(&head, Instant::now() + limits.write).is_err() {
        return;
    }
    // Two threads use one connection: std's sockets need no lock for that.
    let stream_copy = wire.shared_stream().filter(|_| typing).and_then(|stream| stream.try_clone().ok());
    let Some(stream_copy) = stream_copy else {
        return output_to_client(wire, &mut *console, limits, |wire, discarded| {
            is_connected(wire, discarded)
        });
    };
    // `input_ended`: the client has closed its writing half and may still read.
    let (closed, input_ended, keyboard) =
        (AtomicBool::new(false), AtomicBool::new(false), console.keyboard());
    thread::scope(|scope| {
        let input_thread = spawn_scoped(scope, Role::ControlClient, "control-input", || {
            let end =
                if input_to_guest(&stream_copy, keyboard, &closed, limits) { &input_ended } else { &closed };
            end.store(true, Ordering::Release);
        });
        if input_thread.is_ok() {
            output_to_client(wire, &mut *console, limits, |_, _| {
                let disconnected = || input_ended.load(Ordering::Acquire) && is_hung_up(&stream_copy);
                !closed.load(Ordering::Acquire) && !disconnected()
            });
        }
        closed.store(true, Ordering::Release);
        // Wakes the other thread: the client has disconnected, or the output is complete.
        let _ = stream_copy.shutdown(Shutdown::Both);
    });
}

/// Copies the guest's output to the client.
fn output_to_client<W: Wire>(
    wire: &mut W,
    console: &mut dyn Console,
    limits: &Limits,
    is_connected: impl Fn(&mut W, &mut usize) -> bool,
) {
    let (mut bytes, mut discarded) = ([0; 4096], 0);
    loop {
        match console.read(&mut bytes, CHECK_INTERVAL) {
            Ok(0) => return,
            Ok(n) => {
                let output = bytes.get(..n).unwrap_or_default();
                if wire.write(output, Instant::now() + limits.write).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == ErrorKind::TimedOut && is_connected(wire, &mut discarded) => {}
            Err(_) => return,
        }
    }
}

/// Copies the client's input to the guest; true at the end of the input, false on an error. Back-pressure:
/// while the guest reads nothing, nothing is read from the client, so the connection itself is asked whether
/// the client is still there.
fn input_to_guest(
    stream: &UnixStream,
    mut keyboard: Box<dyn Keyboard>,
    closed: &AtomicBool,
    limits: &Limits,
) -> bool {
    let (mut from, mut bytes) = (stream, [0; 4096]);
    // How long the guest may take for the input of a client that has disconnected.
    let mut input_deadline = None;
    while !closed.load(Ordering::Acquire) {
        let mut rest = match Wire::read(&mut from, &mut bytes, Instant::now() + READ_LIMIT) {
            Ok(0) => return true,
            Ok(n) => bytes.get(..n).unwrap_or_default(),
            Err(error) if is_timeout(&error) => continue,
            Err(_) => return false,
        };
        while !rest.is_empty() && !closed.load(Ordering::Acquire) {
            let typed = keyboard.type_in(rest);
            rest = rest.get(typed..).unwrap_or_default();
            if typed > 0 {
                continue;
            }
            if is_hung_up(stream) {
                let until = *input_deadline.get_or_insert_with(|| Instant::now() + limits.write);
                if Instant::now() >= until {
                    return false;
                }
            }
            thread::sleep(RETRY_DELAY);
        }
    }
    false
}
