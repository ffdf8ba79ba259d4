//! UDP request and response: `echo serve ADDRESS` answers every datagram with itself, `echo ask ADDRESS` sends the next
//! one when the answer has come.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// A question that gets no answer was lost, or its asker stood still.
const LOST: Duration = Duration::from_millis(200);
/// As in netperf's UDP_RR.
const QUESTION: [u8; 1] = [0];

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [verb, address] = words.as_slice() else { bail!("usage: echo serve|ask ADDRESS") };
    let address: SocketAddr = address.parse().with_context(|| address.clone())?;
    match verb.as_str() {
        "serve" => serve(&UdpSocket::bind(address)?),
        "ask" => ask(&UdpSocket::bind("0.0.0.0:0")?, address),
        other => bail!("no such verb: {other}"),
    }
}

fn serve(socket: &UdpSocket) -> Result<()> {
    let mut bytes = [0; 2048];
    loop {
        let (len, from) = socket.recv_from(&mut bytes)?;
        socket.send_to(bytes.get(..len).unwrap_or_default(), from)?;
    }
}

fn ask(socket: &UdpSocket, server: SocketAddr) -> Result<()> {
    socket.connect(server)?;
    socket.set_read_timeout(Some(LOST))?;
    let mut answer = [0; 16];
    loop {
        let answered = socket.send(&QUESTION).and_then(|_| socket.recv(&mut answer));
        match answered {
            Err(error) if !is_loss(&error) => return Err(error.into()),
            _ => {}
        }
    }
}

/// The server may not be there yet.
fn is_loss(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted | ErrorKind::ConnectionRefused
    )
}
