//! Stock Debian kernels boot: every form, processors, memory, clocks, and no time lost waiting.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails fails its test"
)]

#[path = "support/dose.rs"]
mod dose;
#[path = "support/lab_guest.rs"]
mod lab_guest;

use dose::soak;
use lab::{Cmd, LabKind, Process, Status};
use lab_guest::{BOOT, PROMPT, SOON, in_guest, lab, minivmm, status};

/// What a guest says of its kernel, its processors and its memory. Each processor is a core of one package.
const FACTS: &str = "uname -rv; echo cpus $(nproc) $(grep -c '^physical id.*: 0$' /proc/cpuinfo) \
    $(grep -m1 siblings /proc/cpuinfo | cut -d: -f2); free -m | grep Mem:; echo answer $((6 * 7))";

/// Which kernel a guest has, how many processors, and how much memory of so many MiB: what the kernel counts is the memory less
/// what it keeps for itself.
#[track_caller]
fn facts_are(text: &str, flavour: &str, cpus: u64, mib: u64) {
    assert_eq!(text.contains("-cloud-"), flavour == "cloud", "{text}");
    assert!(text.contains("Debian") && text.contains("answer 42"), "{text}");
    let after = |word: &str| {
        // A line that was typed may be shown in pieces.
        let said = text.lines().filter(|line| !line.contains('$'));
        let line = said.filter_map(|line| line.trim().strip_prefix(word)).next();
        let numbers = line.unwrap_or_else(|| panic!("no {word}: {text}")).split_whitespace();
        numbers.map(|number| number.parse().unwrap()).collect::<Vec<u64>>()
    };
    assert_eq!(after("cpus "), [cpus; 3], "processors, those of package 0, siblings: {text}");
    let total = after("Mem:")[0];
    assert!(total <= mib && total * 100 >= mib * 64, "{total} of {mib} MiB: {text}");
}

/// A guest at its shell on a terminal, and what it says of itself.
fn at_its_shell(flavour: &str, form: &str, flags: &[&str]) -> (Process, String) {
    let cmd = minivmm(flavour, form).args(["--append", "quiet"]).args(flags.iter().copied()).tty();
    let mut guest = lab().spawn(&cmd).unwrap();
    guest.expect(PROMPT, BOOT).unwrap();
    guest.send(format!("{FACTS}\n")).unwrap();
    // The echo of the line has the sum in it.
    let said = guest.expect("answer 42", SOON).unwrap();
    (guest, said)
}

/// And with more memory than the host has: it lies on both sides of the hole below 4 GiB.
#[test]
fn cloud_bzimage_reaches_a_shell_with_four_processors_6_gib_and_every_byte_that_is_pasted() {
    let (mut guest, said) = at_its_shell("cloud", "bzimage", &["--cpus", "4", "--mem", "6G"]);
    facts_are(&said, "cloud", 4, 6144);
    ten_thousand_pasted_bytes_arrive(&mut guest);
    guest.send("poweroff -f\n").unwrap();
    assert_eq!(status(&mut guest), Status::Exited(0));
}

/// And with a clock chip, where one is asked for.
#[test]
fn generic_bzimage_reaches_a_shell_with_3_gib_and_a_clock_chip() {
    let (mut guest, said) = at_its_shell("generic", "bzimage", &["--mem", "3G", "--rtc", "utc"]);
    facts_are(&said, "generic", 1, 3072);
    guest.send("echo chip $(cat /sys/class/rtc/rtc0/since_epoch) $(date +%s) read\n").unwrap();
    guest.expect("\nchip ", SOON).unwrap();
    let said = guest.expect("read", SOON).unwrap();
    let numbers: Vec<u64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [chip, clock] = numbers.as_slice() else { panic!("{said}") };
    // They are read one after the other.
    assert!(chip.abs_diff(*clock) <= late(), "{said}");
    guest.send("poweroff -f\n").unwrap();
    assert_eq!(status(&mut guest), Status::Exited(0));
}

/// Seconds by which a guest's clock may be late: one that is emulated twice loses timer ticks until it has its clock source, a
/// second for each that a busy host keeps it waiting.
fn late() -> u64 {
    if lab().kind() == LabKind::Nested { 60 } else { 3 }
}

/// And on pipes, with the least memory.
#[test]
fn cloud_vmlinux_reaches_a_shell_by_pvh_with_two_processors_and_128_mib_on_pipes() {
    let commands = format!("{FACTS}\npoweroff -f\n");
    lab().put("commands", commands.as_bytes()).unwrap();
    let line = "cat commands | ./minivmm --kernel cloud.vmlinux --initrd cloud.initrd --append quiet --cpus 2 --mem 128 | cat";
    let out = lab().exec(&Cmd::sh(line).limit(BOOT)).unwrap();
    facts_are(&out.text(), "cloud", 2, 128);
}

/// And without any input.
#[test]
fn generic_vmlinux_reaches_its_init_by_pvh_with_512_mib_and_no_input() {
    if !soak() {
        println!("in `make soak`: the other three have the generic kernel, PVH, and lab_life no input");
        return;
    }
    let out = in_guest(minivmm("generic", "vmlinux").args(["--mem", "512M"]), FACTS, "");
    assert_eq!(out.status, Status::Exited(0), "{}", out.text());
    assert!(out.text().contains("answer 42\r\nLAB-STATUS 0"), "{}", out.text());
    facts_are(&out.text(), "generic", 1, 512);
}

fn ten_thousand_pasted_bytes_arrive(guest: &mut Process) {
    let text: Vec<u8> = (0..10_240u32).map(|i| b'a' + (i * 7 % 23) as u8).collect();
    let sum = text.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    guest
        .send("stty raw -echo; echo ready; head -c 10240 > /tmp/pasted; stty sane; wc -c < /tmp/pasted\n")
        .unwrap();
    // A raw terminal adds no carriage return; its echo of the line has a semicolon there.
    guest.expect("ready\n", SOON).unwrap();
    guest.send(&text).unwrap();
    guest.expect("10240", SOON).unwrap();
    guest
        .send(
            "od -An -v -tu1 /tmp/pasted | awk '{for (i = 1; i <= NF; i++) s += $i} END {print \"sum\", s}'\n",
        )
        .unwrap();
    guest.expect(&format!("sum {sum}"), SOON).unwrap();
}

#[test]
fn nothing_is_waited_for_and_the_clock_is_right() {
    let line = "dmesg > /tmp/log; grep -c . /tmp/log; grep -iE 'i8042|rtc|serio|ctr|current time|timed out|stall' /tmp/log; \
                cat /sys/devices/system/clocksource/clocksource0/current_clocksource; echo now $(date +%s)";
    // The guest's host is the lab's machine, whose own clock the emulation lets drift: both are read there, at once.
    let out = lab().exec(&Cmd::sh(format!(
        "./minivmm --kernel cloud.bzimage --initrd cloud.initrd --append 'quiet {}' | while read -r line; do \
         case $line in now*) echo \"$line\" host $(date +%s);; *) echo \"$line\";; esac; done",
        lab::guest_command(line)
    )).limit(BOOT)).unwrap();
    let text = out.text();
    let clocks = text.lines().find(|line| line.starts_with("now ")).unwrap_or_else(|| panic!("{text}"));
    let clocks: Vec<u64> = clocks.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [guest, host] = clocks.as_slice() else { panic!("{text}") };
    assert!(host.abs_diff(*guest) <= late(), "host {host}, guest {guest}");
    assert!(text.contains("kvm-clock"), "{text}");
    // The one line that may name the keyboard controller says that there is none; a kernel that looks for one, or for
    // a clock chip, says so before it waits for its answer. (Seconds between lines would measure the emulation.)
    let mentions: Vec<&str> = text.lines().filter(|line| line.contains("i8042")).collect();
    assert!(mentions.iter().all(|line| line.contains("No PS/2 controller found")), "{mentions:?}");
    for waiting in ["timed out", "rtc_cmos", "serio", "Can't read CTR", "Unable to read current time"] {
        assert!(!text.contains(waiting), "{waiting}: {text}");
    }
    assert!(text.contains("LAB-STATUS 0"), "{text}");
}
