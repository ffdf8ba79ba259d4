//! The devices of a machine as a guest sees them: each device and bus width, through the real command on
//! /dev/kvm.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/vmm.rs"]
mod vmm;

use std::fs::{self, File};
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use tiny_guest::Guest;
use vmm::{Launch, run};

#[test]
fn ports_answer_in_every_width() {
    run(Guest::Ports, &[]).is("in8=ff in16=ffff in32=ffffffff\nimm32=ffffffff\nscratch=5aa5\ndone\n", 0);
}

#[test]
fn string_io_moves_every_element_in_order() {
    let said = "rep outsb says hello\nand backwards\ninsb=5a5a5a5a5a5a5a5a\nnone=ffffffffffffffff\ndone\n";
    run(Guest::StringIo, &[]).is(said, 0);
}

#[test]
fn memory_with_nothing_behind_it_answers_in_every_width() {
    let each = "8=ff 16=ffff 32=ffffffff 64=ffffffffffffffff";
    run(Guest::Mmio, &[]).is(&format!("low  {each}\nhigh {each}\necam ffffffff\ndone\n"), 0);
}

#[test]
fn a_halted_cpu_wakes_for_its_timer() {
    run(Guest::TimerWake, &[]).is("woke\ndone\n", 0);
}

#[test]
fn other_cpus_start_by_init_and_sipi_through_either_apic() {
    for guest in [Guest::Smp, Guest::SmpX2apic] {
        for (cpus, said) in [("1", "aps=0000\ndone\n"), ("2", "aps=0001\ndone\n"), ("4", "aps=0003\ndone\n")]
        {
            run(guest, &["--cpus", cpus, "--append", &format!("cpus={cpus}")]).is(said, 0);
        }
    }
}

#[test]
fn as_many_cpus_as_8_bit_apic_ids_can_tell_apart_start_and_no_more() {
    run(Guest::SmpX2apic, &["--cpus", "255", "--append", "cpus=255", "--mem", "16"])
        .is("aps=00fe\ndone\n", 0);
    run(Guest::Smp, &["--cpus", "256", "--mem", "64"]).is("", 2).said(&["`256`", "from 1 to 255"]);
}

#[test]
fn junk_everywhere_harms_nobody() {
    let ended = run(Guest::Junk, &[]);
    assert!(ended.stdout.ends_with("\njunk functions=0004 bars=0003\ndone\n"), "{ended:?}");
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
}

#[test]
fn junk_everywhere_harms_no_clock_either() {
    let ended = run(Guest::Junk, &["--rtc", "utc"]);
    assert!(ended.stdout.ends_with("\njunk functions=0004 bars=0003\ndone\n"), "{ended:?}");
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
}

#[test]
fn boot_facts_are_the_machines_own() {
    let launch = Launch::new(Guest::BootFacts);
    let initrd = launch.path().join("initrd");
    // Its first bytes in file order: "070701" is how a cpio archive begins.
    let mut bytes = b"07070100".to_vec();
    bytes.resize(0x1234, b'x');
    fs::write(&initrd, bytes).unwrap();
    let ended = launch.args(&["--initrd", initrd.to_str().unwrap(), "--append", "one=1 two"]).run();
    // 4 MiB less the legacy area from 0x9fc00 to 1 MiB.
    let said = "e820=04 ram=000000000039fc00\ncmdline=console=ttyS0 panic=-1 pci=noearly one=1 two\n\
                initrd=003fe000 size=00001234 begins=3037303730313030\nrsdp=000e0000 found\ndone\n";
    ended.is(said, 0);
}

#[test]
fn memory_above_the_hole_is_told_to_the_guest() {
    let ended = run(Guest::BootFacts, &["--mem", "5G", "--cmdline", ""]);
    // As above with 5 GiB; the range above the hole makes one entry more.
    assert!(ended.stdout.starts_with("e820=05 ram=000000013ff9fc00\ncmdline=\ninitrd=00000000"), "{ended:?}");
    assert_eq!(ended.status.code(), Some(0));
}

#[test]
fn pvh_entry_finds_its_start_info() {
    let launch = Launch::new(Guest::Pvh);
    let initrd = launch.path().join("initrd");
    fs::write(&initrd, "07070100").unwrap();
    let ended = launch.args(&["--initrd", initrd.to_str().unwrap(), "--cmdline", "quiet"]).run();
    ended.is("magic=336ec578 entries=00000004 modules=00000001 rsdp=000e0000\ncmdline=quiet\ndone\n", 0);
    let ended = run(Guest::Pvh, &["--cmdline", "quiet"]);
    ended.is("magic=336ec578 entries=00000004 modules=00000000 rsdp=000e0000\ncmdline=quiet\ndone\n", 0);
}

#[test]
fn clock_shows_the_present_in_utc_and_is_absent_unless_asked_for() {
    run(Guest::Time, &[]).is("rtc=absent\ndone\n", 0);
    let before = now();
    let ended = run(Guest::Time, &["--rtc", "utc"]);
    let after = now();
    let time = ended.stdout.strip_prefix("rtc=").and_then(|rest| rest.strip_suffix(" b=02\ndone\n"));
    let time = seconds(time.unwrap_or_else(|| panic!("{ended:?}")));
    assert!((before..=after).contains(&time), "{before} <= {time} <= {after}");
}

#[test]
fn clock_shows_local_time_where_that_was_asked_for() {
    // A zone in the POSIX form needs no zone files: two and a half hours east of Greenwich.
    let mut launch = Launch::new(Guest::Time).args(&["--rtc", "localtime"]);
    launch.command.env("TZ", "EAST-2:30");
    let before = now();
    let ended = launch.run();
    let after = now();
    let time = ended.stdout.strip_prefix("rtc=").and_then(|rest| rest.strip_suffix(" b=02\ndone\n"));
    let time = seconds(time.unwrap_or_else(|| panic!("{ended:?}"))) - 9000;
    assert!((before..=after).contains(&time), "{before} <= {time} <= {after}");
}

/// A machine that may have so many open files, with this typed on its console.
fn limited(files: usize, kernel: &[u8], words: &[&str], typed: &[u8]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("kernel"), kernel).unwrap();
    File::create(folder.path().join("image")).unwrap().set_len(8 << 20).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit -n {files}; exec timeout -k 5 120 \"$0\" \"$@\"")]);
    shell.arg(env!("CARGO_BIN_EXE_minivmm")).args(["--kernel", "kernel", "--mem", "16"]);
    shell.args(words).current_dir(folder.path());
    let mut child =
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // One that was refused reads nothing.
    let _ = child.stdin.take().unwrap().write_all(typed);
    child.wait_with_output().unwrap()
}

/// Whether it ran, with `done` at its end, and whether its interrupts took longer for want of descriptors; or it was refused.
#[track_caller]
fn ran(output: &Output, done: &str) -> Option<bool> {
    let [said, errors] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    let slow = errors.contains("interrupts of devices take longer, as KVM cannot be given an eventfd");
    match output.status.code() {
        Some(0) if said.contains(done) => Some(slow),
        Some(1) if errors.contains("as with `ulimit -n") => None,
        _ => panic!("{output:?}"),
    }
}

/// Number of descriptors that a child has of its parents, beside its input, output and errors. A limit counts numbers: those above all limits here take
/// none of the others.
fn inherited() -> usize {
    let listed = Command::new("ls").arg("/proc/self/fd").stdin(Stdio::null()).output().unwrap();
    let numbers = String::from_utf8(listed.stdout).unwrap();
    let low = numbers.lines().filter(|number| number.parse::<usize>().unwrap() < 60);
    // And the folder that it lists.
    low.count() - 4
}

#[test]
fn few_descriptors_are_refused_before_the_start_or_cost_no_interrupt() {
    // Of those that are open in each program that a test starts, whoever has opened them, none can be had.
    let open = inherited();
    let limits = 12 + open..60 + open;
    // It halts for each interrupt of its disk: one that is lost stops it. The vectors of its network come first, and take eventfds.
    let ends: Vec<_> = limits
        .clone()
        .map(|files| {
            ran(
                &limited(files, tiny_guest::LOAD, &["--net", "user", "--disk", "image"], b"!!"),
                "finished writes=",
            )
        })
        .collect();
    for end in [None, Some(true), Some(false)] {
        assert!(ends.contains(&end), "{end:?}: {ends:?}");
    }
    // What waits for the requests of a share is made when its driver comes, and counted before.
    let share = |files| limited(files, tiny_guest::SHARE, &["--net", "none", "--share", "."], b"q");
    let shares: Vec<_> = limits.map(share).collect();
    let ends: Vec<_> = shares.iter().map(|output| ran(output, "mounted=0\nready\n")).collect();
    let last = ends.iter().rposition(Option::is_none).unwrap();
    assert!(ends[..last].iter().all(Option::is_none), "{ends:?}");
    assert!(ends.contains(&Some(true)) && ends.contains(&Some(false)), "{ends:?}");
    // The limit that is named has room for all that it needs. With less than for a start that is refused, there is no machine yet to ask.
    let named = |output: &Output| -> Option<usize> {
        let said = String::from_utf8_lossy(&output.stderr);
        said.split_once("raise the limit to ")?.1.split_once(' ')?.0.parse().ok()
    };
    assert!(named(&shares[last]).is_some(), "{:?}", shares[last]);
    let least = shares.iter().filter_map(named).min().unwrap();
    assert_eq!(ran(&share(least), "mounted=0\nready\n"), Some(false), "{least}");
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

/// Seconds since 1970 of `YYYY-MM-DD HH:MM:SS`.
fn seconds(time: &str) -> i64 {
    let field = |at: std::ops::Range<usize>| time[at].parse::<i64>().unwrap();
    let (year, month, day) = (field(0..4), field(5..7), field(8..10));
    let leap = |year: i64| i64::from(year % 4 == 0 && (year % 100 != 0 || year % 400 == 0));
    let months = [31, 28 + leap(year), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let days = (1970..year).map(|year| 365 + leap(year)).sum::<i64>()
        + months.iter().take(usize::try_from(month - 1).unwrap()).sum::<i64>()
        + day
        - 1;
    ((days * 24 + field(11..13)) * 60 + field(14..16)) * 60 + field(17..19)
}
