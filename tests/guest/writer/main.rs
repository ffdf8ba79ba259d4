//! A guest that writes its memory all the time, and looks whether each page still has what it wrote last: a page that went lost
//! on the way of a copy, or an old one, is noticed.
//!
//! Freestanding, as the hostile guest, of which it has its platform. It writes `pages=N` pages (2048 unless given), which are at 4
//! MiB, and rests for so many ticks of its clock after each as `rest=N` says (0 unless given). It says `ready`, then `round=N` now
//! and then; when it hears a byte it says `finished rounds=N` behind the round and waits for another one, on which it goes on
//! (`+`) or powers off (any other); or `failed: ...`.
#![no_std]
#![no_main]

#[path = "../hostile/platform.rs"]
#[macro_use]
#[allow(dead_code, reason = "the hostile guest uses the rest")]
mod platform;

use platform::{option, peek, poke, power_off, ticks};

const FIRST: u64 = 4 << 20;
const PAGE: u64 = 4096;
/// Where in a page there is a word.
const WORDS: [u64; 2] = [0, PAGE - 8];

fn word(round: u64, at: u64) -> u64 {
    let mixed = (round << 40 ^ at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    if round == 0 { 0 } else { mixed ^ (mixed >> 29) }
}

#[unsafe(no_mangle)]
extern "C" fn ring3(boot_params: u64) -> ! {
    let pages = option(boot_params, b"pages=").unwrap_or(2048);
    let rest = option(boot_params, b"rest=").unwrap_or(0);
    say!("ready");
    for round in 1u64.. {
        for page in 0..pages {
            for offset in WORDS {
                let at = FIRST + page * PAGE + offset;
                let (found, wanted) = (peek::<u64>(at), word(round - 1, at));
                assert!(found == wanted, "round {round}: {found:#x} at {at:#x} in place of {wanted:#x}");
                poke::<u64>(at, word(round, at));
            }
            let begin = ticks();
            while ticks().wrapping_sub(begin) < rest {
                core::hint::spin_loop();
            }
        }
        if round.is_power_of_two() || round.is_multiple_of(64) {
            say!("round={round}");
        }
        if platform::input_waits() {
            platform::take_input();
            say!("finished rounds={round}");
            platform::wait_for_input();
            if platform::take_input() != b'+' {
                power_off();
            }
        }
    }
    power_off()
}
