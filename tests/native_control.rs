//! The control socket of a machine, and the verbs that use it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/dose.rs"]
mod dose;
#[path = "support/host.rs"]
mod host;
#[path = "support/memory.rs"]
mod memory;
#[path = "support/vmm.rs"]
mod vmm;

use std::fs;
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use dose::dose;
use host::Host;
use memory::private_memory;
use serde_json::{Value, json};
use tiny_guest::Guest;
use vmm::{Ended, LIMIT, Owned, Vmm, until_it_listens};

fn end(mut machine: Vmm) -> Ended {
    machine.type_in(b"q");
    machine.end()
}

#[test]
fn a_machine_with_a_name_is_listed_and_described_while_it_lives() {
    let host = Host::new();
    assert_eq!(host.does(&["ls"]), "NAME  STATE  PID  UPTIME  MEM  CPUS\n");
    assert_eq!(host.json(&["ls", "--json"]), json!([]));
    let first = host.start(Guest::Obedient, "vm0", "ready\n");
    let second = host.start(Guest::Obedient, "vm1", "ready\n");
    let mode = |path: std::path::PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(host.folder()), mode(host.folder().join("vm0.sock"))), (0o700, 0o600));
    let list = host.does(&["ls"]);
    let lines: Vec<_> = list.lines().collect();
    assert!(lines.len() == 3 && lines[0].starts_with("NAME"), "{list}");
    assert!(lines[1].starts_with("vm0   running  ") && lines[1].ends_with("4 MiB  1"), "{list}");
    let list = host.json(&["ls", "--json"]);
    assert_eq!((&list[0]["pid"], &list[1]["pid"]), (&json!(first.pid()), &json!(second.pid())));
    let info = host.json(&["info", "vm0", "--json"]);
    assert_eq!(
        (&info["state"], &info["mem"], &info["spec"]["name"]),
        (&json!("running"), &json!(4), &json!("vm0"))
    );
    assert_eq!(info, {
        let mut again = list[0].clone();
        again["uptime"] = info["uptime"].clone();
        again
    });
    assert!(host.does(&["info", "vm1"]).contains("\nstate    running\n"));
    let stats = host.json(&["stats", "vm0", "--json"]);
    // Each output byte is a write to a port.
    assert!(stats["vcpus"][0]["port-out"].as_u64().unwrap() >= "ready\n".len() as u64, "{stats}");
    assert!(host.does(&["stats", "vm0"]).contains("\nmemory.size "));
    assert_eq!(stats["devices"][0]["name"], "console0", "{stats}");
    end(first).is("ready\ndone\n", 0);
    assert_eq!(host.json(&["ls", "--json"])[0]["name"], "vm1");
    end(second).is("ready\ndone\n", 0);
    assert!(host.files().is_empty(), "{:?}", host.files());
}

#[test]
fn a_name_is_one_machines_and_is_free_again_when_it_was_killed() {
    let host = Host::new();
    let machine = host.start(Guest::Obedient, "vm0", "ready\n");
    let pid = machine.pid();
    let refused = host.launch(Guest::Obedient, "vm0").spawn().end();
    refused.is("", 1).said(&[&format!(
        "a machine called vm0 runs already, as process {pid}; stop it with `minivmm stop vm0`"
    )]);
    host.does(&["info", "vm0"]);
    machine.signal(libc::SIGKILL);
    machine.end();
    assert_eq!(host.files(), ["vm0.lock", "vm0.sock"]);
    host.fails(&["info", "vm0"], 1, "no machine called vm0 runs here; `minivmm ls` lists those that do");
    assert_eq!(host.does(&["ls"]), "NAME  STATE  PID  UPTIME  MEM  CPUS\n");
    assert!(host.files().is_empty(), "{:?}", host.files());
    end(host.start(Guest::Obedient, "vm0", "ready\n")).is("ready\ndone\n", 0);
}

#[test]
fn pause_resume_and_reset_do_what_they_say() {
    let host = Host::new();
    let mut machine = host.start(Guest::Obedient, "vm0", "ready\n");
    assert_eq!(host.does(&["pause", "vm0"]), "");
    assert_eq!(host.json(&["info", "vm0", "--json"])["state"], "paused");
    machine.type_in(b"r");
    // When a machine beside it has done ten requests, it would have done them, too.
    let mut neighbour = host.start(Guest::Obedient, "vm1", "ready\n");
    for times in 2..12 {
        neighbour.type_in(b"r");
        neighbour.expect("ready\n", times);
    }
    assert_eq!(machine.stdout.text(), "ready\n");
    end(neighbour);
    host.does(&["resume", "vm0"]);
    machine.expect("ready\n", 2);
    host.does(&["reset", "vm0"]);
    machine.expect("ready\n", 3);
    // A reset machine runs, also if it rested before.
    host.does(&["pause", "vm0"]);
    host.does(&["reset", "vm0"]);
    machine.expect("ready\n", 4);
    assert_eq!(host.json(&["info", "vm0", "--json"])["state"], "running");
    end(machine);
}

#[test]
fn balloon_sets_the_target_and_leaves_the_guest_something() {
    let host = Host::new();
    let machine = host.start(Guest::Obedient, "vm0", "ready\n");
    host.does(&["balloon", "vm0", "3"]);
    assert_eq!(host.http("vm0", "GET", "/v1/balloon", ""), (200, "{\"actual-mib\":0,\"mib\":3}\n".into()));
    host.fails(
        &["balloon", "vm0", "4"],
        1,
        "vm0: a balloon of 4 MiB leaves a guest of 4 MiB no memory; ask for less",
    );
    host.fails(&["balloon", "vm0", "lots"], 2, "`lots`");
    host.does(&["balloon", "vm0", "0"]);
    end(machine);
}

#[test]
fn stop_presses_the_power_button_and_pulls_the_plug_on_a_guest_that_does_not_hear() {
    let host = Host::new();
    let machine = host.start(Guest::PowerButton, "vm0", "ready\n");
    assert_eq!(host.does(&["stop", "vm0"]), "");
    machine.end().is("ready\nbutton\ndone\n", 0);
    let machine = host.start(Guest::PowerButton, "vm0", "ready\n");
    host.does(&["pause", "vm0"]);
    host.does(&["stop", "vm0"]);
    machine.end().is("ready\nbutton\ndone\n", 0);
    // Others wait in all of its places.
    let machine = host.start(Guest::PowerButton, "vm0", "ready\n");
    let waiting: Vec<_> = (0..16).map(|_| host.verb(&["wait", "vm0"]).spawn().unwrap()).collect();
    host.until_connected("vm0", 16);
    waiting.iter().for_each(|verb| until_it_listens(verb.id()));
    host.does(&["stop", "vm0"]);
    machine.end().is("ready\nbutton\ndone\n", 0);
    // That it has asked does not mean that it has a place already: one may find that the other verb has it.
    let refused = waiting.into_iter().filter_map(|waiting| {
        let output = waiting.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let is_refused = said.contains("16 clients wait for this machine already");
        assert!(output.status.success() || is_refused, "{said}");
        (!output.status.success()).then_some(said)
    });
    assert!(refused.count() <= 1);
    let machine = host.start(Guest::Halt, "vm0", "halting\n");
    let begin = Instant::now();
    let output = host.run(&["stop", "vm0", "--timeout", "1"]);
    assert!(output.status.success() && begin.elapsed() >= Duration::from_secs(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("did not shut down within 1 s"));
    machine.end().is("halting\n", 6).said(&["killed over its control socket"]);
}

#[test]
fn a_machine_that_was_stopped_or_killed_is_there_no_more_when_the_verb_ends() {
    let host = Host::new();
    let disk = host.0.path().join("disk.raw");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    // More than the socket takes: who has written for as long as it is taken is not read any more, since it does not read.
    let asking = "GET /v1/machine HTTP/1.1\r\n\r\n".repeat(20_000);
    let mut staying = Vec::new();
    for round in 0..20 {
        // Refused as long as the last one has its name or its disk.
        let launch = host.launch(Guest::PowerButton, "vm0").args(&["--disk", disk.to_str().unwrap()]);
        let machine = launch.spawn();
        machine.expect("ready\n", 1);
        // One client keeps its connection after the end, the other reads no answer: the server waits for
        // both.
        let (mut waiting, mut deaf) = (host.connect("vm0"), host.connect("vm0"));
        waiting.write_all(b"GET /v1/wait HTTP/1.1\r\n\r\n").unwrap();
        deaf.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
        while deaf.write_all(asking.as_bytes()).is_ok() {}
        host.does(&[if round % 2 == 0 { "stop" } else { "kill" }, "vm0"]);
        host.fails(&["info", "vm0"], 1, "no machine called vm0");
        staying.push((machine, waiting, deaf));
    }
    for (machine, mut waiting, _deaf) in staying {
        let mut told = String::new();
        waiting.read_to_string(&mut told).unwrap();
        assert!(told.contains("\"status\":"), "{told}");
        machine.end();
    }
}

#[test]
fn kill_waits_for_a_machine_that_takes_its_time_to_end() {
    let host = Host::new();
    let mut launch = host.launch(Guest::Flood, "vm0");
    // Its output has no reader, for which it waits some seconds at its end.
    let machine = Owned::start(launch.command());
    let begin = Instant::now();
    while !host.run(&["info", "vm0"]).status.success() {
        assert!(begin.elapsed() < LIMIT, "it does not start");
        thread::sleep(Duration::from_millis(10));
    }
    // The guest is held up once the pipe is full.
    let said = || host.json(&["stats", "vm0", "--json"])["vcpus"][0]["port-out"].as_u64().unwrap();
    let mut before = 0;
    loop {
        let now = said();
        // A guest without output has not started.
        if now > 0 && now == before {
            break;
        }
        before = now;
        thread::sleep(Duration::from_secs(1));
    }
    let begin = Instant::now();
    host.does(&["kill", "vm0"]);
    assert!(begin.elapsed() > Duration::from_secs(1), "it ends at once: {:?}", begin.elapsed());
    host.fails(&["info", "vm0"], 1, "no machine called vm0");
    drop(machine);
}

#[test]
fn machines_that_do_not_answer_are_waited_for_together() {
    let host = Host::new();
    // One after the other they would take two seconds each.
    let machines: Vec<_> =
        (0..=9).map(|number| host.start(Guest::Obedient, &format!("vm{number}"), "ready\n")).collect();
    for machine in &machines[1..] {
        machine.signal(libc::SIGSTOP);
    }
    let begin = Instant::now();
    let list = host.json(&["ls", "--json"]);
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    for (number, info) in list.as_array().unwrap().iter().enumerate() {
        assert_eq!(info["name"], format!("vm{number}"));
        assert_eq!(info["state"], if number == 0 { json!("running") } else { Value::Null });
    }
    for machine in machines {
        machine.signal(libc::SIGKILL);
        machine.end();
    }
}

#[test]
fn wait_ends_as_the_machine_does() {
    let host = Host::new();
    let ends: [(&[u8], i32, &str); 3] = [
        (b"q", 0, ""),
        (b"k", 4, "vm0: the guest's kernel panicked"),
        (b"", 6, "vm0: killed over its control socket"),
    ];
    for (typed, status, said) in ends {
        let mut machine = host.start(Guest::Obedient, "vm0", "ready\n");
        let waiting: Vec<_> = (0..3).map(|_| host.verb(&["wait", "vm0"]).spawn().unwrap()).collect();
        host.until_connected("vm0", 3);
        waiting.iter().for_each(|verb| until_it_listens(verb.id()));
        if typed.is_empty() {
            host.does(&["kill", "vm0"]);
        } else {
            machine.type_in(typed);
        }
        assert_eq!(machine.end().status.code(), Some(status));
        for waiting in waiting {
            let output = waiting.wait_with_output().unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(status), "{stderr}");
            assert!(stderr.contains(said), "{stderr}");
        }
    }
    host.fails(&["wait", "vm0"], 1, "no machine called vm0");
    // A machine that could not report its end.
    let machine = host.start(Guest::Obedient, "vm0", "ready\n");
    let waiting = host.verb(&["wait", "vm0"]).spawn().unwrap();
    host.until_connected("vm0", 1);
    until_it_listens(waiting.id());
    machine.signal(libc::SIGKILL);
    machine.end();
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("vm0: the machine has ended"));
}

#[test]
fn every_route_answers_as_it_says() {
    let host = Host::new();
    let mut machine = host.start(Guest::Obedient, "vm0", "ready\n");
    let mut events = host.connect("vm0");
    events.write_all(b"GET /v1/events HTTP/1.1\r\n\r\n").unwrap();
    events.read_exact(&mut [0; 15]).unwrap();
    let mut waiting = host.connect("vm0");
    waiting.write_all(b"GET /v1/wait HTTP/1.1\r\n\r\n").unwrap();
    for route in &minivmm::control::routes::ROUTES {
        // Three of them end the machine; native_save.rs, native_snapshot.rs and native_migrate.rs ask for those, and for what needs a folder.
        let elsewhere = ["/v1/kill", "/v1/save", "/v1/migrate", "/v1/snapshot", "/v1/revert"];
        if elsewhere.contains(&route.path) || ["/v1/events", "/v1/wait", "/v1/console"].contains(&route.path)
        {
            continue;
        }
        let body = match (route.method, route.path) {
            ("PUT", "/v1/balloon") => "{\"mib\":1}",
            ("PUT", "/v1/console/size") => "{\"columns\":80,\"rows\":24}",
            (_, "/v1/nets/{id}/forwards") => "{\"forward\":\"0:22\"}",
            ("PATCH", "/v1/disks/{id}") => "{\"size\":\"+1G\"}",
            (_, "/v1/disks/{id}/insert") => "{\"path\":\"/dev/null\"}",
            _ => "",
        };
        let (status, said) = host.http("vm0", route.method, &route.path.replace("{id}", "-"), body);
        // The machine has no network and no disk.
        let is_done = if route.path.contains("{id}") { status == 404 } else { status < 300 };
        assert!(route.statuses.contains(&status) && is_done, "{route:?}: {status} {said}");
        if status == 200 {
            assert!(!serde_json::from_str::<Value>(&said).unwrap().is_null());
        }
        if route.path == "/v1/reset" {
            machine.expect("ready\n", 2);
        }
    }
    assert_eq!(host.http("vm0", "GET", "/", "").0, 404);
    machine.type_in(b"k");
    let (mut lines, mut end) = (String::new(), String::new());
    events.read_to_string(&mut lines).unwrap();
    let lines: Vec<Value> = lines
        .split_once("\r\n\r\n")
        .unwrap()
        .1
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let names: Vec<_> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["paused", "resumed", "reset", "booted", "panicked", "exited"]);
    waiting.read_to_string(&mut end).unwrap();
    assert!(end.ends_with("{\"status\":4,\"text\":\"the guest's kernel panicked\"}\n"), "{end}");
    assert_eq!(machine.end().status.code(), Some(4));
}

#[test]
fn a_console_is_shared_by_its_readers_and_typed_into_over_the_socket() {
    let host = Host::new();
    let machine = host.start(Guest::EchoInterrupt, "vm0", "ready\n");
    let mut reader = host.connect("vm0");
    reader.write_all(b"GET /v1/console HTTP/1.1\r\n\r\n").unwrap();
    let mut typist = host.connect("vm0");
    typist
        .write_all(b"GET /v1/console HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: minivmm-console\r\n\r\n")
        .unwrap();
    typist.read_exact(&mut [0; 12]).unwrap();
    typist.write_all(b"hello\n\x04").unwrap();
    for stream in [&mut reader, &mut typist] {
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        assert!(said.contains("\r\n\r\nready\nhello\n") && said.ends_with("done\n"), "{said}");
    }
    assert_eq!(machine.end().status.code(), Some(0));
}

#[test]
fn whoever_pasted_into_a_guest_at_rest_and_left_holds_no_place() {
    let host = Host::new();
    let machine = host.start(Guest::EchoInterrupt, "vm0", "ready\n");
    host.does(&["pause", "vm0"]);
    let upgrade = b"GET /v1/console HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: minivmm-console\r\n\r\n";
    // As many as there can be, with more than the guest's input and the sockets hold.
    let pasting: Vec<_> = (0..16)
        .map(|_| {
            let mut stream = host.connect("vm0");
            stream.write_all(upgrade).unwrap();
            stream.read_exact(&mut [0; 12]).unwrap();
            stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
            while stream.write_all(&[b'x'; 64 << 10]).is_ok() {}
            stream
        })
        .collect();
    let (status, said) = host.http("vm0", "GET", "/v1/wait", "");
    assert_eq!(status, 503, "{said}");
    drop(pasting);
    let begin = Instant::now();
    let mut stream = loop {
        let mut stream = host.connect("vm0");
        stream.write_all(upgrade).unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        if head.ends_with(b"101") {
            break stream;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "their places are not free");
        thread::sleep(Duration::from_millis(50));
    };
    // The next client's input follows the pasted text.
    host.does(&["resume", "vm0"]);
    stream.read_exact(&mut [0; 1000]).unwrap();
    host.does(&["kill", "vm0"]);
    assert!(machine.end().stdout.starts_with("ready\nxxxxxx"));
}

#[test]
fn ninety_clients_that_never_read_keep_out_none_of_ten_that_do() {
    let host = Host::new();
    let mut machine = host.start(Guest::EchoInterrupt, "vm0", "ready\n");
    let mut deaf: Vec<_> = (0..90).map(|_| host.connect("vm0")).collect();
    // More than the socket takes: who has written for as long as it is taken is not read any more, since it does not read.
    let asking = "GET /v1/machine HTTP/1.1\r\n\r\n".repeat(20_000);
    for (number, stream) in deaf.iter_mut().enumerate() {
        let said = match number % 3 {
            0 => "GET /v1/events HTTP/1.1\r\n\r\n",
            1 => "GET /v1/machine HT",
            _ => asking.as_str(),
        };
        stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
        // Those that had to go, and those that are not read any more, do not take it.
        let _ = stream.write_all(said.as_bytes());
    }
    thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                let begin = Instant::now();
                for _ in 0..5 {
                    assert_eq!(host.http("vm0", "GET", "/v1/machine", "").0, 200);
                }
                assert!(begin.elapsed() < LIMIT / 2, "{:?}", begin.elapsed());
            });
        }
    });
    // The guest works as ever.
    machine.type_in(&[b'x'; 10_000]);
    machine.type_in(b"\x04");
    assert!(machine.end().stdout.contains("echoed=00002710"));
    drop(deaf);
}

#[test]
fn whatever_is_sent_at_it_leaves_memory_flat_and_the_machine_unharmed() {
    let host = Host::new();
    let mut machine = host.start(Guest::EchoInterrupt, "vm0", "ready\n");
    let each = usize::try_from(dose(1024)).unwrap() << 20;
    // A stream of events checks its client only once a second.
    let kinds: [(usize, &[u8]); 5] = [
        (each / 4, b"PUT /v1/balloon HTTP/1.1\r\nContent-Length: 1099511627776\r\n\r\n"),
        (each / 4, b"PUT /v1/balloon HTTP/1.1\r\nContent-Length: 65536\r\n\r\n"),
        (each / 4, b"GET /"),
        (each / 4, b"GET /v1/wait HTTP/1.1\r\n\r\n"),
        (2 << 20, b"GET /v1/events HTTP/1.1\r\n\r\n"),
    ];
    // Everything for serving a client is allocated by now.
    host.http("vm0", "GET", "/v1/machine", "");
    let before = private_memory(machine.pid());
    let mut most = before;
    let block = [b'x'; 64 << 10];
    for (share, head) in kinds {
        let mut sent = 0;
        while sent < share {
            let mut stream = host.connect("vm0");
            let _ = stream.write_all(head);
            while sent < share && stream.write_all(&block).is_ok() {
                sent += block.len();
            }
            most = most.max(private_memory(machine.pid()));
        }
        assert_eq!(host.http("vm0", "GET", "/v1/machine", "").0, 200);
    }
    println!("{} MiB sent, private memory {before} KiB, at most {most} KiB", each >> 20);
    assert!(most < before + 1024, "{before} KiB became {most} KiB");
    machine.type_in(b"hello\x04");
    assert!(machine.end().stdout.contains("echoed=00000005"));
}

/// Stops a machine's process, as Ctrl-Z or a debugger do.
fn stop_process(machine: &Vmm) {
    machine.signal(libc::SIGSTOP);
    let stat = format!("/proc/{}/stat", machine.pid());
    while !fs::read_to_string(&stat).unwrap().contains(") T ") {
        thread::yield_now();
    }
}

/// The output of a verb, and whether it took less than this many seconds.
#[track_caller]
fn within(seconds: u64, host: &Host, words: &[&str], status: i32) -> String {
    let begin = Instant::now();
    let output = host.run(words);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{words:?}: {stderr}");
    assert!(begin.elapsed() < Duration::from_secs(seconds), "{words:?} took {:?}", begin.elapsed());
    stderr
}

#[test]
fn a_stopped_process_is_named_by_verbs_and_ended_by_kill_and_stop() {
    let host = Host::new();
    for words in [&["kill", "vm0"][..], &["stop", "vm0", "--timeout", "1"]] {
        let machine = host.start(Guest::Obedient, "vm0", "ready\n");
        let pid = machine.pid();
        stop_process(&machine);
        if words.len() == 2 {
            let said = within(30, &host, &["pause", "vm0"], 1);
            assert!(said.contains(&format!("process {pid} is stopped; `kill -CONT {pid}`")), "{said}");
        }
        let said = within(30, &host, words, 0);
        assert!(said.contains(&format!("process {pid} is stopped; it was ended with SIGKILL")), "{said}");
        assert!(host.files().is_empty(), "{:?}", host.files());
        machine.end();
    }
}

#[test]
fn a_machine_whose_folder_was_removed_is_found_and_has_its_socket_again() {
    let host = Host::new();
    let mut machine = host.start(Guest::Obedient, "vm0", "ready\n");
    let pid = machine.pid();
    fs::remove_dir_all(host.folder()).unwrap();
    fs::set_permissions(host.0.path(), fs::Permissions::from_mode(0o500)).unwrap();
    assert_eq!(host.json(&["ls", "--json"])[0]["pid"], json!(pid));
    let refused = host.launch(Guest::Obedient, "vm0").spawn().end();
    refused.is("", 1).said(&[&format!("a machine called vm0 runs already, as process {pid}")]);
    fs::set_permissions(host.0.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let begin = Instant::now();
    // It listens a moment after it is there.
    while UnixStream::connect(host.folder().join("vm0.sock")).is_err() {
        assert!(begin.elapsed() < LIMIT);
        thread::sleep(Duration::from_millis(20));
    }
    host.does(&["pause", "vm0"]);
    host.does(&["resume", "vm0"]);
    // Without any place for a socket, signals remain.
    let moved = host.0.path().with_extension("moved");
    fs::rename(host.0.path(), &moved).unwrap();
    machine.type_in(b"r");
    machine.expect("ready\n", 2);
    assert_eq!(host.json(&["ls", "--json"])[0]["pid"], json!(pid));
    assert_eq!(within(30, &host, &["kill", "vm0"], 0), "");
    // In order: with its own words, and not by SIGKILL.
    machine.end().is("ready\nready\n", 128 + libc::SIGTERM);
    assert_eq!(host.json(&["ls", "--json"]), json!([]));
    fs::rename(&moved, host.0.path()).unwrap();
}

/// A machine under limits that a shell sets; the launch has its kernel's folder.
fn limited(host: &Host, limit: &str) -> (vmm::Launch, Child) {
    let mut launch = host.launch(Guest::Obedient, "vm0");
    let command = launch.command();
    let mut words = vec![command.get_program().to_owned()];
    words.extend(command.get_args().map(ToOwned::to_owned));
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{limit}; exec \"$0\" \"$@\"")]).args(words);
    shell.env("XDG_RUNTIME_DIR", host.0.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let child = shell.stderr(Stdio::piped()).spawn().unwrap();
    (launch, child)
}

#[test]
fn a_client_that_no_descriptor_is_left_for_is_told_so() {
    let host = Host::new();
    let (_launch, mut child) = limited(&host, "ulimit -n 36");
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    let begin = Instant::now();
    let mut clients = Vec::new();
    // Fewer than the limit on connections; none of those before the last one is closed.
    for _ in 0..31 {
        clients.push(host.connect("vm0"));
    }
    let mut last = clients.pop().unwrap();
    let mut said = String::new();
    last.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("HTTP/1.1 503") && said.contains("ulimit -n"), "{said}");
    assert!(begin.elapsed() < LIMIT);
    drop(clients);
    child.stdin.as_mut().unwrap().write_all(b"q").unwrap();
    assert!(child.wait().unwrap().success());
}

/// How long the threads of a process have used a processor, in ticks of 10 ms, without its vCPUs: the guest polls.
fn ticks(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let stats = threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
    let used = |stat: String| {
        let (name, fields) = stat.rsplit_once(") ").unwrap();
        let fields = fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap());
        if name.contains("(vcpu") { 0 } else { fields.sum() }
    };
    stats.map(used).sum()
}

#[test]
fn a_machine_without_descriptors_does_not_spin_and_answers_when_it_has_some() {
    let host = Host::new();
    let machine = host.start(Guest::Obedient, "vm-without", "ready\n");
    let pid = u32::try_from(machine.pid()).unwrap();
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let hard = line.split_whitespace().nth(4).unwrap();
    let limit = |soft: &str| {
        let pid = pid.to_string();
        let limited = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={soft}:")]).status();
        assert!(limited.unwrap().success(), "prlimit runs; it is in Debian's package util-linux");
    };
    // An answer shows that the server is there, which opens some as it starts.
    host.does(&["info", "vm-without"]);
    limit("1");
    // The socket by which its name is held, and the one that it answers on.
    let sockets = fs::read_to_string("/proc/net/unix").unwrap();
    let mut names = sockets.lines().filter_map(|line| line.split_once(" @").map(|(_, name)| name));
    let name = names.find(|name| name.starts_with("minivmm/") && name.ends_with("/vm-without")).unwrap();
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let _clients = [0; 3].map(|_| UnixStream::connect_addr(&address).unwrap());
    let mut client = host.connect("vm-without");
    client.write_all(b"GET /v1/machine HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let before = ticks(pid);
    thread::sleep(Duration::from_millis(500));
    // A thread that has ended in the meantime takes its ticks along.
    assert!(ticks(pid).saturating_sub(before) < 20, "it spins");
    limit(hard);
    let mut said = String::new();
    client.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    host.does(&["info", "vm-without"]);
    end(machine).is("ready\ndone\n", 0);
}

#[test]
fn the_soft_limit_of_open_files_is_raised_and_the_hard_one_is_named_where_it_is_too_low() {
    let host = Host::new();
    // The start fails at another step with each of these limits.
    let refused = (4..30).filter(|limit| {
        let (_launch, mut child) = limited(&host, &format!("ulimit -n {limit}"));
        // Where the limit is high enough the guest runs, and switches itself off.
        let _ = child.stdin.take().unwrap().write_all(b"q");
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let short = said.contains("(os error 24); ");
        // A number that suffices, or, before anything is known of the machine, one that does for any.
        let named = said.split_once("as with `ulimit -n ").and_then(|(_, named)| named.split_once('`'));
        let cure = named.is_some_and(|(number, rest)| {
            number.parse::<i32>().is_ok_and(|number| number > *limit)
                && rest.trim_end() == ", or LimitNOFILE= of a systemd unit"
        });
        assert_eq!(short, cure, "{limit}: {said}");
        short && !output.status.success()
    });
    assert!(refused.count() > 5);
    let (_launch, mut child) = limited(&host, "ulimit -Sn 12");
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    let limits = fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<_> = line.split_whitespace().skip(3).take(2).collect();
    assert!(numbers[0] == numbers[1] && numbers[0] != "12", "{line}");
    child.stdin.as_mut().unwrap().write_all(b"q").unwrap();
    assert!(child.wait().unwrap().success());
}
