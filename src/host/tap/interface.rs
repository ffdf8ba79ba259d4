//! Queries the kernel about an interface, which any user may do, and explains refusals. /sys/class/net shows
//! the network namespace in which it was mounted, so it is used only where an old kernel reports too little.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use super::SYS_CLASS_NET;
use super::error::TapError;
use super::holder;
use super::names::{self, Credentials};
use super::netlink::{Link, Netlink, Tun};
use crate::host::soon::{MOMENT, patience_for};

/// `tun_flags` (linux/if_tun.h).
const IFF_TAP: u32 = 0x0002;
const IFF_MULTI_QUEUE: u32 = 0x0100;
const IFF_PERSIST: u32 = 0x0800;
/// `flags` (linux/if.h).
pub(super) const IFF_UP: u32 = 0x1;
const IFF_LOOPBACK: u32 = 0x8;
/// The default MTU.
pub(super) const DEFAULT_MTU: u16 = 1500;

/// An existing TAP, before it is opened.
#[derive(Debug)]
pub(super) struct Interface {
    name: String,
    netlink: Netlink,
    link: Link,
    tun: Tun,
}

impl Interface {
    /// The TAP called `name` in this process's network namespace.
    pub(super) fn find(name: &str) -> Result<Self, TapError> {
        check_name(name)?;
        let host = |source| TapError::Host { name: name.to_owned(), doing: "ask the kernel for it", source };
        let netlink = Netlink::open(false).map_err(host)?;
        let Some(link) = netlink.by_name(name).map_err(host)? else {
            let sys = Path::new(SYS_CLASS_NET);
            let name = name.to_owned();
            return Err(if sys.join(&name).exists() {
                TapError::Namespace { name }
            } else {
                TapError::Missing {
                    name,
                    other_taps: other_taps(sys, &netlink),
                    to: Credentials::current().ip_owner_argument(),
                }
            });
        };
        let Some(tun) = link.tun.clone().or_else(|| old_kernel(&Path::new(SYS_CLASS_NET).join(name), &link))
        else {
            return Err(not_tap(name, kind(&link)));
        };
        if !tun.tap {
            return Err(not_tap(name, "a TUN interface, which carries IP packets and no Ethernet frames"));
        }
        let interface = Interface { name: name.to_owned(), netlink, link, tun };
        // A TAP that is not persistent exists only while another process has it open.
        if interface.tun.persist { Ok(interface) } else { Err(interface.busy(None::<&fs::File>)) }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn index(&self) -> u32 {
        self.link.index
    }

    pub(super) fn multi_queue(&self) -> bool {
        self.tun.multi_queue
    }

    /// Attached queues, of this and of other processes.
    pub(super) fn queues_in_use(&self) -> usize {
        let now = self.netlink.by_index(self.link.index).ok().flatten();
        if let Some(tun) = now.and_then(|link| link.tun) {
            return tun.queues;
        }
        let Ok(queues) = fs::read_dir(Path::new(SYS_CLASS_NET).join(&self.name).join("queues")) else {
            return 0;
        };
        queues.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("tx-")).count()
    }

    /// The error for a TAP that another process than `own` uses.
    pub(super) fn busy(&self, own: Option<&impl AsRawFd>) -> TapError {
        TapError::Busy { name: self.name.clone(), holder: holder::find(Path::new("/proc"), &self.name, own) }
    }

    /// How long to wait for it. That this process has one of its name says nothing: it may be of another namespace.
    pub(super) fn patience(&self) -> Duration {
        let holder = holder::find(Path::new("/proc"), &self.name, None::<&fs::File>);
        holder.filter(|holder| holder.pid != std::process::id()).map_or(MOMENT, |it| patience_for(it.pid))
    }

    /// The error for an interface of another namespace with this name.
    pub(super) fn other_namespace(&self) -> TapError {
        TapError::Namespace { name: self.name.clone() }
    }

    /// The error for a refused attach.
    pub(super) fn refused(&self, error: io::Error) -> TapError {
        let host =
            |error| TapError::Host { name: self.name.clone(), doing: "attach to a TAP", source: error };
        match error.raw_os_error() {
            Some(libc::EBUSY) => self.busy(None::<&fs::File>),
            Some(libc::EPERM) => {
                not_yours(&self.name, self.tun.owner, self.tun.group, &Credentials::current())
                    .unwrap_or_else(|| host(error))
            }
            _ => host(error),
        }
    }
}

/// A TAP's attributes from /sys, if it is the same interface: before Linux 4.18 netlink does not report them.
fn old_kernel(path: &Path, link: &Link) -> Option<Tun> {
    let flags = hex(&path.join("tun_flags")).filter(|_| number(&path.join("ifindex")) == Some(link.index))?;
    Some(Tun {
        tap: flags & IFF_TAP != 0,
        persist: flags & IFF_PERSIST != 0,
        multi_queue: flags & IFF_MULTI_QUEUE != 0,
        // Unset is -1, which does not parse.
        owner: number(&path.join("owner")),
        group: number(&path.join("group")),
        queues: 0,
    })
}

/// The kernel requires the owner, if one is set, and membership in the group, if one is set. `None` if both
/// match.
pub(super) fn not_yours(
    name: &str,
    owner: Option<u32>,
    group: Option<u32>,
    credentials: &Credentials,
) -> Option<TapError> {
    let wrong_user = owner.filter(|owner| *owner != credentials.uid);
    let wrong_group = group.filter(|group| !credentials.groups.contains(group));
    let you = names::user(credentials.uid);
    let cure = match (wrong_user, wrong_group) {
        (None, None) => return None,
        (None, Some(group)) => {
            format!("sudo usermod -aG {} {you}, then log in again", names::group(group))
        }
        (Some(_), _) => format!(
            "create it anew as yours: sudo ip link del {name} && sudo ip tuntap add mode tap dev {name} {} && sudo ip link set {name} \
             up, and put it back on its bridge or switch",
            credentials.ip_owner_argument()
        ),
    };
    let owner = match (owner, group) {
        (Some(user), Some(group)) => {
            format!("user {} in group {}", names::user(user), names::group(group))
        }
        (Some(user), None) => format!("user {}", names::user(user)),
        (None, group) => format!("group {}", names::group(group.unwrap_or_default())),
    };
    Some(TapError::NotYours { name: name.to_owned(), owner, you, cure })
}

/// Names that the kernel accepts (`dev_valid_name`), without `%`, which it would replace by a number.
fn check_name(name: &str) -> Result<(), TapError> {
    let fits = (1..libc::IFNAMSIZ).contains(&name.len()) && name != "." && name != "..";
    let plain = name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'));
    if fits && plain { Ok(()) } else { Err(TapError::Name(name.to_owned())) }
}

fn not_tap(name: &str, kind: &'static str) -> TapError {
    let bridge = match kind {
        BRIDGE => format!(" && sudo ip link set tap0 master {name}"),
        _ => String::new(),
    };
    TapError::NotTap { name: name.to_owned(), kind, to: Credentials::current().ip_owner_argument(), bridge }
}

const BRIDGE: &str = "a bridge";
const BRIDGE_DRIVER: &str = "bridge";

fn kind(link: &Link) -> &'static str {
    match link.kind.as_str() {
        BRIDGE_DRIVER => BRIDGE,
        "macvtap" => "a macvtap interface",
        "openvswitch" => "an Open vSwitch bridge",
        _ if link.wireless => "a wireless interface",
        _ if link.flags & IFF_LOOPBACK != 0 => "the loopback interface",
        _ => "another kind of interface",
    }
}

/// The existing TAPs, as a hint after a typing mistake: names from /sys that the kernel confirms for this
/// namespace.
fn other_taps(interfaces: &Path, netlink: &Netlink) -> String {
    let entries = fs::read_dir(interfaces).into_iter().flatten().flatten();
    let is_tap = |name: &String| {
        let link = netlink.by_name(name).ok().flatten();
        link.and_then(|link| link.tun).is_some_and(|tun| tun.tap)
    };
    let names = entries.filter(|entry| entry.path().join("tun_flags").exists());
    let mut taps: Vec<String> =
        names.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(is_tap).collect();
    taps.sort();
    taps.truncate(8);
    if taps.is_empty() { String::new() } else { format!(" (there is {})", taps.join(", ")) }
}

fn number<T: FromStr>(path: &Path) -> Option<T> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn hex(path: &Path) -> Option<u32> {
    u32::from_str_radix(fs::read_to_string(path).ok()?.trim().trim_start_matches("0x"), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_the_folder_or_make_a_new_interface_are_refused() {
        for bad in ["", ".", "..", "a/b", "tap%d", "tap 2", "tap:1", "sixteen-letters0", "täp"] {
            assert!(matches!(check_name(bad), Err(TapError::Name(_))), "{bad}");
        }
        for good in ["tap2", "fifteen-letters", "vm.1", "a_b"] {
            check_name(good).unwrap();
        }
    }

    #[test]
    fn whom_a_tap_belongs_to_decides_what_mends_it() {
        let credentials = Credentials { uid: 4_000_001, groups: vec![4_000_002] };
        let cure =
            |owner, group| not_yours("tap2", owner, group, &credentials).map(|error| error.to_string());
        assert_eq!(cure(None, None), None);
        assert_eq!(cure(Some(4_000_001), Some(4_000_002)), None);
        let group = cure(None, Some(4_000_003)).unwrap();
        assert!(
            group.contains("belongs to group 4000003, and you are 4000001: sudo usermod -aG 4000003 4000001"),
            "{group}"
        );
        let user = cure(Some(0), Some(4_000_002)).unwrap();
        assert!(user.contains("belongs to user root in group 4000002"), "{user}");
        assert!(
            user.contains("sudo ip link del tap2 && sudo ip tuntap add mode tap dev tap2 user 4000001"),
            "{user}"
        );
    }
}
