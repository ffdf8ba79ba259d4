//! A server of other requests than a machine's: parameters, connections that are handed over, and streams of bytes.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use super::router::{self, Reply, Route, Upgrade};
use super::target::{ByteSource, NextBytes};
use super::{Claim, ControlServer, Limits, Request, Service};

const LONG: Duration = Duration::from_secs(60);

type HandedOver = (UnixStream, Vec<u8>);

#[derive(Debug)]
struct Ports {
    taken: Mutex<mpsc::Sender<HandedOver>>,
    sources: Arc<Sources>,
}

/// How many sources there have been, and are.
#[derive(Debug, Default)]
struct Sources {
    begun: AtomicUsize,
    open: AtomicUsize,
}

static ROUTES: [Route<Ports>; 3] = [
    Route {
        method: "PATCH",
        path: "/v1/ports/{name}",
        summary: "",
        statuses: &[200],
        run: |_, call| Reply::json(&call.parameter(0)),
    },
    Route {
        method: "POST",
        path: "/v1/ports/{name}",
        summary: "",
        statuses: &[101, 400],
        run: |ports, call| {
            if !call.upgrades_to("frames") {
                return Reply::refusal(400, "ask for an upgrade");
            }
            let taken = ports.taken.lock().unwrap().clone();
            let fields = vec![("Port-Name", call.parameter(0).to_owned())];
            let then = Box::new(move |stream, rest| taken.send((stream, rest)).unwrap());
            Reply::Upgrade(Upgrade { to: "frames", fields, then })
        },
    },
    Route {
        method: "GET",
        path: "/v1/bytes",
        summary: "",
        statuses: &[200],
        run: |ports, _| {
            let sources = ports.sources.clone();
            sources.begun.fetch_add(1, Ordering::SeqCst);
            sources.open.fetch_add(1, Ordering::SeqCst);
            Reply::Bytes("text/plain", Box::new(Dots { finished: false, sources }))
        },
    },
];

impl Service for Ports {
    fn noun(&self) -> &'static str {
        "switch"
    }

    fn answer(&self, request: &Request) -> Reply {
        router::answer(&ROUTES, self, request)
    }
}

/// A source of dots without an end; when it is finished, a line more.
struct Dots {
    finished: bool,
    sources: Arc<Sources>,
}

impl ByteSource for Dots {
    fn next(&mut self, buffer: &mut Vec<u8>, _: Duration) -> NextBytes {
        let ends = buffer.last() == Some(&b'\n');
        *buffer = if self.finished { b"the end\n".to_vec() } else { vec![b'.'; 4096] };
        if ends { NextBytes::Ended } else { NextBytes::Bytes }
    }

    fn finish(&mut self) {
        self.finished = true;
    }
}

impl Drop for Dots {
    fn drop(&mut self) {
        self.sources.open.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Served {
    _server: ControlServer,
    socket: PathBuf,
    taken: mpsc::Receiver<HandedOver>,
    sources: Arc<Sources>,
    _folder: tempfile::TempDir,
}

impl Served {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let claim = Claim::take_in(&folder.path().join("m"), &"lab".parse().unwrap()).unwrap();
        let (socket, (sender, taken)) = (claim.path().to_owned(), mpsc::channel());
        let sources = Arc::new(Sources::default());
        let ports = Ports { taken: Mutex::new(sender), sources: sources.clone() };
        let limits = Limits { streams: 1, write: LONG, ..Limits::DEFAULT };
        let server = ControlServer::serve_requests(claim, Arc::new(ports), limits).unwrap();
        Served { _server: server, socket, taken, sources, _folder: folder }
    }

    fn send(&self, text: &str) -> UnixStream {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    }
}

fn rest(mut stream: &UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn parameters_of_a_path_reach_its_request_and_refusals_name_what_there_is() {
    let served = Served::new();
    let ask = |line: &str| rest(&served.send(&format!("{line} HTTP/1.1\r\nConnection: close\r\n\r\n")));
    assert!(ask("PATCH /v1/ports/vm0.net0").ends_with("\r\n\r\n\"vm0.net0\"\n"));
    assert!(ask("GET /v1/ports/vm0.net0").contains("\r\nAllow: PATCH, POST\r\n"));
    let nowhere = ask("GET /v1/ports/");
    assert!(nowhere.starts_with("HTTP/1.1 404 ") && nowhere.contains("are /v1/ports/{name}, /v1/bytes."));
    assert!(ask("POST /v1/ports/a").starts_with("HTTP/1.1 400 "));
}

#[test]
fn connection_is_handed_over_with_what_came_behind_its_request_and_outlives_the_server() {
    let served = Served::new();
    let head = "POST /v1/ports/p HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: other, Frames\r\n\r\n";
    let mut client = served.send(&format!("{head}first"));
    let (mut stream, received) = served.taken.recv_timeout(LONG).unwrap();
    assert_eq!(received, b"first");
    drop(served);
    stream.write_all(b"second").unwrap();
    client.write_all(b"third").unwrap();
    let mut third = [0; 5];
    stream.read_exact(&mut third).unwrap();
    assert_eq!(&third, b"third");
    drop(stream);
    let answer = rest(&client);
    assert!(answer.starts_with("HTTP/1.1 101 ") && answer.contains("\r\nUpgrade: frames\r\n"), "{answer}");
    assert!(answer.contains("\r\nPort-Name: p\r\n") && answer.ends_with("\r\n\r\nsecond"), "{answer}");
}

#[test]
fn reader_that_closes_its_end_gets_the_rest_and_one_that_goes_frees_its_place() {
    let served = Served::new();
    let stream = served.send("GET /v1/bytes HTTP/1.1\r\n\r\n");
    let mut start = [0; 15];
    (&stream).read_exact(&mut start).unwrap();
    let refused = rest(&served.send("GET /v1/bytes HTTP/1.1\r\n\r\n"));
    assert!(refused.contains("1 clients wait for this switch already"), "{refused}");
    stream.shutdown(Shutdown::Write).unwrap();
    let all = rest(&stream);
    assert!(all.ends_with(".the end\n") && all.matches("the end").count() == 1);
    // One that reads nothing, and goes.
    drop(served.send("GET /v1/bytes HTTP/1.1\r\n\r\n"));
    let begin = Instant::now();
    let Sources { begun, open } = &*served.sources;
    while (begun.load(Ordering::SeqCst), open.load(Ordering::SeqCst)) != (3, 0) {
        assert!(begin.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(1));
    }
}
