//! Machines on a virtual switch: the port that they get, what passes through it, and what they do when the switch is not there.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/host.rs"]
mod host;
#[path = "support/switch.rs"]
mod switch;
#[path = "support/vmm.rs"]
mod vmm;

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;

use host::Host;
use serde_json::json;
use switch::{Client, Switch, socket, until};
use tempfile::TempDir;
use vmm::{Launch, Vmm, count, send_signal};

/// The guest's address: that of every guest of this kind.
const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 0x15];
const ETHERNET: usize = 14;
const IP: usize = 20;

/// A machine called `name` with the guest that echoes datagrams, on `nets`.
fn launch(host: &Host, name: &str, nets: &[&str]) -> Launch {
    let folder: TempDir = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("frames");
    fs::write(&kernel, tiny_guest::FRAMES).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
    command
        .env("XDG_RUNTIME_DIR", host.0.path())
        .args(["--mem", "16", "--name", name, "--kernel"])
        .arg(&kernel);
    command.args(nets.iter().flat_map(|net| ["--net", net]));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Launch { command, folder: Arc::new(folder) }
}

fn start(host: &Host, name: &str, nets: &[&str]) -> Vmm {
    let machine = launch(host, name, nets).spawn();
    machine.expect("ready\n", 1);
    machine
}

/// A datagram from the client with this number to the guest's port 7, without a sum.
fn question(number: u8, text: &str) -> Vec<u8> {
    let len = |header: usize| u16::try_from(header + text.len()).unwrap().to_be_bytes();
    let mut frame = [GUEST.as_slice(), &[2, 0, 0, 0, 0, number], &[8, 0]].concat();
    frame.extend([0x45, 0]);
    frame.extend(len(IP + 8));
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, number, 10, 0, 2, 15]);
    frame.extend([0x1b, 0x58, 0, 7]);
    frame.extend(len(8));
    frame.extend([0, 0]);
    frame.extend(text.as_bytes());
    frame
}

/// The sum of RFC 1071 over words of two bytes.
fn sum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let all: u32 = words.map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0))).sum();
    let once = (all & 0xffff) + (all >> 16);
    u16::try_from((once & 0xffff) + (once >> 16)).unwrap()
}

/// The guest echoes `text`, with a sum that is right: it leaves that to the switch, and the client takes no offloads.
#[track_caller]
fn echoes(client: &mut Client, number: u8, text: &str) {
    client.send_frame(&question(number, text));
    loop {
        let frame = client.next().unwrap();
        let udp = frame.get(ETHERNET + IP..).unwrap_or_default();
        if frame[12..14] == [8, 0] && udp.get(8..) == Some(text.as_bytes()) {
            let len = u16::try_from(udp.len()).unwrap().to_be_bytes();
            let addresses = &frame[ETHERNET + 12..ETHERNET + IP];
            assert_eq!(sum(&[addresses, &[0, 17], &len, udp]), 0xffff, "{udp:x?}");
            return;
        }
    }
}

#[test]
fn a_machine_starts_its_switch_and_guests_hear_each_other_within_their_vlan() {
    let host = Host::new();
    let mut vm2 = start(&host, "vm2", &["switch=lab,vlan=2,delay=1ms"]);
    let said = vm2.stderr.text();
    assert!(said.contains("~> Network     : switch lab (vlan=2,delay=1ms), MAC "), "{said}");
    let vm3 = start(&host, "vm3", &["switch=lab,vlan=3", "switch=lab,trunk=2,3,id=router"]);
    let shown = until(&host, "lab", |shown| shown["ports"].as_array().unwrap().len() == 3);
    let names: Vec<_> = shown["ports"].as_array().unwrap().iter().map(|port| port["name"].clone()).collect();
    assert_eq!(names, [json!("vm2.net0"), json!("vm3.net0"), json!("vm3.router")]);
    let attach = |number, options| Client::attach(&socket(&host, "lab"), number, options).unwrap();
    let (mut in_2, mut in_3) = (attach(12, "\"vlan\":2"), attach(13, "\"vlan\":3"));
    echoes(&mut in_2, 12, "two");
    echoes(&mut in_3, 13, "three");
    assert!(host.does(&["info", "vm3"]).contains("trunk = [2, 3]"));
    // A second machine of the name, or with an address that is taken, is refused with a sentence that says what to do.
    let mac = shown["ports"][0]["mac"].as_str().unwrap();
    let net = format!("switch=lab,mac={mac}");
    launch(&host, "vm4", &[&net]).run().is("", 1).said(&["has the address", "`mac=`"]);
    vm2.type_in(b"q");
    assert!(vm2.end().status.success());
    drop((vm3, in_2, in_3));
    host.does(&["switch", "stop", "lab"]);
}

#[test]
fn a_machine_comes_back_to_a_switch_that_was_killed_and_started_again() {
    let host = Host::new();
    let lab = Switch::start(&host, &["lab"]);
    let machine = start(&host, "vm0", &["switch=lab"]);
    let mut client = Client::attach(&socket(&host, "lab"), 1, "").unwrap();
    echoes(&mut client, 1, "before");
    send_signal(lab.pid(), libc::SIGKILL);
    lab.end();
    assert!(
        machine.stderr.wait(|text| count(text, "the switch lab has gone") == 1),
        "{}",
        machine.stderr.text()
    );
    let lab = Switch::start(&host, &["lab"]);
    until(&host, "lab", |shown| shown["ports"][0]["name"] == "vm0.net0");
    let mut client = Client::attach(&socket(&host, "lab"), 1, "").unwrap();
    echoes(&mut client, 1, "after");
    drop(machine);
    // The machine's port has gone with it.
    until(&host, "lab", |shown| shown["ports"].as_array().unwrap().len() == 1);
    drop(client);
    host.does(&["switch", "stop", "lab"]);
    lab.end();
}
