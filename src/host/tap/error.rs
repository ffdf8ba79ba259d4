//! Why a TAP cannot be used. Each message ends with the cure.

use std::io;

use super::holder::TapHolder;

/// Why a TAP cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// Not a valid interface name.
    #[error(
        "`{0}` cannot be the name of a network interface: a name has 1 to 15 letters, digits, dots or dashes"
    )]
    Name(String),
    /// There is no such interface.
    #[error(
        "there is no network interface {name}{other_taps}; create it: sudo ip tuntap add mode tap dev {name} {to} && sudo ip \
         link set {name} up (and to put it on an Open vSwitch: sudo ovs-vsctl add-port SWITCH {name})"
    )]
    Missing {
        /// The name.
        name: String,
        /// The existing TAPs, in words.
        other_taps: String,
        /// `user ana` or `group kvm`.
        to: String,
    },
    /// The interface is of another kind.
    #[error(
        "{name} is {kind}, not a TAP; create one: sudo ip tuntap add mode tap dev tap0 {to} && sudo ip link set tap0 up{bridge}"
    )]
    NotTap {
        /// The name.
        name: String,
        /// Its kind.
        kind: &'static str,
        /// `user ana` or `group kvm`.
        to: String,
        /// How to connect a TAP to it, if it is a bridge.
        bridge: String,
    },
    /// It belongs to another user or group.
    #[error("{name} belongs to {owner}, and you are {you}: {cure}")]
    NotYours {
        /// The interface.
        name: String,
        /// The owner, in words.
        owner: String,
        /// This process's user.
        you: String,
        /// The cure.
        cure: String,
    },
    /// Another process uses it.
    #[error("{name} is in use by {}; stop that first, or give this machine a TAP of its own", holder_words(name, holder.as_ref()))]
    Busy {
        /// The interface.
        name: String,
        /// The process, if known.
        holder: Option<TapHolder>,
    },
    /// It is an interface of another network namespace.
    #[error(
        "there is no network interface {name} in this process's network namespace, though /sys/class/net, which shows another \
         one, has it; start the machine in that one (`ip netns exec`, `nsenter --net`), or create the TAP in this one"
    )]
    Namespace {
        /// The interface.
        name: String,
    },
    /// It was removed while the machine used it.
    #[error(
        "{name} was removed while the machine used it; create it again, if it is not there (sudo ip tuntap add mode tap dev {name} \
         {to} && sudo ip link set {name} up), then start the machine again"
    )]
    Removed {
        /// The interface.
        name: String,
        /// `user ana` or `group kvm`.
        to: String,
    },
    /// The TUN driver is missing.
    #[error("/dev/net/tun is missing; load its driver: sudo modprobe tun")]
    DriverMissing,
    /// This user may not use the TUN driver.
    #[error(
        "/dev/net/tun is not open to you; on Debian everybody may use it: sudo chmod 0666 /dev/net/tun (until the next boot; `minivmm doctor` has a rule that lasts)"
    )]
    DriverDenied,
    /// Any other error of the TUN driver.
    #[error("/dev/net/tun cannot be opened: {0}")]
    Driver(#[source] io::Error),
    /// Any other error.
    #[error("cannot {doing}: {name}: {source}")]
    Host {
        /// The interface.
        name: String,
        /// The operation.
        doing: &'static str,
        /// The host's error.
        source: io::Error,
    },
}

fn holder_words(name: &str, holder: Option<&TapHolder>) -> String {
    match holder {
        Some(TapHolder { pid, program }) => format!("{program} (process {pid})"),
        None => format!(
            "a process that you may not look into (sudo grep -ls 'iff:.{name}$' /proc/[0-9]*/fdinfo/* shows it)"
        ),
    }
}
