use std::io::{Read, Write};
use std::path::PathBuf;
use std::thread;

use serde_json::{Value, json};

use super::super::client::{ClientError, PendingRequest, request};
use super::super::routes::ROUTES;
use super::super::testing::Fake;
use super::*;
use crate::machine::{MachineEvent, MachineState};

/// Longer than any operation here takes.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);

struct Served {
    server: Option<ControlServer>,
    fake: Arc<Fake>,
    socket: PathBuf,
    folder: tempfile::TempDir,
}

impl Served {
    fn new(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let claim = Claim::take_in(&folder.path().join("m"), &"vm0".parse().unwrap()).unwrap();
        let (fake, socket) = (Arc::new(Fake::default()), claim.path().to_owned());
        let server =
            ControlServer::serve_requests(claim, Arc::new(MachineService(fake.clone())), limits).unwrap();
        Served { server: Some(server), fake, socket, folder }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        stream
    }

    fn request(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value, ClientError> {
        request(&self.socket, method, path, body.as_ref(), LONG)
    }

    /// Sends text as it is; returns everything that is received until the end.
    fn raw(&self, text: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(text.as_bytes()).unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).unwrap();
        String::from_utf8_lossy(&said).into_owned()
    }

    #[track_caller]
    fn answers(&self) {
        let info = self.request("GET", "/v1/machine", None).unwrap();
        assert_eq!(info["name"], "vm0");
    }

    fn open(&self) -> usize {
        self.server.as_ref().unwrap().connections.state().open.len()
    }

    #[track_caller]
    fn until_open(&self, wanted: usize) {
        let begin = Instant::now();
        while self.open() != wanted {
            assert!(begin.elapsed() < LONG, "{} are open", self.open());
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn finish(&mut self) {
        self.server.take().unwrap().finish(Ending { status: 4, text: "it panicked".into() });
    }
}

fn limits() -> Limits {
    Limits { connections: 4, streams: 2, idle: LONG, request: LONG, write: LONG, linger: SHORT }
}

/// A body for each request that needs one, and for one that would not end.
fn body_of(method: &str, path: &str) -> &'static str {
    match (method, path) {
        ("PUT", "/v1/balloon") => "{\"mib\":64}",
        ("PUT", "/v1/console/size") => "{\"columns\":132,\"rows\":50}",
        (_, "/v1/nets/{id}/forwards") => "{\"forward\":\"127.0.0.1:0:22\"}",
        (_, "/v1/nets/{id}/capture") => "{\"frames\":0}",
        ("PATCH", "/v1/disks/{id}") => "{\"size\":\"+1G\"}",
        (_, "/v1/save") => "{\"folder\":\"/srv/vm0.saved\",\"keep-running\":true}",
        (_, "/v1/snapshot" | "/v1/revert") => "{\"folder\":\"/srv/vm0.saved\"}",
        (_, "/v1/disks/{id}/insert") => "{\"path\":\"/tools.raw\"}",
        _ => "",
    }
}

/// The path with an id that is there.
fn path_of(path: &str) -> String {
    path.replace("{id}", if path.starts_with("/v1/disks") { "vda" } else { "net1" })
}

#[test]
fn every_route_does_what_it_says_with_a_status_that_it_names() {
    let served = Served::new(Limits::DEFAULT);
    for route in ROUTES
        .iter()
        .filter(|route| !["/v1/wait", "/v1/events", "/v1/console", "/v1/migrate"].contains(&route.path))
    {
        let body = body_of(route.method, route.path);
        let (method, path) = (route.method, path_of(route.path));
        let head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        let said = served.raw(&format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()));
        let status = if route.statuses.contains(&200) { 200 } else { 204 };
        assert!(
            route.statuses.contains(&status) && said.starts_with(&format!("HTTP/1.1 {status} ")),
            "{said}"
        );
    }
    let calls = [
        "pause",
        "resume",
        "reset",
        "save-running",
        "cancel-copy",
        "snapshot",
        "revert",
        "power-button",
        "kill",
        "grow",
        "eject",
        "insert",
        "size",
    ];
    assert_eq!(*served.fake.calls.lock().unwrap(), calls);
    assert_eq!(served.request("GET", "/v1/balloon", None).unwrap(), json!({ "mib": 64, "actual-mib": 0 }));
    served.request("DELETE", "/v1/copy", Some(json!({ "copy": "mine" }))).unwrap();
    served.request("DELETE", "/v1/copy", Some(json!({ "mine": true }))).unwrap_err();
    assert_eq!(served.fake.calls.lock().unwrap().split_off(calls.len()), ["cancel-own"]);
    let late = served.request("POST", "/v1/pause", Some(json!({ "timeout": 0 }))).unwrap_err();
    assert!(late.to_string().ends_with("a timeout of 0 does not wait for it"), "{late}");
    let nowhere = served.request("GET", "/v1/nowhere", None).unwrap_err().to_string();
    assert_eq!(nowhere.matches("/v1/balloon").count(), 1, "{nowhere}");
    *served.fake.state.lock().unwrap() = MachineState::Ended;
    for route in ROUTES.iter().filter(|route| route.statuses.contains(&409)) {
        let body = serde_json::from_str(body_of(route.method, route.path)).ok();
        let path = path_of(route.path);
        let error = served.request(route.method, &path, body).unwrap_err().to_string();
        assert!(error.to_lowercase().contains("the machine has ended"), "{error}");
    }
}

#[test]
fn silent_and_half_silent_clients_make_room_for_those_who_speak() {
    let served = Served::new(limits());
    let mut silent: Vec<_> = (0..20).map(|_| served.connect()).collect();
    for stream in silent.iter_mut().step_by(2) {
        // Connections that were closed already refuse it.
        let _ = stream.write_all(b"GET /v1/machine HTT");
    }
    for _ in 0..10 {
        served.answers();
    }
    assert!(served.open() <= 4);
    // The oldest connection was closed first.
    assert_eq!(silent[0].read(&mut [0]).unwrap_or(0), 0);
}

#[test]
fn a_client_that_is_slow_to_ask_stays_where_others_have_their_answers() {
    let served = Served::new(Limits { linger: LONG, ..limits() });
    let mut slow = served.connect();
    let answered: Vec<_> = (0..20)
        .map(|_| {
            let mut stream = served.connect();
            stream.write_all(b"GET /v1/machine HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).unwrap();
            assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
            stream
        })
        .collect();
    slow.write_all(b"GET /v1/machine HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    let mut said = String::new();
    slow.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
    drop(answered);
}

#[test]
fn a_client_that_asks_and_never_reads_is_let_go() {
    let served = Served::new(Limits { write: SHORT, ..limits() });
    let mut streams: Vec<_> = (0..4).map(|_| served.connect()).collect();
    let requests = "GET /v1/machine HTTP/1.1\r\n\r\n".repeat(100);
    for stream in &mut streams {
        stream.set_write_timeout(Some(SHORT)).unwrap();
        // Until the answers fill the socket and the server reads no more requests.
        while stream.write_all(requests.as_bytes()).is_ok() {}
    }
    served.answers();
    served.until_open(0);
}

#[test]
fn a_request_that_takes_too_long_or_never_comes_ends_the_connection() {
    let served = Served::new(Limits { request: SHORT, idle: SHORT, ..limits() });
    let begin = Instant::now();
    assert!(served.raw("GET /v1/machine HT").starts_with("HTTP/1.1 408 "));
    assert!(
        served.raw("PUT /v1/balloon HTTP/1.1\r\nContent-Length: 9\r\n\r\n{").starts_with("HTTP/1.1 408 ")
    );
    assert_eq!(served.raw(""), "");
    assert!(begin.elapsed() >= SHORT);
    // A slow byte does not extend the deadline.
    let mut stream = served.connect();
    let begin = Instant::now();
    while stream.write_all(b"G").is_ok() && begin.elapsed() < LONG {
        thread::sleep(Duration::from_millis(20));
    }
    assert!(begin.elapsed() < LONG);
}

#[test]
fn a_body_that_is_too_large_is_refused_in_words_while_it_still_comes() {
    let served = Served::new(limits());
    let mut stream = served.connect();
    stream.write_all(b"PUT /v1/balloon HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n").unwrap();
    // More than a socket's buffers hold, so that the server must read it.
    stream.write_all(&vec![b'x'; 900_000]).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("HTTP/1.1 413 ") && said.contains("at most 65536 bytes"), "{said}");
    // And without an end.
    while stream.write_all(&[b'x'; 4096]).is_ok() {}
    served.until_open(0);
}

#[test]
fn those_who_wait_leave_room_for_those_who_ask() {
    let mut served = Served::new(limits());
    let mut waiting = PendingRequest::send(&served.socket, "GET", "/v1/wait", None, LONG).unwrap();
    let mut events = served.connect();
    events.write_all(b"GET /v1/events HTTP/1.1\r\n\r\n").unwrap();
    let mut head = [0; 15];
    events.read_exact(&mut head).unwrap();
    // Let the first one arrive.
    assert!(waiting.answer(SHORT).unwrap().is_none());
    let error = served.request("GET", "/v1/wait", None).unwrap_err();
    assert!(error.to_string().contains("2 clients wait"), "{error}");
    let silent: Vec<_> = (0..10).map(|_| served.connect()).collect();
    served.answers();
    served.fake.events.lock().unwrap().extend([MachineEvent::Missed(3), MachineEvent::Exited]);
    served.finish();
    assert_eq!(waiting.answer(LONG).unwrap(), Some(json!({ "status": 4, "text": "it panicked" })));
    let mut lines = String::new();
    events.read_to_string(&mut lines).unwrap();
    assert!(lines.contains("\n{\"event\":\"missed\",\"detail\":3}\n"), "{lines}");
    assert!(!served.socket.exists());
    drop(silent);
}

#[test]
fn a_client_that_stops_waiting_gives_its_place_back() {
    let served = Served::new(limits());
    for path in ["/v1/wait", "/v1/events", "/v1/console"] {
        for _ in 0..5 {
            let mut asked = PendingRequest::send(&served.socket, "GET", path, None, LONG).unwrap();
            assert!(asked.answer(Duration::from_millis(20)).unwrap().is_none());
            drop(asked);
            served.until_open(0);
        }
    }
}

#[test]
fn a_console_is_read_by_all_who_ask_and_typed_into_by_those_who_upgrade() {
    let served = Served::new(limits());
    served.fake.typed.lock().unwrap().extend(b"before ");
    let mut stream = served.connect();
    let request = b"GET /v1/console HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: minivmm-console\r\n\r\n";
    stream.write_all(request).unwrap();
    let mut said = vec![0; b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: minivmm-console\r\n\r\nbefore ".len()];
    stream.read_exact(&mut said).unwrap();
    assert!(said.ends_with(b"\r\n\r\nbefore "), "{}", String::from_utf8_lossy(&said));
    stream.write_all(b"ls -l\x04").unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "ls -l");
    served.fake.typed.lock().unwrap().extend(b"again\x04");
    let said = served.raw("GET /v1/console HTTP/1.1\r\n\r\n");
    assert!(said.starts_with("HTTP/1.1 200 OK\r\n") && said.ends_with("\r\n\r\nagain"), "{said}");
    served.until_open(0);
}

#[test]
fn who_leaves_a_guest_that_neither_reads_nor_speaks_gives_the_place_back() {
    let served = Served::new(Limits { write: SHORT, ..limits() });
    served.fake.reads_nothing.store(true, std::sync::atomic::Ordering::Relaxed);
    let paste = || {
        let mut stream = served.connect();
        let request = b"GET /v1/console HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: minivmm-console\r\n\r\n";
        stream.write_all(request).unwrap();
        stream.read_exact(&mut [0; 12]).unwrap();
        stream.write_all(&[b'x'; 50]).unwrap();
        stream
    };
    for _ in 0..3 {
        drop((paste(), paste()));
        served.until_open(0);
    }
    // A connected client stays, also with its writing half closed, and its input reaches the guest once that
    // reads again.
    let stream = paste();
    stream.shutdown(Shutdown::Write).unwrap();
    thread::sleep(3 * SHORT);
    assert_eq!(served.open(), 1);
    served.fake.reads_nothing.store(false, std::sync::atomic::Ordering::Relaxed);
    let mut heard = Vec::new();
    while !heard.ends_with(&[b'x'; 50]) {
        let mut byte = [0];
        (&stream).read_exact(&mut byte).unwrap();
        heard.extend(byte);
    }
    // The client still reads, although it will type nothing more.
    assert_eq!(served.open(), 1);
    drop(stream);
    served.until_open(0);
}

#[test]
fn a_connection_serves_many_requests() {
    let served = Served::new(limits());
    let mut stream = served.connect();
    for _ in 0..1000 {
        stream.write_all(b"POST /v1/resume HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = [0; 27];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 204 No Content\r\n\r\n");
    }
    assert_eq!(served.fake.calls.lock().unwrap().len(), 1000);
}

#[test]
fn dropping_the_server_ends_all_connections() {
    let mut served = Served::new(limits());
    let mut streams: Vec<_> = (0..3).map(|_| served.connect()).collect();
    streams[0].write_all(b"GET /v1/wait HTTP/1.1\r\n\r\n").unwrap();
    streams[1].write_all(b"GET /v1/events HTTP/1.1\r\n\r\n").unwrap();
    served.until_open(3);
    let begin = Instant::now();
    drop(served.server.take());
    assert!(begin.elapsed() < LONG);
    for stream in &mut streams {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(!String::from_utf8(rest).unwrap().contains("status"));
    }
}

#[test]
fn who_has_asked_how_it_ends_before_it_did_is_told() {
    for _ in 0..200 {
        let mut served = Served::new(Limits::DEFAULT);
        // Without waiting: the server may not have read the request yet.
        let mut asked = PendingRequest::send(&served.socket, "GET", "/v1/wait", None, LONG).unwrap();
        served.finish();
        assert_eq!(asked.answer(LONG).unwrap().unwrap()["status"], 4);
    }
}

#[test]
fn the_name_is_free_when_the_end_is_told_also_while_clients_take_no_answer() {
    let mut held_up = false;
    // On a busy host the next machine may come when nobody is waited for any more.
    for _ in 0..20 {
        let mut served = Served::new(limits());
        // Keeps the server busy for the whole of END_LIMIT.
        let mut reads_nothing = served.connect();
        reads_nothing.set_write_timeout(Some(SHORT)).unwrap();
        let requests = "GET /v1/machine HTTP/1.1\r\n\r\n".repeat(100);
        while reads_nothing.write_all(requests.as_bytes()).is_ok() {}
        let mut asked = PendingRequest::send(&served.socket, "GET", "/v1/wait", None, LONG).unwrap();
        let (folder, server) = (served.folder.path().join("m"), served.server.take().unwrap());
        thread::scope(|scope| {
            let finish = scope.spawn(|| server.finish(Ending { status: 0, text: "it is over".into() }));
            assert_eq!(asked.answer(LONG).unwrap().unwrap()["status"], 0);
            let next = Claim::take_in(&folder, &"vm0".parse().unwrap()).unwrap();
            held_up = !finish.is_finished();
            finish.join().unwrap();
            // The files of the next machine are left alone.
            assert!(next.path().exists());
        });
        if held_up {
            break;
        }
    }
    assert!(held_up, "nobody held it up");
}

#[test]
fn clients_that_close_their_writing_half_get_the_whole_answer() {
    let mut served = Served::new(limits());
    let request = |path: &str| {
        let mut stream = served.connect();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        stream
    };
    let (mut wait, mut events) = (request("/v1/wait"), request("/v1/events"));
    served.until_open(2);
    // Longer than CHECK_INTERVAL.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(1200) {
        assert_eq!(served.open(), 2);
        thread::sleep(Duration::from_millis(20));
    }
    served.fake.events.lock().unwrap().push_back(MachineEvent::Exited);
    let mut said = vec![0; 400];
    let mut length = 0;
    while !String::from_utf8_lossy(&said[..length]).contains("exited") {
        length += events.read(&mut said[length..]).unwrap();
        assert!(length > 0);
    }
    served.finish();
    let mut said = String::new();
    wait.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("HTTP/1.1 200") && said.contains("it panicked"), "{said}");
}

#[test]
fn a_half_closed_client_that_leaves_gives_its_place_back() {
    let served = Served::new(limits());
    for path in ["/v1/wait", "/v1/events", "/v1/console"] {
        let mut stream = served.connect();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        served.until_open(1);
        drop(stream);
        served.until_open(0);
    }
}
