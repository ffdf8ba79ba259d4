//! A guest that sends random and malformed frames to its network, and answers on port 7 all the same.
//!
//! Freestanding, as the hostile guest, of which it has its platform. The command line chooses: `seed=N`; `frames=N`, sent in twenty
//! pieces, or none; `port=N`, a port at which the host's programs answer. It says `ready`, and after each piece
//! `at=N taken=N`, or `failed: ...`. In between it serves, until it hears a byte on the first serial port: datagrams and
//! streams to port 7 are echoed. After the last piece and byte it says `done` and powers off.
#![no_std]
#![no_main]

#[path = "../hostile/platform.rs"]
#[macro_use]
#[allow(dead_code, reason = "the hostile guest uses the rest")]
mod platform;
mod answers;
mod card;
#[path = "../hostile/device.rs"]
#[allow(dead_code, reason = "the hostile guest uses the rest")]
mod device;
mod junk;
mod packet;

use card::Card;
use device::{Device, Kind};
use junk::Junk;
use platform::{Chance, power_off};

const PIECES: u64 = 20;

/// Where ring 3 begins.
#[unsafe(no_mangle)]
extern "C" fn ring3(boot_params: u64) -> ! {
    let option = |key, other| platform::option(boot_params, key).unwrap_or(other);
    let device = (0..32).filter_map(Device::find).find(|device| device.kind == Kind::Network);
    let mut card = Card::start(device.unwrap_or_else(|| panic!("there is no network card")));
    let mut junk = Junk::new(Chance(option(b"seed=", 1)), option(b"port=", 9) as u16);
    platform::listen();
    card.send(packet::hello);
    card.flush();
    say!("ready");
    serve(&mut card);
    let frames = option(b"frames=", 0);
    for piece in 1..=if frames == 0 { 0 } else { PIECES } {
        for _ in 0..frames / PIECES {
            card.send(|frame| junk.frame(frame));
            card.receive(|received, card| {
                junk.see(received);
                if junk.is_polite() {
                    card.send(|frame| answers::answer(received, frame));
                }
            });
        }
        // Whatever address the network took the card for.
        card.send(packet::hello);
        card.flush();
        say!("at={} taken={}", frames / PIECES * piece, card.taken);
        serve(&mut card);
    }
    say!("done");
    power_off()
}

/// Answers until someone says something.
fn serve(card: &mut Card) {
    let mut turns = 0u64;
    loop {
        turns += 1;
        card.receive(|received, card| {
            card.send(|frame| answers::answer(received, frame));
            card.flush();
        });
        // Each look at the port is an exit.
        if turns.is_multiple_of(1024) && platform::input_waits() {
            platform::take_input();
            return;
        }
    }
}
