//! The lines of a console by which Linux, or its initramfs, says how it ends.

use super::{ConsoleId, Watch};

/// What Linux prints when it panics.
pub(in crate::machine) const PANIC_LINE: &str = "Kernel panic - not syncing";

/// How much of a line is looked at.
const MOST: usize = 512;

/// A line of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::machine) enum Line {
    /// A kernel begins: the first of a boot, or the next one by kexec.
    LinuxVersion,
    /// The kernel runs its first program.
    InitRuns,
    /// A panic begins.
    Panic,
    /// The kernel prints nothing after this, and stays where it is.
    PanicEnd,
    /// It resets the machine in so many seconds.
    RebootingIn(u64),
    /// It could not even panic, and halts.
    EarlyPanic,
    /// A program has asked the kernel to restart, or the magic key has.
    Restarting,
    /// The same to switch the machine off.
    PowerDown,
    /// The same to halt.
    Halted,
    /// initramfs-tools reboots because of `panic=`.
    InitramfsGivesUp,
}

/// Where a line that the kernel prints may begin behind a prompt that was printed before.
const PROMPTS: [&[u8]; 4] = [b": ", b"# ", b"$ ", b"> "];

impl Line {
    /// What a line, without its end, says.
    pub(in crate::machine) fn of(line: &[u8]) -> Option<Line> {
        let text = without_stamp(line);
        let begins = |words: &str| text.starts_with(words.as_bytes());
        let says = |words: &str| behind_prompt(text, words.as_bytes());
        if begins("Linux version ") {
            Some(Line::LinuxVersion)
        } else if begins("Run /") && text.ends_with(b" as init process") {
            Some(Line::InitRuns)
        } else if begins("---[ end Kernel panic - not syncing") {
            Some(Line::PanicEnd)
        } else if says(PANIC_LINE) {
            Some(Line::Panic)
        } else if begins("Rebooting in ") {
            seconds(text).map(Line::RebootingIn)
        } else if begins("PANIC: early exception") || begins("-- System halted") {
            Some(Line::EarlyPanic)
        } else if says("Restarting system") || begins("sysrq: Resetting") || begins("SysRq : Resetting") {
            Some(Line::Restarting)
        } else if says("Power down") {
            Some(Line::PowerDown)
        } else if says("System halted") {
            Some(Line::Halted)
        } else if begins("Rebooting automatically due to panic= boot argument") {
            Some(Line::InitramfsGivesUp)
        } else {
            None
        }
    }
}

/// The line behind the kernel's time stamp, `[    1.234567]`, and its thread or processor, `[    T1]`; without a stamp the
/// line. A stamp may stand behind a prompt that was printed before.
fn without_stamp(line: &[u8]) -> &[u8] {
    let mut text = line;
    for (at, _) in line.iter().enumerate().filter(|(_, byte)| **byte == b'[') {
        let Some(behind) = line.get(at + 1..) else { break };
        let Some(end) = behind.iter().position(|byte| *byte == b']') else { break };
        let (inside, after) = behind.split_at(end);
        let inside = inside.trim_ascii();
        let stamp = inside.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.')
            && inside.contains(&b'.')
            && inside.first().is_some_and(u8::is_ascii_digit);
        if stamp {
            text = after.get(1..).unwrap_or_default();
        }
    }
    let text = text.trim_ascii();
    let caller = text.strip_prefix(b"[").and_then(|rest| {
        let end = rest.iter().position(|byte| *byte == b']')?;
        let (inside, after) = rest.split_at(end);
        let number = inside.trim_ascii().strip_prefix(b"T").or(inside.trim_ascii().strip_prefix(b"C"))?;
        number.iter().all(u8::is_ascii_digit).then(|| after.get(1..).unwrap_or_default())
    });
    caller.unwrap_or(text).trim_ascii_start()
}

/// Whether `words` begin the text, or follow a prompt in it.
fn behind_prompt(text: &[u8], words: &[u8]) -> bool {
    let at = text.windows(words.len()).position(|window| window == words);
    at.is_some_and(|at| {
        let before = text.get(..at).unwrap_or_default();
        before.is_empty() || PROMPTS.iter().any(|prompt| before.ends_with(prompt))
    })
}

/// Of `Rebooting in 30 seconds..`.
fn seconds(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    text.strip_prefix("Rebooting in ")?.split_once(" seconds")?.0.parse().ok()
}

/// Takes a console's output and finds its lines.
#[derive(Debug)]
pub(in crate::machine) struct LineWatch {
    console: ConsoleId,
    line: Vec<u8>,
    watch: Watch,
}

impl LineWatch {
    pub(super) fn new(console: ConsoleId, watch: Watch) -> Self {
        LineWatch { console, line: Vec::new(), watch }
    }

    /// What the console said. Never waits.
    pub(in crate::machine) fn look_at(&mut self, bytes: &[u8]) {
        let mut said = 0;
        for byte in bytes {
            match byte {
                b'\n' | b'\r' => {
                    self.watch.said(self.console, std::mem::take(&mut said));
                    if let Some(line) = Line::of(&self.line) {
                        self.watch.line(self.console, line);
                    }
                    self.line.clear();
                }
                _ => {
                    said += u64::from(!byte.is_ascii_whitespace());
                    if self.line.len() < MOST {
                        self.line.push(*byte);
                    }
                }
            }
        }
        self.watch.said(self.console, said);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_known_with_and_without_stamps_and_behind_a_prompt() {
        for (line, meaning) in [
            ("Linux version 6.1.0-18-cloud-amd64 (debian-kernel@lists.debian.org)", Line::LinuxVersion),
            ("[    0.000000] Linux version 6.12.43", Line::LinuxVersion),
            ("[    0.412345][    T1] Run /init as init process", Line::InitRuns),
            ("Run /sbin/init as init process", Line::InitRuns),
            ("[    1.5] Kernel panic - not syncing: VFS: Unable to mount root fs", Line::Panic),
            ("[12345.678901][   C0] Kernel panic - not syncing: Fatal exception", Line::Panic),
            ("Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100", Line::Panic),
            ("debian login: [   30.1] Kernel panic - not syncing: sysrq triggered crash", Line::Panic),
            ("debian login: Kernel panic - not syncing: sysrq triggered crash", Line::Panic),
            ("~ # Kernel panic - not syncing: sysrq triggered crash", Line::Panic),
            ("[    1.6] ---[ end Kernel panic - not syncing: of fear ]---", Line::PanicEnd),
            ("---[ end Kernel panic - not syncing: of fear", Line::PanicEnd),
            ("[    1.6] Rebooting in 30 seconds..", Line::RebootingIn(30)),
            ("PANIC: early exception 0x0e IP 10:ffffffff81000000 error 0 cr2 0x0", Line::EarlyPanic),
            (" -- System halted", Line::EarlyPanic),
            ("[   60.1] reboot: Restarting system", Line::Restarting),
            ("~ # [   60.1] reboot: Restarting system with command 'x'", Line::Restarting),
            ("[    2.0] sysrq: Resetting", Line::Restarting),
            ("Restarting system.", Line::Restarting),
            ("[   60.1] reboot: Power down", Line::PowerDown),
            ("[   60.1] reboot: System halted", Line::Halted),
            ("[   60.1] reboot: Power off not available: System halted instead", Line::Halted),
            ("Rebooting automatically due to panic= boot argument", Line::InitramfsGivesUp),
        ] {
            assert_eq!(Line::of(line.as_bytes()), Some(meaning), "{line}");
        }
    }

    #[test]
    fn lines_that_only_quote_them_are_none() {
        for line in [
            "",
            "[",
            "[    1.5",
            "panic=-1 console=ttyS0",
            "# echo Kernel panic - not syncing",
            "kern.log:Kernel panic - not syncing: old",
            "grep 'Kernel panic - not syncing' kern.log",
            "Kernel panic - not syncin",
            "\techo \"Rebooting automatically due to panic= boot argument\"",
            "Rebooting in a moment",
            "Rebooting in 99999999999999999999 seconds..",
            "Run /init as you like",
            "not Power down",
        ] {
            assert_eq!(Line::of(line.as_bytes()), None, "{line}");
        }
    }
}
