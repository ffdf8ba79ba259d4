//! The ways a machine ends, each with its status, its message, and its complete output.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/vmm.rs"]
mod vmm;

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use tiny_guest::Guest;
use vmm::{Launch, Vmm, run};

const PANIC: &str = "Kernel panic - not syncing: test\n";

fn obedient(words: &[&str]) -> Vmm {
    let vmm = Launch::new(Guest::Obedient).args(words).stdin(Stdio::piped()).spawn();
    vmm.expect("ready\n", 1);
    vmm
}

#[test]
fn power_off_is_status_0_and_says_nothing() {
    let mut vmm = obedient(&[]);
    vmm.type_in(b"q");
    let ended = vmm.end();
    ended.is("ready\ndone\n", 0);
    let last = ended.stderr.lines().last().unwrap();
    assert!(last.starts_with("~> "), "nothing follows the banner: {ended:?}");
}

#[test]
fn banner_is_on_stderr() {
    run(Guest::Ports, &["--cpus", "2"]).said(&[
        "~> Kernel      : ",
        "~> RAM         : 4 MiB",
        "~> Processors  : 2",
    ]);
}

#[test]
fn start_that_fails_says_why_and_no_banner() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("notes"), "five!").unwrap();
    let _owner = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    for (words, said) in [
        (["--tap", "no-such-tap"], "no-such-tap"),
        (["--disk", &path("notes")], "notes"),
        (["--port", &format!("name=a,socket={}", path("no/folder"))], "make its folder first"),
        (["--port", &format!("name=a,socket={}", path("socket"))], "another program listens"),
        (["--pidfile", &path("no/pid")], "no/pid"),
        (["--log", &path("no/log")], "no/log"),
    ] {
        let ended = run(Guest::Ports, &words);
        ended.said(&[said]);
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(!ended.stderr.contains("~> ") && ended.stdout.is_empty(), "{ended:?}");
    }
}

#[test]
fn guest_reboots_three_times_in_the_same_process() {
    let mut vmm = obedient(&[]);
    for boots in 2..=4 {
        vmm.type_in(b"r");
        vmm.expect("ready\n", boots);
    }
    vmm.type_in(b"q");
    vmm.end().is("ready\nready\nready\nready\ndone\n", 0);
}

#[test]
fn reboot_is_status_3_where_the_machine_shall_leave_then() {
    run(Guest::Reset, &["--on-reboot", "exit"]).is("resetting\n", 3).said(&["the guest rebooted\n"]);
}

#[test]
fn pvpanic_is_status_4() {
    run(Guest::Pvpanic, &[]).is("panicking\n", 4).said(&["minivmm: the guest's kernel panicked\n"]);
}

#[test]
fn panic_line_and_a_reset_are_status_4_whatever_a_reboot_does() {
    run(Guest::KernelPanic, &[]).is(PANIC, 4).said(&["the guest's kernel panicked\n"]);
    run(Guest::KernelPanic, &["--on-reboot", "exit"]).is(PANIC, 4);
}

#[test]
fn panic_after_a_reboot_is_status_4() {
    let mut vmm = obedient(&[]);
    vmm.type_in(b"r");
    vmm.expect("ready\n", 2);
    vmm.type_in(b"k");
    vmm.end().is(&format!("ready\nready\n{PANIC}"), 4);
}

#[test]
fn triple_fault_is_status_5_with_the_place() {
    run(Guest::TripleFault, &[])
        .is("faulting\n", 5)
        .said(&["minivmm: the guest crashed: vCPU 0 stopped at rip 0x10", ": triple fault: "]);
}

const LAST_LINE: &str = "---[ end Kernel panic - not syncing: test ]---\n";

fn linux(command: &[u8], words: &[&str]) -> Vmm {
    let mut vmm = Launch::new(Guest::LinuxEnds).args(words).stdin(Stdio::piped()).spawn();
    vmm.expect("ready\n", 1);
    vmm.type_in(command);
    vmm
}

#[test]
fn panic_that_spins_is_status_4_within_seconds() {
    let vmm = linux(b"s", &["--append", "panic=0", "--cpus", "2"]);
    vmm.end().is(&format!("ready\n{PANIC}{LAST_LINE}"), 4).said(&["the guest's kernel panicked\n"]);
}

#[test]
fn sigterm_after_a_panic_is_its_end() {
    // Without the signal its reset would be waited for, longer than a test is.
    let vmm = linux(b"w", &["--append", "panic=600"]);
    vmm.expect("Rebooting in 600 seconds..\n", 1);
    vmm.signal(libc::SIGTERM);
    vmm.end().is(&format!("ready\n{PANIC}Rebooting in 600 seconds..\n"), 4);
}

#[test]
fn guest_that_shows_an_old_panic_hears_the_button() {
    let vmm = Launch::new(Guest::OldPanic).spawn();
    vmm.expect("---[ end Kernel panic - not syncing: old ]---\n", 1);
    // Longer than a guest may be silent that has panicked.
    assert!(!vmm.stderr.wait_for(Duration::from_secs(3), |said| vmm::count(said, "panicked") > 0));
    vmm.signal(libc::SIGTERM);
    let ended = vmm.end();
    assert!(ended.stdout.ends_with("done\n"), "{ended:?}");
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
}

#[test]
fn halt_is_power_off() {
    linux(b"h", &["--cpus", "2"]).end().is("ready\nreboot: System halted\n", 0);
}

#[test]
fn triple_fault_behind_the_line_of_a_restart_is_a_reboot() {
    let mut vmm = linux(b"t", &[]);
    vmm.expect("ready\n", 2);
    vmm.type_in(b"q");
    vmm.end().is("ready\nreboot: Restarting system\nready\ndone\n", 0);
    linux(b"t", &["--on-reboot", "exit"]).end().is("ready\nreboot: Restarting system\n", 3);
}

#[test]
fn keyboard_controller_and_chipset_reset() {
    for (key, said) in [(b"k", "keyboard controller"), (b"p", "chipset")] {
        linux(key, &["--on-reboot", "exit"]).end().is(&format!("ready\n{said}\n"), 3);
    }
}

#[test]
fn guest_that_resets_itself_in_silence_for_ever_is_status_4_and_the_sentence_says_what_helps() {
    run(Guest::Mute, &[]).is("", 4).said(&["reset itself 5 times in a row", "console=ttyS0"]);
    run(Guest::Mute, &["--on-reboot", "exit"]).is("", 3);
}

#[test]
fn halted_guest_ends_by_two_signals_with_the_signals_status() {
    for (signal, status) in
        [(libc::SIGTERM, 143), (libc::SIGINT, 130), (libc::SIGHUP, 129), (libc::SIGQUIT, 131)]
    {
        let vmm = Launch::new(Guest::Halt).spawn();
        vmm.expect("halting\n", 1);
        vmm.signal(signal);
        assert!(vmm.stderr.wait(|said| vmm::count(said, "power button pressed") == 1), "{vmm:?}");
        thread::sleep(vmm::APART);
        vmm.signal(signal);
        let ended = vmm.end();
        ended.is("halting\n", status).said(&[&format!("minivmm: ended by signal {signal}\n")]);
    }
}

#[test]
fn spinning_guest_ends_by_two_signals() {
    let vmm = Launch::new(Guest::Busy).args(&["--cpus", "2"]).spawn();
    vmm.expect("spinning\n", 1);
    vmm.signal(libc::SIGTERM);
    assert!(vmm.stderr.wait(|said| vmm::count(said, "power button pressed") == 1), "{vmm:?}");
    thread::sleep(vmm::APART);
    vmm.signal(libc::SIGTERM);
    vmm.end().is("spinning\n", 143);
}

#[test]
fn power_button_reaches_a_halted_guest_by_sigterm() {
    let vmm = Launch::new(Guest::PowerButton).spawn();
    vmm.expect("ready\n", 1);
    vmm.signal(libc::SIGTERM);
    vmm.end().is("ready\nbutton\ndone\n", 0).said(&["power button pressed"]);
}

#[test]
fn signals_of_one_event_press_the_button_once_and_pull_no_plug() {
    // As a terminal that is closed sends them: by its shell and by itself.
    let vmm = Launch::new(Guest::PowerButton).spawn();
    vmm.expect("ready\n", 1);
    vmm.signal(libc::SIGHUP);
    vmm.signal(libc::SIGTERM);
    vmm.signal(libc::SIGHUP);
    vmm.end().is("ready\nbutton\ndone\n", 0);
}

#[test]
fn signals_that_whoever_started_it_wants_ignored_are() {
    let mut launch = Launch::new(Guest::PowerButton);
    let mut command = Command::new("nohup");
    let plain = launch.command();
    command.arg(plain.get_program()).args(plain.get_args());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    launch.command = command;
    let vmm = launch.spawn();
    vmm.expect("ready\n", 1);
    // The kernel drops a signal that is ignored when it is sent: it neither arrives nor waits to be read.
    let set = |field: &str| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", vmm.pid())).unwrap();
        let hex = status.lines().find_map(|line| line.strip_prefix(field)).unwrap().trim();
        u64::from_str_radix(hex, 16).unwrap() & 1 << (libc::SIGHUP - 1) != 0
    };
    assert!(set("SigIgn:"));
    vmm.signal(libc::SIGHUP);
    assert!(!set("ShdPnd:"));
    vmm.signal(libc::SIGTERM);
    let ended = vmm.end();
    ended.is("ready\nbutton\ndone\n", 0);
    assert_eq!(ended.stderr.matches("power button pressed").count(), 1, "{ended:?}");
}

#[test]
fn nobody_at_standard_error_holds_up_the_end() {
    let mut launch = Launch::new(Guest::PowerButton);
    let (reader, theirs) = UnixStream::pair().unwrap();
    launch.command().stderr(OwnedFd::from(theirs.try_clone().unwrap()));
    let mut child = vmm::Owned::start(launch.command());
    drop(launch.command);
    let (stdout, _listener) = vmm::Heard::listen(child.stdout.take().unwrap());
    assert!(stdout.wait(|said| vmm::count(said, "ready\n") == 1));
    fill(&theirs);
    vmm::send_signal(i32::try_from(child.id()).unwrap(), libc::SIGTERM);
    assert_eq!(vmm::wait(&mut child, || stdout.text()).code(), Some(0));
    assert!(stdout.wait(|said| vmm::count(said, "button\n") == 1), "{}", stdout.text());
    assert_eq!(send(&theirs, b"."), Err(std::io::ErrorKind::WouldBlock), "nobody has read");
    drop(reader);
}

/// Sends without waiting for room, also where others that have the socket wait for it.
fn send(stream: &UnixStream, bytes: &[u8]) -> Result<usize, std::io::ErrorKind> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the pointer and the length are those of a slice; the descriptor is open.
    #[allow(unsafe_code, reason = "std has no send(2) with flags for stream sockets")]
    let sent = unsafe { libc::send(stream.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(sent).map_err(|_| std::io::Error::last_os_error().kind())
}

/// Leaves no room for a single byte.
fn fill(stream: &UnixStream) {
    for len in [4096, 1] {
        while send(stream, &[b'.'; 4096][..len]).is_ok() {}
    }
}
