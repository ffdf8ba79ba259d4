//! A guest that writes its memory all the time, and looks whether each page still has what it wrote last: a page that went lost
//! on the way of a copy, or an old one, is noticed.
//!
//! Freestanding, as the hostile guest, of which it has its platform. It writes `pages=N` pages (2048 unless given), which are at 4
//! MiB, and rests for so many ticks of its clock after each as `rest=N` says (0 unless given). It says `ready`, then `round=N` now
//! and then; when it hears a byte it says `finished rounds=N renewed=0` behind the round (1 if it has another VM generation ID) and waits for another one, on which it goes on
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
    // Some pages have nothing in them for a round, many side by side: what was in their place before must be gone.
    let is_empty = round == 0 || (round + at / (64 * PAGE)).is_multiple_of(8);
    if is_empty { 0 } else { mixed ^ (mixed >> 29) }
}

/// Has the change of the VM generation ID (pin 10 of the I/O APIC) arrive at the local APIC, which keeps it: interrupts stay off.
fn take_generations() {
    const SELECT: u64 = 0xfec0_0000;
    const PIN: u32 = 0x10 + 2 * 10;
    platform::take_interrupts();
    for (register, value) in [(PIN + 1, 0), (PIN, GENERATION)] {
        poke::<u32>(SELECT, register);
        poke::<u32>(SELECT + 0x10, value);
    }
}

/// Its vector.
const GENERATION: u32 = 0x42;

/// Whether the VM generation ID has changed since the guest began (interrupt request register of the local APIC).
fn is_renewed() -> bool {
    let register = 0xfee0_0200 + 0x10 * u64::from(GENERATION / 32);
    peek::<u32>(register) >> (GENERATION % 32) & 1 == 1
}

#[unsafe(no_mangle)]
extern "C" fn ring3(boot_params: u64) -> ! {
    let pages = option(boot_params, b"pages=").unwrap_or(2048);
    let rest = option(boot_params, b"rest=").unwrap_or(0);
    take_generations();
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
            say!("finished rounds={round} renewed={}", u8::from(is_renewed()));
            platform::wait_for_input();
            if platform::take_input() != b'+' {
                power_off();
            }
        }
    }
    power_off()
}
