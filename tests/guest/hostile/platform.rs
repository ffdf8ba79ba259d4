//! The bare machine: the way into ring 3, memory, the port of the console, time, chance.

use core::arch::{asm, global_asm};
use core::fmt::{self, Write};
use core::panic::PanicInfo;

global_asm!(include_str!("start.s"));

#[repr(C, align(4096))]
struct Page([u64; 512]);

/// PML4, PDPT, directories of the first 4 GiB, directory of the window behind RAM.
static mut TABLES: [Page; 7] = [const { Page([0; 512]) }; 7];

/// Present, writable, for ring 3; and a page of 2 MiB.
const TABLE: u64 = 7;
const LARGE: u64 = 0x87;
/// PCI configuration space.
const ECAM: u64 = 0xe000_0000;

/// Maps the first 4 GiB, and the GiB in which the functions' BARs are; the root of the tables.
///
/// Runs in ring 0, perhaps emulated: plain integer instructions only.
#[unsafe(no_mangle)]
extern "C" fn map_memory() -> u64 {
    let root = &raw mut TABLES as u64;
    let at = |n: usize| root + 4096 * n as u64;
    // Volatile: the compiler would make vectors of it.
    let set = |table: usize, entry: usize, value: u64| poke::<u64>(at(table) + 8 * entry as u64, value);
    set(0, 0, at(1) | TABLE);
    for gib in 0..4usize {
        set(1, gib, at(2 + gib) | TABLE);
        for page in 0..512usize {
            set(2 + gib, page, ((gib * 512 + page) as u64) << 21 | LARGE);
        }
    }
    for slot in 0..32u64 {
        let bar = peek::<u64>(ECAM + (slot << 15) + 0x10) & !0xf;
        let gib = (bar >> 30) as usize;
        if (4..512).contains(&gib) {
            set(1, gib, at(6) | TABLE);
            for page in 0..512usize {
                set(6, page, (gib as u64) << 30 | (page as u64) << 21 | LARGE);
            }
            break;
        }
    }
    at(0)
}

fn out(port: u16, byte: u8) {
    // SAFETY: the handler changes no register and no memory.
    unsafe { asm!("ud2", in("rdi") u64::from(port), in("rsi") u64::from(byte)) }
}

fn input(port: u16) -> u8 {
    let byte: u64;
    // SAFETY: the handler changes no other register and no memory.
    unsafe { asm!("ud2", in("rdi") u64::from(port), in("rsi") -1i64, out("rax") byte) };
    byte as u8
}

/// Whether someone says something on the first serial port (16550: data ready in the line status).
pub fn input_waits() -> bool {
    input(0x3fd) & 1 != 0
}

/// Waits until someone says something on the first serial port.
pub fn wait_for_input() {
    while !input_waits() {
        core::hint::spin_loop();
    }
}

/// From now on what is said is heard between other things too (16550: interrupts for received data, which go nowhere).
pub fn listen() {
    out(0x3f9, 1);
}

/// The byte that was said.
pub fn take_input() -> u8 {
    input(0x3f8)
}

/// From now on interrupts reach the processor's local APIC (spurious interrupt vector register: on).
pub fn take_interrupts() {
    poke::<u32>(0xfee0_00f0, 0x1ff);
}

/// Halts until an interrupt comes that has not been counted yet.
pub fn wait_for_interrupt() {
    // SAFETY: the handler changes no register, and of memory its counter only.
    unsafe { asm!("ud2", in("rdi") -1i64) }
}

/// SharedRegisters of first queues that were taken so far.
pub fn interrupts() -> u64 {
    unsafe extern "C" {
        #[link_name = "interrupts"]
        static COUNTED: u64;
    }
    peek(&raw const COUNTED as u64)
}

/// The first serial port.
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| out(0x3f8, byte));
        Ok(())
    }
}

#[macro_export]
macro_rules! say {
    ($($words:tt)*) => {{
        use core::fmt::Write;
        let _ = writeln!($crate::platform::Console, $($words)*);
    }};
}

/// Switches the machine off (ACPI's sleep control register: SLP_EN, SLP_TYP 5).
pub fn power_off() -> ! {
    out(0x600, 0x20 | 5 << 2);
    loop {
        core::hint::spin_loop();
    }
}

/// Resets the machine (the reset register of ACPI).
pub fn boot_again() -> ! {
    out(0x602, 1);
    loop {
        core::hint::spin_loop();
    }
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    say!("failed: {info}");
    power_off()
}

/// The time stamp counter.
pub fn ticks() -> u64 {
    // SAFETY: it reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Reads `T` at a physical address.
pub fn peek<T: Copy>(address: u64) -> T {
    // SAFETY: everything is mapped one to one, and addresses come from this program: its own arenas and BARs.
    unsafe { (address as *const T).read_volatile() }
}

/// Writes `T` to a physical address.
pub fn poke<T: Copy>(address: u64, value: T) {
    // SAFETY: as for `peek`; what is written to are page tables, and what lies behind the program and its stacks.
    unsafe { (address as *mut T).write_volatile(value) }
}

/// The end of RAM below the hole, by the map that the loader gave.
pub fn end_of_ram(boot_params: u64) -> u64 {
    let entries = u64::from(peek::<u8>(boot_params + 0x1e8));
    let entry = |n: u64| boot_params + 0x2d0 + 20 * n;
    let ends = (0..entries).filter(|n| unaligned::<u32>(entry(*n) + 16) == 1);
    ends.map(|n| unaligned::<u64>(entry(n)) + unaligned::<u64>(entry(n) + 8)).max().unwrap_or(0)
}

fn unaligned<T: Copy>(address: u64) -> T {
    // SAFETY: as for `peek`.
    unsafe { (address as *const T).read_unaligned() }
}

/// The number behind `key` on the kernel's command line.
pub fn option(boot_params: u64, key: &[u8]) -> Option<u64> {
    let text = u64::from(peek::<u32>(boot_params + 0x228));
    let at = |n: u64| peek::<u8>(text + n);
    let len = (0..4096).find(|n| at(*n) == 0)?;
    let starts = |from: &u64| key.iter().zip(*from..).all(|(byte, n)| at(n) == *byte);
    let from = (0..len).find(starts)? + key.len() as u64;
    let digits = (from..len).map(at).take_while(u8::is_ascii_digit);
    Some(digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// Chance, the same again for the same seed (SplitMix64).
pub struct Chance(pub u64);

impl Chance {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}
