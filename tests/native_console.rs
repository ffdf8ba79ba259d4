//! The console on pipes: no byte is lost on the way in or out, and no end of a pipe stops the machine.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/vmm.rs"]
mod vmm;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use tiny_guest::Guest;
use vmm::{Heard, LIMIT, Launch, Owned, count, run, wait};

/// Text of so many bytes in which every place differs from its neighbours; it has no end of input (0x04).
fn text(len: usize) -> Vec<u8> {
    (0u8..95).cycle().map(|n| b' ' + n).take(len).collect()
}

/// The output of an echo guest for `text`, up to its count.
fn echoed(text: &[u8]) -> String {
    format!("ready\n{}\nechoed={:08x}", String::from_utf8_lossy(text), text.len())
}

fn echo(guest: Guest, words: &[&str], text: &[u8]) {
    let mut vmm = Launch::new(guest).args(words).stdin(Stdio::piped()).spawn();
    vmm.type_in(&[text, b"\x04"].concat());
    let ended = vmm.end();
    assert!(ended.stdout.starts_with(&echoed(text)), "{ended:?}");
    assert!(ended.stdout.ends_with("done\n"), "{ended:?}");
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
}

#[test]
fn ten_kilobytes_reach_a_guest_that_polls() {
    echo(Guest::EchoPolled, &[], &text(10_000));
}

#[test]
fn ten_kilobytes_reach_a_guest_that_halts_between_interrupts() {
    echo(Guest::EchoInterrupt, &[], &text(10_000));
}

#[test]
fn every_byte_value_reaches_the_guest_of_a_pipe() {
    // A pipe has no menu: Ctrl-] is a byte like others.
    let all: Vec<u8> = (0..=255).filter(|byte| *byte != 4).collect();
    let mut vmm = Launch::new(Guest::EchoPolled).stdin(Stdio::piped()).spawn();
    vmm.type_in(&[&all[..], b"\x04"].concat());
    vmm.stdout.wait(|said| said.ends_with(b"done\n"));
    let said = vmm.stdout.bytes();
    assert_eq!(said[..6 + all.len()], [b"ready\n", &all[..]].concat());
    assert_eq!(vmm.end().status.code(), Some(0));
}

#[test]
fn bytes_typed_one_by_one_each_wake_a_halted_guest() {
    let mut vmm = Launch::new(Guest::EchoInterrupt).stdin(Stdio::piped()).spawn();
    vmm.expect("ready\n", 1);
    for (at, byte) in b"wake up".iter().enumerate() {
        vmm.type_in(&[*byte]);
        assert!(vmm.stdout.wait(|said| said.len() == 7 + at), "byte {at}: {vmm:?}");
        // Time to halt again.
        thread::sleep(Duration::from_millis(5));
    }
    vmm.type_in(b"\x04");
    let ended = vmm.end();
    // Rarely a byte arrives while the guest is still polling after the one before.
    let interrupts = ended.stdout.strip_prefix("ready\nwake up\nechoed=00000007 interrupts=0000000");
    assert!(interrupts.is_some_and(|rest| ('2'..='8').contains(&rest.chars().next().unwrap())), "{ended:?}");
    assert_eq!(ended.status.code(), Some(0));
}

#[test]
fn input_from_a_file_is_read_to_its_end() {
    let launch = Launch::new(Guest::EchoPolled);
    let path = launch.path().join("input");
    fs::write(&path, [&text(5000)[..], b"\x04"].concat()).unwrap();
    let ended = launch.stdin(File::open(path).unwrap()).run();
    ended.is(&format!("{}\ndone\n", echoed(&text(5000))), 0);
}

#[test]
fn end_of_input_does_not_end_the_machine() {
    for nothing in ["a pipe that ends", "/dev/null", "closed"] {
        let mut launch = Launch::new(Guest::PowerButton);
        match nothing {
            "/dev/null" => {}
            "closed" => close_stdin(&mut launch.command),
            _ => launch = launch.stdin(Stdio::piped()),
        }
        let mut vmm = launch.spawn();
        drop(vmm.stdin.take());
        vmm.expect("ready\n", 1);
        thread::sleep(Duration::from_millis(50));
        vmm.signal(libc::SIGTERM);
        vmm.end().is("ready\nbutton\ndone\n", 0);
    }
}

#[test]
fn guest_is_served_with_every_descriptor_closed() {
    // Descriptors that it opens must not get the numbers of standard input and output.
    let mut launch = Launch::new(Guest::Ports);
    let folder = launch.folder.clone();
    let kernel = folder.path().join("Ports.elf");
    let before = fs::read(&kernel).unwrap();
    close_all(&mut launch.command);
    let ended = launch.run();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(fs::read(&kernel).unwrap(), before);
}

/// The output of [`Guest::Flood`].
fn flood() -> String {
    let lines = (0..4096).map(|number| format!("{number:08x}{}\n", ".".repeat(55)));
    lines.chain(["done\n".to_owned()]).collect()
}

#[test]
fn quarter_of_a_megabyte_reaches_a_slow_reader_whole() {
    let mut launch = Launch::new(Guest::Flood);
    let mut child = Owned::start(launch.command());
    let mut output = child.stdout.take().unwrap();
    let mut said = Vec::new();
    let mut bytes = [0; 4 << 10];
    // Far behind what the guest writes until queue and pipe are full, then in small steps.
    thread::sleep(Duration::from_millis(500));
    loop {
        match output.read(&mut bytes).unwrap() {
            0 => break,
            n => said.extend_from_slice(&bytes[..n]),
        }
        thread::sleep(Duration::from_millis(5));
    }
    let status = wait(&mut child, String::new);
    assert_eq!(said.len(), flood().len());
    assert!(said == flood().as_bytes());
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_slow_reader_of_hvc0_holds_the_guest_up_at_no_cost_and_gets_all() {
    // Its driver spins until its bytes are taken: in a ring that waits for the reader it would spin for as long as that.
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("hostile");
    fs::write(&kernel, tiny_guest::HOSTILE).unwrap();
    let mut launch = Launch::kernel(&kernel, folder);
    launch.command.args(["--mem", "16", "--console", "hvc0", "--append", "lines=4096"]);
    let mut child = Owned::start(&mut launch.command);
    until_vcpu_sleeps(child.id());
    let mut said = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut said).unwrap();
    assert!(String::from_utf8(said).unwrap() + "done\n" == flood(), "every line, in order");
    assert_eq!(wait(&mut child, String::new).code(), Some(0));
}

#[test]
fn reader_that_goes_away_does_not_stop_the_guest() {
    let mut launch = Launch::new(Guest::Flood);
    let mut child = Owned::start(launch.command());
    drop(child.stdout.take());
    assert_eq!(wait(&mut child, String::new).code(), Some(0));
}

/// Waits until the guest, which never halts, is held up: its vCPU thread has slept for a while.
fn until_vcpu_sleeps(pid: u32) {
    let asleep = || {
        fs::read_dir(format!("/proc/{pid}/task")).unwrap().any(|task| {
            let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
            stat.contains(" (vcpu0) S ")
        })
    };
    let begin = Instant::now();
    let mut times = 0;
    while times < 20 {
        assert!(begin.elapsed() < LIMIT, "the guest is never held up");
        times = if asleep() { times + 1 } else { 0 };
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn console_that_nobody_reads_does_not_keep_the_command_from_ending() {
    // Queue and pipe hold half of the guest's output, so it never ends by itself.
    let mut launch = Launch::new(Guest::Flood);
    let mut child = Owned::start(launch.command());
    let (_output, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (stderr, _listener) = Heard::listen(stderr);
    until_vcpu_sleeps(child.id());
    for signals in 1..=2 {
        vmm::send_signal(i32::try_from(child.id()).unwrap(), libc::SIGTERM);
        assert!(signals == 2 || stderr.wait(|said| count(said, "power button pressed") == 1));
        thread::sleep(vmm::APART);
    }
    let begin = Instant::now();
    assert_eq!(wait(&mut child, || stderr.text()).code(), Some(143));
    assert!(begin.elapsed() < Duration::from_secs(20), "it waits some seconds for its reader, and no longer");
}

#[test]
fn a_third_signal_does_not_wait_for_the_consoles_reader() {
    let mut launch = Launch::new(Guest::Flood);
    let mut child = Owned::start(launch.command());
    let (_output, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (stderr, _listener) = Heard::listen(stderr);
    until_vcpu_sleeps(child.id());
    let pid = i32::try_from(child.id()).unwrap();
    vmm::send_signal(pid, libc::SIGTERM);
    assert!(stderr.wait(|said| count(said, "power button pressed") == 1));
    thread::sleep(vmm::APART);
    // The second one, of which nothing is heard, and the third: on a busy host it may come too soon after the second was taken,
    // and counts as one with it. Then the next one is the third.
    vmm::send_signal(pid, libc::SIGTERM);
    thread::sleep(vmm::APART);
    vmm::send_signal(pid, libc::SIGTERM);
    thread::sleep(vmm::APART);
    if child.try_wait().unwrap().is_none() {
        vmm::send_signal(pid, libc::SIGTERM);
    }
    assert_eq!(wait(&mut child, || stderr.text()).code(), Some(143));
    // A machine that has waited for its reader ends by itself, and is left to nobody.
    assert!(stderr.wait(|said| count(said, "left to the kernel") == 1), "{}", stderr.text());
}

#[test]
fn last_words_are_out_when_the_command_ends() {
    // Read only after the command has ended: all of the guest's output must have been written.
    for (guest, status, said) in [
        (Guest::TripleFault, 5, "faulting\n"),
        (Guest::Pvpanic, 4, "panicking\n"),
        (Guest::Ports, 0, "done\n"),
    ] {
        let mut launch = Launch::new(guest);
        let path = launch.path().join("output");
        launch.command.stdout(File::create(&path).unwrap()).stderr(Stdio::null());
        let mut child = Owned::start(launch.command());
        assert_eq!(wait(&mut child, String::new).code(), Some(status));
        assert!(fs::read_to_string(path).unwrap().ends_with(said));
    }
}

#[test]
fn input_that_waits_at_a_reboot_is_the_next_guests() {
    // All three at once: the first boot takes `r`, the second `r`, the third `q`.
    let mut vmm = Launch::new(Guest::Obedient).stdin(Stdio::piped()).spawn();
    vmm.type_in(b"r");
    vmm.expect("ready\n", 2);
    vmm.type_in(b"r");
    vmm.expect("ready\n", 3);
    vmm.type_in(b"q");
    let ended = vmm.end();
    assert_eq!(count(ended.stdout.as_bytes(), "ready\n"), 3);
    assert_eq!(ended.status.code(), Some(0));
}

#[test]
fn guest_that_takes_no_input_lets_the_command_end() {
    // More than all queues hold, without a reader.
    let launch = Launch::new(Guest::TimerWake);
    let path = launch.path().join("input");
    fs::write(&path, vec![b'x'; 3 << 20]).unwrap();
    launch.stdin(File::open(path).unwrap()).run().is("woke\ndone\n", 0);
    run(Guest::TimerWake, &[]).is("woke\ndone\n", 0);
}

#[allow(unsafe_code, reason = "std gives a child no closed descriptors")]
fn close_stdin(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec only a system call.
    unsafe {
        command.pre_exec(|| {
            libc::close(0);
            Ok(())
        });
    }
}

#[allow(unsafe_code, reason = "std gives a child no closed descriptors")]
fn close_all(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec only system calls.
    unsafe {
        command.pre_exec(|| {
            for fd in 0..3 {
                libc::close(fd);
            }
            Ok(())
        });
    }
}

#[test]
fn console_that_cannot_be_written_lets_the_machine_go_on_and_fails_at_its_end() {
    let mut launch = Launch::new(Guest::Ports);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = launch.command().stdout(full).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("the guest's console cannot be written (No space left on device"), "{said}");
    assert!(said.contains("the guest powered off, and "), "{said}");
    assert_eq!(output.status.code(), Some(1), "{said}");
}

/// Runs a line of sh, where `$vmm` is the command and `$guest` its guest's words.
fn sh(guest: Guest, line: &str) -> std::process::Output {
    let mut launch = Launch::new(guest);
    let (folder, program) = (launch.path().to_owned(), launch.command().get_program().to_owned());
    let words = launch.command().get_args().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", line]).env("vmm", program).env("guest", words).current_dir(folder);
    command.stdin(Stdio::null()).output().unwrap()
}

#[test]
fn files_at_the_limit_of_ulimit_are_errors_of_those_files() {
    // The limit is in blocks of 512 bytes, and the guest writes 256 KiB.
    let output = sh(Guest::Flood, "ulimit -f 8; $vmm $guest --log log > out; echo status=$?; wc -c < out");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("console cannot be written (File too large"), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "status=1\n4096\n", "{said}");
    let output = sh(Guest::Ports, "ulimit -f 0; $vmm $guest --pidfile pid; echo status=$?");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("the pidfile pid cannot be written: File too large"), "{said}");
    assert_eq!(output.stdout, b"status=1\n", "{said}");
    let output = sh(Guest::Ports, "ulimit -f 0; $vmm $guest --log log | tail -n 1");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("the file of `--log` cannot be written: File too large"), "{said}");
    assert_eq!(output.stdout, b"done\n", "{said}");
}

#[test]
fn streams_that_never_wait_lose_nothing() {
    // One socket that never waits is standard input and output, as a program leaves it that shares its own.
    let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
    there.set_nonblocking(true).unwrap();
    let mut launch = Launch::new(Guest::EchoPolled);
    let stream = || Stdio::from(std::os::fd::OwnedFd::from(there.try_clone().unwrap()));
    let mut child = Owned::start(launch.command().stdin(stream()).stdout(stream()).stderr(Stdio::null()));
    // The command holds the socket open.
    let _folder = launch.folder.clone();
    drop((launch, there));
    let (heard, _listener) = Heard::listen(here.try_clone().unwrap());
    assert!(heard.wait(|said| said == b"ready\n"));
    let text = text(20_000);
    (&here).write_all(&[&text[..], b"\x04"].concat()).unwrap();
    assert_eq!(wait(&mut child, || heard.text()).code(), Some(0));
    assert!(heard.wait(|said| said.ends_with(b"done\n")));
    assert!(heard.text().starts_with(&echoed(&text)));
}

#[test]
fn what_cannot_be_printed_is_a_failure_and_a_reader_that_left_is_none() {
    for (line, status) in [
        ("$vmm --version > /dev/full", 1),
        ("$vmm --help > /dev/full", 1),
        ("$vmm run --help > /dev/full", 125),
        ("$vmm ls --json > /dev/full", 1),
        ("$vmm doctor --json > /dev/full", 1),
        ("$vmm --version >&-", 1),
    ] {
        let output = sh(Guest::Ports, line);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("standard output cannot be written: "), "{line}: {said}");
        assert_eq!(output.status.code(), Some(status), "{line}: {said}");
    }
    let output = sh(Guest::Ports, "{ sleep 0.1; $vmm --help; echo status=$? >&2; } | true");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "status=0\n");
}
