//! The catalogue.

use std::io;
use std::path::{Path, PathBuf};

use crate::code::code;
use crate::elf::{elf, pvh_elf};

/// A guest, and what it does. All but those that say otherwise end with the line `done` and power off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Guest {
    /// Port I/O of 8, 16 and 32 bits at port 0x5f0, which nobody has: `in8=ff in16=ffff in32=ffffffff`, at 0xe0 with the
    /// port in the instruction: `imm32=ffffffff`, and COM1's scratch register: `scratch=5aa5`.
    Ports,
    /// String I/O: `rep outsb says hello`, `and backwards`, the scratch register eight times: `insb=5a5a5a5a5a5a5a5a`,
    /// insb, insw and insd of port 0x5f0: `none=ffffffffffffffff`.
    StringIo,
    /// Writes and reads 1, 2, 4 and 8 bytes where nothing is, at 0xdff00000 and at 0x7fffe00000:
    /// `low  8=ff 16=ffff 32=ffffffff 64=ffffffffffffffff`, `high 8=...` the same, and the first dword of PCI device 31:
    /// `ecam ffffffff`.
    Mmio,
    /// Needs 5 GiB of memory. Says `ready`, and for each byte from COM1 writes to memory at 0x300000 and at 0x100005000, before it echoes
    /// that byte.
    HighWriter,
    /// Has a kvm-clock at 0x300000. Says `ready`, and for each byte from COM1 on a line whether the clock says that the guest was stopped since
    /// it last asked: `1` or `0` (PVCLOCK_GUEST_STOPPED).
    StoppedClock,
    /// Says `ready`, echoes COM1's input until the byte 0x04, polling; then `echoed=NNNNNNNN`, the bytes before it.
    EchoPolled,
    /// As [`Guest::EchoPolled`], but halted between COM1's interrupts (I/O APIC pin 4): `echoed=NNNNNNNN
    /// interrupts=NNNNNNNN`.
    EchoInterrupt,
    /// Prints 256 KiB as fast as it can: 4096 lines of 64 bytes, `00000000` to `00000fff` and dots.
    Flood,
    /// Halts until the local APIC's timer wakes it: `woke`.
    TimerWake,
    /// Says `armed` and halts until the local APIC's timer wakes it after a second: `woke`.
    SlowTimer,
    /// Says `ready`, halts until the power button (I/O APIC pin 9) is pressed: `button`.
    PowerButton,
    /// Starts all other CPUs by INIT and SIPI: `aps=NNNN`, how many came. It waits for as many as the command line's
    /// `cpus=N` says (N counts the first CPU), else until none has come for 400 million TSC ticks.
    Smp,
    /// As [`Guest::Smp`], with the interrupts sent through the x2APIC's MSRs.
    SmpX2apic,
    /// As [`Guest::Smp`], but says `ready` between INIT and SIPI, and waits for a byte from COM1.
    SmpLater,
    /// Looks through bus 0 for an MSI-X capability: `msix device=DD function=F bir=B`, sets vector 0 up, writes 1 (32
    /// bits) to offset 0 of the BAR that holds the table, and halts for the interrupt: `interrupt`. The BAR must have an
    /// address below 512 GiB and lie within 2 MiB. Without such a device: `no msix`.
    Msix,
    /// As [`Guest::Msix`], with vector 0 masked and vector 1 (which writing 2 triggers) open, then both open, then the
    /// whole function masked and open again; each time how often they came and the pending bits:
    /// `masked: first=0 second=1 pending=01`, `open: first=1 second=1 pending=00`,
    /// `function masked: first=1 second=1 pending=02`, `function open: first=1 second=2 pending=00`.
    MsixMasks,
    /// Writes pseudo-random numbers in every width to every port but 0x64, 0x3f8, 0x505, 0x600..=0x602 and 0xcf9, reading all; writes
    /// them to every byte of every memory BAR (of the first 16 KiB of larger ones) and of the configuration space of
    /// every function (of absent ones, to one doubleword), then says `junk functions=NNNN bars=NNNN` on a line of its own.
    Junk,
    /// Says `resetting` and writes 1 to the reset register (port 0x602).
    Reset,
    /// Says `faulting` and causes a triple fault.
    TripleFault,
    /// Says `halting` and halts for ever with interrupts off.
    Halt,
    /// Says `spinning` and does for ever.
    Busy,
    /// Says `panicking` and writes 1 to pvpanic (port 0x505). If that returns: `survived`, and halts for ever.
    Pvpanic,
    /// Says `Kernel panic - not syncing: test`, as Linux does, and resets.
    KernelPanic,
    /// Says `ready` and obeys what it reads from COM1: `r` resets, `k` panics as [`Guest::KernelPanic`], `q` says `done` and
    /// powers off. All else is ignored. A reset empties COM1's FIFO: send the next command after
    /// the next `ready`.
    Obedient,
    /// Says `ready` and ends as Linux does, by what it reads from COM1: `s` says a panic's first and last line and spins for
    /// ever, `w` says a panic's first line and `Rebooting in 600 seconds..` and spins, `t` says `reboot: Restarting system` and faults thrice, `h` says `reboot: System halted` and halts with interrupts
    /// off; `k` says `keyboard controller` and writes 0xfe to port 0x64, `p` says `chipset` and writes 2 and 6 to port 0xcf9; `q`
    /// says `done` and powers off.
    LinuxEnds,
    /// Says a panic's first and last line, as a program may, halts until the power button (I/O APIC pin 9) is pressed, and powers
    /// off.
    OldPanic,
    /// Says nothing and resets.
    Mute,
    /// What boot_params tell: `e820=NN ram=N{16}` (entries, bytes of usable memory), `cmdline=...`,
    /// `initrd=ADDRESS size=NNNNNNNN begins=N{16}` (its first 8 bytes in file order; nothing without one),
    /// `rsdp=ADDRESS found` (no `found` if the signature is not there).
    BootFacts,
    /// The real-time clock: `rtc=YYYY-MM-DD HH:MM:SS b=BB` (the registers in hex, so right for a clock in BCD; BB is
    /// register B), or `rtc=absent`.
    Time,
    /// Entered by PVH: `magic=336ec578 entries=NNNNNNNN modules=NNNNNNNN rsdp=NNNNNNNN` (entries of the memory map),
    /// `cmdline=...`.
    Pvh,
    /// Runs a guest of its own by SVM, which counts for ever. Says `ready`, and echoes COM1's input, for whose interrupts it leaves the
    /// inner guest, until the byte 0x04; then `echoed=NNNNNNNN`. Behind a `c` it says how far the inner guest has counted:
    /// `counted=N{16}`. If it left the inner guest for something else: `left for NNNNNNNN` (exit code). On a processor without SVM: `no svm`.
    Svm,
}

impl Guest {
    /// All of them.
    pub const ALL: [Guest; 31] = [
        Guest::Ports,
        Guest::StringIo,
        Guest::Mmio,
        Guest::HighWriter,
        Guest::StoppedClock,
        Guest::EchoPolled,
        Guest::EchoInterrupt,
        Guest::Flood,
        Guest::TimerWake,
        Guest::SlowTimer,
        Guest::PowerButton,
        Guest::Smp,
        Guest::SmpX2apic,
        Guest::SmpLater,
        Guest::Msix,
        Guest::MsixMasks,
        Guest::Junk,
        Guest::Reset,
        Guest::TripleFault,
        Guest::Halt,
        Guest::Busy,
        Guest::Pvpanic,
        Guest::KernelPanic,
        Guest::Obedient,
        Guest::LinuxEnds,
        Guest::OldPanic,
        Guest::Mute,
        Guest::BootFacts,
        Guest::Time,
        Guest::Pvh,
        Guest::Svm,
    ];

    /// Its machine code.
    pub fn code(self) -> &'static [u8] {
        code(self)
    }

    /// Its kernel file.
    pub fn elf(self) -> Vec<u8> {
        match self {
            Guest::Pvh => pvh_elf(self.code()),
            _ => elf(self.code()),
        }
    }

    /// Writes its kernel file into `dir`, under its own name, and gives back the path.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(self, dir: &Path) -> io::Result<PathBuf> {
        let path = dir.join(format!("{self:?}.elf"));
        std::fs::write(&path, self.elf())?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_guest_has_code_that_fits_a_page() {
        for guest in Guest::ALL {
            let len = guest.code().len();
            assert!((16..4096).contains(&len), "{guest:?} has {len} bytes");
        }
    }
}
