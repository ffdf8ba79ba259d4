//! `minivmm console`: a machine's console in another terminal.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/host.rs"]
mod host;
#[path = "support/pty.rs"]
mod pty;
#[path = "support/vmm.rs"]
mod vmm;

use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::sync::Arc;

use host::Host;
use pty::OnTerminal;
use tiny_guest::Guest;
use vmm::{Heard, count, wait};

/// Detaches.
const DETACH: &[u8] = b"\x1dd";

/// A user at the console of `vm0`, which has printed `word`.
fn viewer(host: &Host, word: &str) -> OnTerminal {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let viewer = OnTerminal::command(&mut host.verb(&["console", "vm0"]), folder);
    viewer.until_raw();
    viewer.expect(word, 1);
    viewer
}

#[test]
fn attached_detached_and_attached_again_the_machine_runs_on() {
    let host = Host::new();
    let machine = host.start(Guest::EchoInterrupt, "vm0", "ready\n");
    let mut first = viewer(&host, "ready\n");
    first.expect("the console of vm0: Ctrl-] d detaches", 1);
    first.type_in(b"first\n");
    first.expect("first\n", 1);
    first.type_in(DETACH);
    first.end().is(0).said("minivmm: detached from vm0; it runs on");
    // Earlier output is shown again.
    let mut second = viewer(&host, "ready\nfirst\n");
    second.type_in(b"\x1d\x1d\n\x04");
    second.end().is(0).said("\x1d\n").said("done\n").said("minivmm: vm0 has ended: the guest powered off");
    assert_eq!(machine.end().status.code(), Some(0));
}

#[test]
fn several_see_the_same_and_all_may_type() {
    let host = Host::new();
    let mut machine = host.start(Guest::EchoInterrupt, "vm0", "ready\n");
    let mut viewers = [(); 3].map(|()| viewer(&host, "ready\n"));
    for (at, typist) in viewers.iter_mut().enumerate() {
        typist.type_in(format!("from {at}\n").as_bytes());
        machine.expect(&format!("from {at}\n"), 1);
    }
    machine.type_in(b"from the first terminal\n\x04");
    for viewer in viewers {
        viewer.end().is(0).said("ready\nfrom 0\nfrom 1\nfrom 2\nfrom the first terminal\n").said("done\n");
    }
    assert_eq!(machine.end().status.code(), Some(0));
}

#[test]
fn menu_works_on_the_machine_and_quits_nothing() {
    let host = Host::new();
    let machine = host.start(Guest::PowerButton, "vm0", "ready\n");
    let mut viewer = viewer(&host, "ready\n");
    viewer.type_in(b"\x1dr");
    viewer.expect("ready\n", 2);
    viewer.expect("minivmm: reset\r\n", 1);
    viewer.type_in(b"\x1dq\x1d?\x1dx");
    viewer.expect("minivmm: d detaches; `minivmm kill vm0` ends the machine\r\n", 1);
    viewer.expect("\r\nminivmm: Ctrl-] then: d  detach; the machine runs on\r\n", 1);
    viewer.expect("no such key in the menu", 1);
    viewer.type_in(b"\x1dp");
    viewer.end().is(0).said("power button pressed").said("button\ndone\n");
    assert_eq!(machine.end().status.code(), Some(0));
}

#[test]
fn the_terminal_is_given_back_by_signals_and_when_the_machine_is_killed() {
    let host = Host::new();
    let machine = host.start(Guest::EchoInterrupt, "vm0", "ready\n");
    let terminated = viewer(&host, "ready\n");
    terminated.signal(libc::SIGTERM);
    terminated.end().is(128 + libc::SIGTERM);
    let stopped = viewer(&host, "ready\n");
    stopped.signal(libc::SIGSTOP);
    stopped.make_sane();
    stopped.signal(libc::SIGCONT);
    stopped.until_raw();
    // The threads that set raw mode and restore it wake up at the same time when the machine ends.
    stopped.signal(libc::SIGSTOP);
    machine.signal(libc::SIGKILL);
    machine.end();
    stopped.signal(libc::SIGCONT);
    stopped.end().is(0).said("minivmm: vm0 has ended");
}

#[test]
fn a_paused_machine_is_said_to_be_and_hears_what_was_typed_when_it_goes_on() {
    let host = Host::new();
    let machine = host.start(Guest::EchoInterrupt, "vm0", "ready\n");
    host.does(&["pause", "vm0"]);
    let mut viewer = viewer(&host, "it is paused; Ctrl-] d detaches");
    viewer.type_in(b"typed at rest\n");
    host.does(&["resume", "vm0"]);
    viewer.expect("typed at rest\n", 1);
    viewer.type_in(b"\x04");
    viewer.end().is(0);
    assert_eq!(machine.end().status.code(), Some(0));
}

/// The verb with pipes; its output is read.
fn piped(host: &Host, stdin: Stdio) -> (Child, Heard) {
    let mut child = host.verb(&["console", "vm0"]).stdin(stdin).spawn().unwrap();
    let (heard, _) = Heard::listen(child.stdout.take().unwrap());
    (child, heard)
}

#[test]
fn pipes_carry_bytes_as_they_are_and_an_empty_one_only_looks_on() {
    let host = Host::new();
    let machine = host.start(Guest::EchoInterrupt, "vm0", "ready\n");
    let (mut reader, read) = piped(&host, Stdio::null());
    assert!(read.wait(|heard| count(heard, "ready\n") == 1));
    let (mut typist, typed) = piped(&host, Stdio::piped());
    // With pipes, the keys of a terminal's menu are the guest's.
    typist.stdin.as_mut().unwrap().write_all(b"\x1dd and on\n\x04").unwrap();
    for (child, heard) in [(&mut reader, read), (&mut typist, typed)] {
        assert_eq!(wait(child, || heard.text()).code(), Some(0));
        assert!(heard.wait(|heard| count(heard, "done\n") == 1));
        assert!(heard.text().starts_with("ready\n\x1dd and on\n"), "{}", heard.text());
    }
    let mut said = String::new();
    reader.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.starts_with("minivmm: vm0 has ended: the guest powered off"), "{said}");
    assert_eq!(machine.end().status.code(), Some(0));
}

#[test]
fn a_reader_that_goes_ends_the_verb_and_nothing_else() {
    let host = Host::new();
    let mut machine = host.start(Guest::EchoInterrupt, "vm0", "ready\n");
    let mut child = host.verb(&["console", "vm0"]).spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 6]).unwrap();
    // Without further output of the guest, the verb must notice it by itself.
    assert_eq!(wait(&mut child, String::new).code(), Some(0));
    machine.type_in(b"\x04");
    assert_eq!(machine.end().status.code(), Some(0));
}

#[test]
fn no_machine_no_console() {
    Host::new().fails(&["console", "vm0"], 1, "minivmm: no machine called vm0 runs here; `minivmm ls` lists");
}
