//! What /sys/class/net says of an interface, which everybody may read, and what follows from it for a refusal.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::error::TapError;
use super::holder;
use super::names::{self, Me};

/// `tun_flags` (linux/if_tun.h).
const IFF_TAP: u32 = 0x0002;
const IFF_MULTI_QUEUE: u32 = 0x0100;
const IFF_PERSIST: u32 = 0x0800;
/// `flags` (linux/if.h).
const IFF_UP: u32 = 0x1;
/// What an interface has when nothing else can be read.
const USUAL_MTU: u16 = 1500;

/// An existing TAP, before it is opened.
#[derive(Debug)]
pub(super) struct Interface {
    name: String,
    path: PathBuf,
    tun_flags: u32,
}

impl Interface {
    /// The TAP called `name` under `interfaces`.
    pub(super) fn find(interfaces: &Path, name: &str) -> Result<Self, TapError> {
        check_name(name)?;
        let path = interfaces.join(name);
        if !path.exists() {
            let (name, others, to) = (name.to_owned(), others(interfaces), Me::now().to_ip());
            return Err(TapError::Missing { name, others, to });
        }
        let Some(tun_flags) = hex(&path.join("tun_flags")) else {
            return Err(not_tap(name, kind(&path)));
        };
        if tun_flags & IFF_TAP == 0 {
            return Err(not_tap(name, "a TUN interface, which carries IP packets and no Ethernet frames"));
        }
        let interface = Interface { name: name.to_owned(), path, tun_flags };
        // One that does not persist is there because somebody holds it, and goes when they do.
        if tun_flags & IFF_PERSIST == 0 { Err(interface.busy(None::<&fs::File>)) } else { Ok(interface) }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn multi_queue(&self) -> bool {
        self.tun_flags & IFF_MULTI_QUEUE != 0
    }

    /// Whether somebody has brought it up.
    pub(super) fn is_up(&self) -> bool {
        hex(&self.path.join("flags")).is_some_and(|flags| flags & IFF_UP != 0)
    }

    pub(super) fn mtu(&self) -> u16 {
        number(&self.path.join("mtu")).unwrap_or(USUAL_MTU)
    }

    /// Queues that are attached, ours and those of others.
    pub(super) fn queues_in_use(&self) -> usize {
        let Ok(queues) = fs::read_dir(self.path.join("queues")) else { return 0 };
        queues.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("tx-")).count()
    }

    /// In use by somebody, who is not `own`.
    pub(super) fn busy(&self, own: Option<&impl AsRawFd>) -> TapError {
        TapError::Busy { name: self.name.clone(), holder: holder::find(Path::new("/proc"), &self.name, own) }
    }

    /// The interface of another namespace has this name.
    pub(super) fn other_namespace(&self) -> TapError {
        TapError::Namespace { name: self.name.clone() }
    }

    /// What the kernel's refusal to attach means.
    pub(super) fn refused(&self, error: io::Error) -> TapError {
        match error.raw_os_error() {
            Some(libc::EBUSY) => self.busy(None::<&fs::File>),
            Some(libc::EPERM) => {
                // Unset is -1, which is no number.
                let (owner, group) = (number(&self.path.join("owner")), number(&self.path.join("group")));
                not_yours(&self.name, owner, group, &Me::now()).unwrap_or_else(|| self.other_namespace())
            }
            _ => TapError::Host { name: self.name.clone(), doing: "attach to a TAP", source: error },
        }
    }
}

/// The kernel wants the owner, if one is set, and a member of the group, if one is set. `None`: it is yours.
pub(super) fn not_yours(name: &str, owner: Option<u32>, group: Option<u32>, me: &Me) -> Option<TapError> {
    let wrong_user = owner.filter(|owner| *owner != me.uid);
    let wrong_group = group.filter(|group| !me.groups.contains(group));
    let you = names::user(me.uid);
    let cure = match (wrong_user, wrong_group) {
        (None, None) => return None,
        (None, Some(group)) => {
            format!("sudo usermod -aG {} {you}, then log in again", names::group(group))
        }
        (Some(_), _) => format!(
            "create it anew as yours: sudo ip link del {name} && sudo ip tuntap add mode tap dev {name} {} && sudo ip link set {name} \
             up, and put it back on its bridge or switch",
            me.to_ip()
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

/// What the kernel takes as a name (`dev_valid_name`), less `%`, which it would replace by a number.
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
    TapError::NotTap { name: name.to_owned(), kind, to: Me::now().to_ip(), bridge }
}

const BRIDGE: &str = "a bridge";

fn kind(path: &Path) -> &'static str {
    const LOOPBACK: u32 = 772;
    if path.join("bridge").exists() {
        BRIDGE
    } else if path.join("wireless").exists() {
        "a wireless interface"
    } else if path.join("macvtap").exists() {
        "a macvtap interface"
    } else if number(&path.join("type")) == Some(LOOPBACK) {
        "the loopback interface"
    } else {
        "another kind of interface"
    }
}

/// The TAPs that there are, for somebody who mistyped one.
fn others(interfaces: &Path) -> String {
    let entries = fs::read_dir(interfaces).into_iter().flatten().flatten();
    let mut taps: Vec<String> = entries
        .filter(|entry| hex(&entry.path().join("tun_flags")).is_some_and(|flags| flags & IFF_TAP != 0))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
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
        let me = Me { uid: 4_000_001, groups: vec![4_000_002] };
        let cure = |owner, group| not_yours("tap2", owner, group, &me).map(|error| error.to_string());
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
