//! Why a TAP cannot be had. Each message ends with what mends it.

use std::io;

use super::holder::TapHolder;

/// Why a TAP cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// No name that an interface can have.
    #[error(
        "`{0}` cannot be the name of a network interface: a name has 1 to 15 letters, digits, dots or dashes"
    )]
    Name(String),
    /// No such interface.
    #[error(
        "there is no network interface {name}{others}; create it: sudo ip tuntap add mode tap dev {name} {to} && sudo ip \
         link set {name} up (and to put it on an Open vSwitch: sudo ovs-vsctl add-port SWITCH {name})"
    )]
    Missing {
        /// What was asked for.
        name: String,
        /// Which TAPs there are, in words.
        others: String,
        /// `user ana` or `group kvm`.
        to: String,
    },
    /// An interface of another kind.
    #[error(
        "{name} is {kind}, not a TAP; create one: sudo ip tuntap add mode tap dev tap0 {to} && sudo ip link set tap0 up{bridge}"
    )]
    NotTap {
        /// What was asked for.
        name: String,
        /// What it is.
        kind: &'static str,
        /// `user ana` or `group kvm`.
        to: String,
        /// How to connect a TAP to it, where it is something that takes one.
        bridge: String,
    },
    /// It belongs to another user or group.
    #[error("{name} belongs to {owner}, and you are {you}: {cure}")]
    NotYours {
        /// The interface.
        name: String,
        /// Whom it belongs to, in words.
        owner: String,
        /// Who asked.
        you: String,
        /// What mends it.
        cure: String,
    },
    /// Somebody has it.
    #[error("{name} is in use by {}; stop that first, or give this machine a TAP of its own", holder_words(name, holder.as_ref()))]
    Busy {
        /// The interface.
        name: String,
        /// Who, as far as can be seen.
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
    /// It was removed while the machine had it.
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
    /// The TUN driver is not there.
    #[error("/dev/net/tun is missing; load its driver: sudo modprobe tun")]
    DriverMissing,
    /// The TUN driver may not be used.
    #[error(
        "/dev/net/tun is not open to you; on Debian everybody may use it: sudo chmod 0666 /dev/net/tun (until the next boot; `minivmm doctor` has a rule that lasts)"
    )]
    DriverDenied,
    /// The TUN driver cannot be used for another reason.
    #[error("/dev/net/tun cannot be opened: {0}")]
    Driver(#[source] io::Error),
    /// Something else, in the host's words.
    #[error("cannot {doing}: {name}: {source}")]
    Host {
        /// The interface.
        name: String,
        /// What failed.
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
