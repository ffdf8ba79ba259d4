//! Queries the kernel about an interface of this process's network namespace (rtnetlink(7)). Any user may.
//! /sys shows the namespace in which it was mounted, which may be another one.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Attributes of a link (linux/if_link.h).
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_WIRELESS: u16 = 11;
const IFLA_LINKINFO: u16 = 18;
const IFLA_CARRIER: u16 = 33;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
/// Attributes of a TUN device, from Linux 4.18 on.
const IFLA_TUN_OWNER: u16 = 1;
const IFLA_TUN_GROUP: u16 = 2;
const IFLA_TUN_TYPE: u16 = 3;
const IFLA_TUN_PERSIST: u16 = 6;
const IFLA_TUN_MULTI_QUEUE: u16 = 7;
const IFLA_TUN_NUM_QUEUES: u16 = 8;
/// Mask for the type of an attribute, without its flags.
const NLA_TYPE_MASK: u16 = 0x3fff;
/// Bytes of `struct nlmsghdr` and of `struct ifinfomsg`.
const HEADER: usize = 16;
const MESSAGE: usize = HEADER + 16;
/// Buffer for an answer, of 1.5 KiB mostly. No list of virtual functions is in it, which would be long: only a request with
/// IFLA_EXT_MASK asks for that.
const ANSWER: usize = 8 << 10;

/// An interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub index: u32,
    /// `IFF_UP` and other flags.
    pub flags: u32,
    pub mtu: Option<u32>,
    pub carrier: bool,
    pub wireless: bool,
    /// Kind of driver: `tun`, `bridge`, `veth`.
    pub kind: String,
    pub tun: Option<Tun>,
}

/// Attributes of a TUN or TAP interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tun {
    pub tap: bool,
    pub persist: bool,
    pub multi_queue: bool,
    pub owner: Option<u32>,
    pub group: Option<u32>,
    /// Attached queues, for a multi-queue interface.
    pub queues: usize,
}

/// A netlink socket, which stays in the namespace where it was made.
#[derive(Debug)]
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    /// Opens a socket for requests, or for notifications about any interface.
    pub(super) fn open(notifications: bool) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | if notifications { libc::SOCK_NONBLOCK } else { 0 };
        // SAFETY: takes numbers and returns a descriptor or -1.
        let socket = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was made above, and nothing else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: an all-zero sockaddr_nl is valid: the kernel chooses the port.
        let mut address: libc::sockaddr_nl = unsafe { mem::zeroed() };
        address.nl_family = libc::sa_family_t::try_from(libc::AF_NETLINK).map_err(io::Error::other)?;
        if notifications {
            address.nl_groups = u32::try_from(libc::RTMGRP_LINK).map_err(io::Error::other)?;
        }
        let size = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
        // SAFETY: `address` is a sockaddr_nl of `size` bytes that lives across the call.
        if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Netlink(socket))
    }

    pub(super) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// The interface of this name; `None` if there is none.
    pub(super) fn by_name(&self, name: &str) -> io::Result<Option<Link>> {
        let mut attribute = Vec::new();
        let length = u16::try_from(4 + name.len() + 1).map_err(io::Error::other)?;
        attribute.extend(length.to_ne_bytes());
        attribute.extend(IFLA_IFNAME.to_ne_bytes());
        attribute.extend(name.as_bytes());
        attribute.push(0);
        attribute.resize(attribute.len().next_multiple_of(4), 0);
        self.ask(0, &attribute)
    }

    /// The interface of this index.
    pub(super) fn by_index(&self, index: u32) -> io::Result<Option<Link>> {
        self.ask(index, &[])
    }

    fn ask(&self, index: u32, attributes: &[u8]) -> io::Result<Option<Link>> {
        let length = u32::try_from(MESSAGE + attributes.len()).map_err(io::Error::other)?;
        let flags = u16::try_from(libc::NLM_F_REQUEST).map_err(io::Error::other)?;
        let mut message = Vec::with_capacity(64);
        message.extend(length.to_ne_bytes());
        message.extend(libc::RTM_GETLINK.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        // Sequence number and port; then family, kind, index, flags and change.
        message.extend([0; 8]);
        message.extend([0; 4]);
        message.extend(index.to_ne_bytes());
        message.extend([0; 8]);
        message.extend(attributes);
        // SAFETY: `message` is valid for reading its length.
        let sent = unsafe { libc::send(self.fd(), message.as_ptr().cast(), message.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        let answer = self.receive()?;
        parse(&answer)
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut answer = vec![0; ANSWER];
        loop {
            // SAFETY: `answer` has room for what is asked.
            let got = unsafe { libc::recv(self.fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
            match usize::try_from(got) {
                Ok(got) => {
                    answer.truncate(got);
                    return Ok(answer);
                }
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
    }

    /// Discards the notifications; an overflow (ENOBUFS) is a change as well.
    pub(super) fn drain(&self) {
        let mut nothing = [0u8; 16];
        loop {
            // SAFETY: `nothing` has room for its length; the rest of a message is cut off on purpose.
            let got = unsafe {
                libc::recv(self.fd(), nothing.as_mut_ptr().cast(), nothing.len(), libc::MSG_DONTWAIT)
            };
            let again =
                matches!(io::Error::last_os_error().raw_os_error(), Some(libc::ENOBUFS | libc::EINTR));
            if got < 0 && !again {
                return;
            }
        }
    }
}

/// Parses an answer.
fn parse(answer: &[u8]) -> io::Result<Option<Link>> {
    let kind = number(answer.get(4..6).unwrap_or_default());
    if kind == u32::try_from(libc::NLMSG_ERROR).ok() {
        let code = number(answer.get(HEADER..HEADER + 4).unwrap_or_default()).unwrap_or_default();
        let code = code.cast_signed().wrapping_neg();
        return if code == libc::ENODEV { Ok(None) } else { Err(io::Error::from_raw_os_error(code)) };
    }
    let Some(body) = answer.get(MESSAGE..).filter(|_| kind == Some(u32::from(libc::RTM_NEWLINK))) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let field =
        |at: usize| number(answer.get(HEADER + at..HEADER + at + 4).unwrap_or_default()).unwrap_or_default();
    let mut link = Link { index: field(4), flags: field(8), ..Link::default() };
    for (kind, value) in attributes(body) {
        match kind {
            IFLA_MTU => link.mtu = number(value),
            IFLA_WIRELESS => link.wireless = true,
            IFLA_CARRIER => link.carrier = number(value) == Some(1),
            IFLA_LINKINFO => info(value, &mut link),
            _ => {}
        }
    }
    Ok(Some(link))
}

fn info(bytes: &[u8], link: &mut Link) {
    let mut data = None;
    for (kind, value) in attributes(bytes) {
        match kind {
            IFLA_INFO_KIND => link.kind = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned(),
            IFLA_INFO_DATA => data = Some(value),
            _ => {}
        }
    }
    let Some(data) = data.filter(|_| link.kind == "tun") else { return };
    let mut tun = Tun::default();
    for (kind, value) in attributes(data) {
        let value = number(value);
        match kind {
            IFLA_TUN_OWNER => tun.owner = value,
            IFLA_TUN_GROUP => tun.group = value,
            IFLA_TUN_TYPE => tun.tap = value == Some(2),
            IFLA_TUN_PERSIST => tun.persist = value == Some(1),
            IFLA_TUN_MULTI_QUEUE => tun.multi_queue = value == Some(1),
            IFLA_TUN_NUM_QUEUES => tun.queues = value.and_then(|n| usize::try_from(n).ok()).unwrap_or(0),
            _ => {}
        }
    }
    link.tun = Some(tun);
}

/// The attributes in a buffer: types and values. A wrong length ends the iteration.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(number(bytes.get(..2)?)?).ok()?;
        let kind = u16::try_from(number(bytes.get(2..4)?)?).ok()?;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & NLA_TYPE_MASK, value))
    })
}

/// A number of one, two or four bytes.
fn number(bytes: &[u8]) -> Option<u32> {
    match *bytes {
        [a] => Some(a.into()),
        [a, b] => Some(u16::from_ne_bytes([a, b]).into()),
        [a, b, c, d] => Some(u32::from_ne_bytes([a, b, c, d])),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_there_and_another_is_not() {
        let netlink = Netlink::open(false).unwrap();
        let lo = netlink.by_name("lo").unwrap().unwrap();
        assert!(lo.index > 0 && lo.mtu.unwrap() >= 1500 && lo.tun.is_none());
        assert_eq!(netlink.by_index(lo.index).unwrap().unwrap().index, lo.index);
        assert_eq!(netlink.by_name("no-such-one").unwrap(), None);
    }

    #[test]
    fn answers_that_are_cut_off_or_wrong_end_where_they_do() {
        assert!(parse(&[]).is_err());
        let cut = [&[5, 0, 4, 0, 9, 0, 0, 0][..], &[99, 0, 4, 0, 1, 1]].concat();
        assert_eq!(attributes(&cut).collect::<Vec<_>>(), [(4, &[9][..])]);
        assert_eq!(attributes(&[1, 0, 4, 0, 9]).count(), 0);
        assert_eq!(attributes(&[0; 64]).count(), 0);
    }
}
