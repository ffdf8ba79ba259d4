//! Tiny guests: a few instructions each, wrapped as ELF kernels, for tests of the real machine on a real /dev/kvm.
//!
//! They also run where ring 0 is emulated instruction by instruction, so they keep to plain integer instructions. Each
//! speaks on COM1 (port 0x3f8), numbers in hexadecimal, and switches the machine off when it has said `done`, through
//! the sleep control register (port 0x600); [`Guest`] says what else it prints and does. They need 4 MiB of memory:
//! `minivmm --kernel guest.elf --mem 4`.

mod code;
mod elf;
mod guest;

pub use elf::{LOAD_ADDRESS, MEMORY, elf, pvh_elf, write_elf};
pub use guest::Guest;

/// The kernel file of a guest that keeps a disk busy (`tests/guest/load`), a program in Rust. It needs 16 MiB of memory.
pub const LOAD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/load"));

/// What that guest writes as word `word` of a block, the `number`th time that it writes one.
pub const fn load_word(number: u64, word: u64) -> u64 {
    let mixed = (number << 16 | word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29) ^ number
}

/// The kernel file of the hostile guest (`tests/guest/hostile`), a program in Rust. It needs 16 MiB of memory.
pub const HOSTILE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hostile"));

/// The kernel file of the guest that sends random frames (`tests/guest/frames`), a program in Rust. It needs 16 MiB of memory.
pub const FRAMES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/frames"));

/// The kernel file of the guest that is told what to do with its disk (`tests/guest/disk`). It needs 16 MiB of memory.
pub const DISK: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/disk"));

/// The kernel file of the guest that writes its memory all the time and looks at what it wrote (`tests/guest/writer`). It needs 16
/// MiB of memory.
pub const WRITER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/writer"));

/// The kernel file of the guest that waits for a command, as the init of `minivmm run` does (`tests/guest/command`). It needs 16 MiB of
/// memory.
pub const COMMAND: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/command"));

/// The kernel file of the guest that speaks FUSE to its share (`tests/guest/share`). It needs 16 MiB of memory.
pub const SHARE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/share"));

/// What the guest [`POWER`] writes.
#[path = "../power/plan.rs"]
pub mod plan;

/// The kernel file of the guest that tells which of its flushes were acknowledged (`tests/guest/power`), a program in Rust. It
/// needs 16 MiB of memory.
pub const POWER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/power"));
