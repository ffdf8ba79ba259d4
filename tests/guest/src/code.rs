//! The assembled guests as slices: the one place of this crate with unsafe code.
#![allow(unsafe_code, reason = "symbols that the assembler defines can only be read as raw memory")]

use core::arch::global_asm;

use crate::Guest;

// One block, so that all guests see the prelude's macros. `raw`: braces are no format arguments.
global_asm!(
    include_str!("asm/prelude.s"),
    include_str!("asm/io.s"),
    include_str!("asm/serial.s"),
    include_str!("asm/apic.s"),
    include_str!("asm/pci.s"),
    include_str!("asm/ends.s"),
    include_str!("asm/facts.s"),
    include_str!("asm/svm.s"),
    ".text",
    options(raw)
);

/// What GUEST puts at a guest's symbol: the length of the code that follows.
#[repr(C)]
struct Header {
    length: u64,
}

macro_rules! guests {
    ($($guest:ident => $symbol:ident,)*) => {
        unsafe extern "C" {
            $(static $symbol: Header;)*
        }

        /// Where the guest's header lies.
        fn header(guest: Guest) -> *const Header {
            match guest {
                $(Guest::$guest => &raw const $symbol,)*
            }
        }
    };
}

guests! {
    Ports => tiny_guest_ports,
    StringIo => tiny_guest_string_io,
    Mmio => tiny_guest_mmio,
    HighWriter => tiny_guest_high_writer,
    StoppedClock => tiny_guest_stopped_clock,
    EchoPolled => tiny_guest_echo_polled,
    EchoInterrupt => tiny_guest_echo_interrupt,
    Flood => tiny_guest_flood,
    TimerWake => tiny_guest_timer_wake,
    SlowTimer => tiny_guest_slow_timer,
    PowerButton => tiny_guest_power_button,
    Smp => tiny_guest_smp,
    SmpX2apic => tiny_guest_smp_x2apic,
    SmpLater => tiny_guest_smp_later,
    Msix => tiny_guest_msix,
    MsixMasks => tiny_guest_msix_masks,
    Junk => tiny_guest_junk,
    Reset => tiny_guest_reset,
    TripleFault => tiny_guest_triple_fault,
    Halt => tiny_guest_halt,
    Busy => tiny_guest_busy,
    Pvpanic => tiny_guest_pvpanic,
    KernelPanic => tiny_guest_kernel_panic,
    Obedient => tiny_guest_obedient,
    LinuxEnds => tiny_guest_linux_ends,
    OldPanic => tiny_guest_old_panic,
    Mute => tiny_guest_mute,
    BootFacts => tiny_guest_boot_facts,
    Time => tiny_guest_time,
    Pvh => tiny_guest_pvh,
    Svm => tiny_guest_svm,
}

/// The machine code of `guest`; its first instruction is its entry.
pub(crate) fn code(guest: Guest) -> &'static [u8] {
    let header = header(guest);
    // SAFETY: the macro GUEST aligns the symbol to 16 bytes and puts an initialized u64 there, in read-only data.
    let length = unsafe { (*header).length };
    let length = usize::try_from(length).unwrap_or(0);
    // SAFETY: GUEST and END_GUEST enclose exactly `length` bytes of initialized read-only data behind the header, in
    // one section, and nothing ever writes to it.
    unsafe { core::slice::from_raw_parts(header.add(1).cast::<u8>(), length) }
}
