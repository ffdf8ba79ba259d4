//! Finds the process that has a port of the host open, if this process may see it: the kernel lists sockets with their inodes, and
//! /proc the descriptors of processes with the same inodes (proc_net(5)).

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use crate::spec::Protocol;

/// A process that has a port open.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PortOwner {
    /// Its pid.
    pub pid: u32,
    /// The name of its program.
    pub program: String,
}

/// State of a socket that listens, in hexadecimal (include/net/tcp_states.h).
const LISTENS: &str = "0A";

/// A process that listens where `address` would.
pub(crate) fn find(proc: &Path, protocol: Protocol, address: SocketAddr) -> Option<PortOwner> {
    find_all(proc, protocol, address).next()
}

/// All of them: a process that begins has for a moment what the one has that begins it.
pub(crate) fn find_all(
    proc: &Path,
    protocol: Protocol,
    address: SocketAddr,
) -> impl Iterator<Item = PortOwner> {
    let lists = match protocol {
        Protocol::Tcp => ["net/tcp", "net/tcp6"],
        Protocol::Udp => ["net/udp", "net/udp6"],
    };
    let texts = lists.map(|list| fs::read_to_string(proc.join(list)).unwrap_or_default());
    let mut sockets = texts.iter().flat_map(|text| text.lines().skip(1)).filter_map(Listed::parse);
    let listed = sockets.find(|socket| {
        (protocol == Protocol::Udp || socket.state == LISTENS)
            && socket.address.port() == address.port()
            && overlap(socket.address.ip(), address.ip())
    });
    let socket = listed.map(|listed| format!("socket:[{}]", listed.inode));
    socket.into_iter().flat_map(|socket| processes_with(proc, socket))
}

/// Whether both cannot be bound: one is the other, or all addresses.
fn overlap(one: IpAddr, other: IpAddr) -> bool {
    one == other || one.is_unspecified() || other.is_unspecified()
}

fn processes_with(proc: &Path, socket: String) -> impl Iterator<Item = PortOwner> + use<> {
    fs::read_dir(proc).into_iter().flatten().flatten().filter_map(move |entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        // Other users' descriptors are not readable.
        let mut files = fs::read_dir(entry.path().join("fd")).ok()?.flatten();
        let has =
            files.any(|file| fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == socket.as_str()));
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        // A program chooses its name itself.
        has.then(|| PortOwner { pid, program: name.trim().escape_debug().to_string() })
    })
}

/// A line of the kernel's list.
struct Listed<'a> {
    address: SocketAddr,
    state: &'a str,
    inode: &'a str,
}

impl<'a> Listed<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split_whitespace();
        let (ip, port) = fields.nth(1)?.split_once(':')?;
        let state = fields.nth(1)?;
        let inode = fields.nth(5)?;
        let address = SocketAddr::new(parse_ip(ip)?, u16::from_str_radix(port, 16).ok()?);
        Some(Listed { address, state, inode })
    }
}

/// Words of four bytes, each in the order of the processor.
fn parse_ip(text: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(text.get(8 * at..8 * at + 8)?, 16).ok().map(u32::to_ne_bytes);
    if text.len() == 8 {
        return Some(Ipv4Addr::from(word(0)?).into());
    }
    let words = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
    <[u8; 16]>::try_from(words).ok().map(|bytes| Ipv6Addr::from(bytes).into())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn owner_of_a_port_is_the_process_that_listens_there() {
        let owner = |protocol, address| find(Path::new("/proc"), protocol, address).map(|owner| owner.pid);
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = held.local_addr().unwrap();
        assert_eq!(owner(Protocol::Tcp, at), Some(std::process::id()));
        assert_eq!(
            owner(Protocol::Tcp, SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), at.port())),
            Some(std::process::id())
        );
        let held = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(owner(Protocol::Udp, held.local_addr().unwrap()), Some(std::process::id()));
    }

    #[test]
    fn list_of_the_kernel_is_read() {
        let line = "   0: 0100007F:15B3 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0";
        let Listed { address, state, inode } = Listed::parse(line).unwrap();
        assert_eq!((address.to_string().as_str(), state, inode), ("127.0.0.1:5555", LISTENS, "4242"));
        let six = "0: 00000000000000000000000001000000:0016 0:0 0A 0:0 0:0 0 0 0 7 1";
        assert_eq!(Listed::parse(six).unwrap().address.to_string(), "[::1]:22");
        assert!(Listed::parse("").is_none() && Listed::parse("0: xx:yy 0:0 0A 0 0 0 0 0 0").is_none());
    }
}
