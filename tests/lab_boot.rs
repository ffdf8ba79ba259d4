//! Stock Debian kernels boot: every form, processors, memory, clocks, and no time lost waiting.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/lab_guest.rs"]
mod lab_guest;

use lab::{Cmd, LabKind, Status};
use lab_guest::{BOOT, PROMPT, SOON, alone, in_guest, lab, minivmm, shell, status};

/// To a shell that answers, and off again with status 0.
fn reaches_a_shell(flavour: &str, form: &str) {
    let cmd = minivmm(flavour, form).args(["--append", "quiet"]).tty();
    let mut guest = lab().spawn(&cmd).unwrap();
    guest.expect(PROMPT, BOOT).unwrap();
    guest.send("uname -rv; echo answer $((6 * 7))\n").unwrap();
    let said = guest.expect("answer 42", SOON).unwrap();
    assert_eq!(said.contains("-cloud-"), flavour == "cloud", "{said}");
    assert!(said.contains("Debian"), "{said}");
    guest.send("poweroff -f\n").unwrap();
    assert_eq!(status(&mut guest), Status::Exited(0));
}

#[test]
fn cloud_bzimage_reaches_a_shell() {
    reaches_a_shell("cloud", "bzimage");
}

#[test]
fn cloud_vmlinux_reaches_a_shell_by_pvh() {
    reaches_a_shell("cloud", "vmlinux");
}

#[test]
fn generic_bzimage_reaches_a_shell() {
    reaches_a_shell("generic", "bzimage");
}

#[test]
fn generic_vmlinux_reaches_a_shell_by_pvh() {
    reaches_a_shell("generic", "vmlinux");
}

#[test]
fn every_processor_comes_up_as_a_core_of_one_package() {
    for cpus in ["1", "2", "4"] {
        let cmd = minivmm("cloud", "bzimage").args(["--cpus", cpus]);
        let line = "nproc; grep -c '^physical id.*: 0$' /proc/cpuinfo; grep -m1 'siblings' /proc/cpuinfo";
        let out = in_guest(cmd, line, "");
        let text = out.text();
        assert_eq!(out.status, Status::Exited(0), "{text}");
        let counts: Vec<&str> = text.lines().filter(|line| *line == cpus).collect();
        assert_eq!(counts.len(), 2, "nproc and one package for {cpus}: {text}");
        assert!(text.contains(&format!(": {cpus}")), "siblings: {text}");
    }
}

/// What the kernel counts is the memory less what it keeps for itself.
fn sees_memory(flag: &str, mib: u64) {
    let out = in_guest(
        minivmm("cloud", "bzimage").args(["--mem", flag]),
        "echo \"sum $(awk '/System RAM/ {split($1, a, \"-\"); s += strtonum(\"0x\" a[2]) - strtonum(\"0x\" a[1]) + 1} END {print s}' /proc/iomem)\"; free -m",
        "",
    );
    let text = out.text();
    assert_eq!(out.status, Status::Exited(0), "{text}");
    let total = text
        .lines()
        .find_map(|line| line.strip_prefix("Mem:"))
        .and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap();
    assert!(total <= mib && total * 100 >= mib * 64, "{total} of {mib} MiB: {text}");
}

#[test]
fn memory_of_every_size_is_seen() {
    sees_memory("128", 128);
    sees_memory("512M", 512);
}

#[test]
fn memory_up_to_the_hole_is_seen() {
    let _alone = alone();
    sees_memory("3G", 3072);
}

#[test]
fn memory_above_four_gib_is_seen_though_the_host_has_less() {
    let _alone = alone();
    sees_memory("6G", 6144);
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
    // A guest that is emulated twice loses timer ticks until it has its clock source.
    let late = if lab().kind() == LabKind::Nested { 10 } else { 1 };
    assert!(host.abs_diff(*guest) <= late, "host {host}, guest {guest}");
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

#[test]
fn a_clock_chip_shows_the_time_where_one_is_asked_for() {
    let line = "cat /sys/class/rtc/rtc0/since_epoch; date +%s; dmesg | grep -i rtc";
    let out = in_guest(minivmm("cloud", "bzimage").args(["--rtc", "utc"]), line, "");
    let text = out.text();
    let numbers: Vec<u64> = text.lines().filter_map(|line| line.trim().parse().ok()).collect();
    let [chip, clock] = numbers.as_slice() else { panic!("{text}") };
    // They are read one after the other.
    assert!(chip.abs_diff(*clock) <= 3, "{text}");
}

#[test]
fn pasting_ten_thousand_bytes_into_the_guest_loses_none() {
    let mut guest = shell(&[]);
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
    guest.send("poweroff -f\n").unwrap();
    assert_eq!(status(&mut guest), Status::Exited(0));
}

#[test]
fn console_works_with_pipes_and_without_input() {
    let line = "printf 'echo from-a-pipe $((40 + 2))\\npoweroff -f\\n' | \
                ./minivmm --kernel cloud.bzimage --initrd cloud.initrd --append quiet | cat";
    let piped = lab().exec(&Cmd::sh(line).limit(BOOT)).unwrap();
    assert!(piped.text().contains("from-a-pipe 42"), "{}{}", piped.text(), piped.err_text());
    let closed = in_guest(minivmm("cloud", "bzimage"), "echo no input needed", "");
    assert!(closed.text().contains("no input needed\r\nLAB-STATUS 0"), "{}", closed.text());
    assert_eq!(closed.status, Status::Exited(0));
}
