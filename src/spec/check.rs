//! Checks of the options of a machine against each other, independent of the host.

use std::path::PathBuf;

use devices::pci::slots;

use super::disk_check;
use super::identity::Identity;
use super::{
    InterfaceName, MacAddress, MachineUuid, MemBacking, NetLink, NetSpec, PortForward, Spec, SpecError,
    Subnet, UserNet,
};

/// Maximum number of named ports: a virtio console has 31 ports, and one of them is the console (`VIRTCONS_MAX_PORTS` in Linux).
const PORTS: usize = 30;
/// Maximum number of shared folders.
pub(crate) const MOST_SHARES: usize = slots::MOST_SHARES as usize;
/// Every link with IPv6 passes packets of this size (RFC 8200 §5).
pub(super) const IPV6_MTU: u16 = 1280;
/// `sun_path` without its terminating zero (unix(7)).
pub(super) const SOCKET_PATH_MAX: usize = 107;

impl Spec {
    /// Checks that the options fit each other, and gives the machine its UUID and every network interface its MAC address, which are
    /// the same at each start. Every start does this. Call it earlier to know the addresses before the start.
    ///
    /// # Errors
    /// [`SpecError`] for options that contradict each other.
    pub fn settled(mut self) -> Result<Self, SpecError> {
        self.check()?;
        let identity = Identity::new(&self);
        let mac =
            |(id, net): (_, &NetSpec)| net.mac.unwrap_or_else(|| MacAddress::default_in(&identity, &id, net));
        let macs: Vec<_> = self.interfaces().map(mac).collect();
        self.uuid = Some(self.uuid.unwrap_or_else(|| MachineUuid::default_in(&identity)));
        let interfaces = self.net.iter_mut().filter(|net| net.link != NetLink::None);
        for (net, mac) in interfaces.zip(macs) {
            net.mac = Some(mac);
        }
        Ok(self)
    }

    fn check(&self) -> Result<(), SpecError> {
        for (flag, asked, max) in [
            ("--disk", self.disk.len(), slots::DISK.count()),
            ("--net", self.net.len(), slots::NETWORK.count()),
            ("--port", self.port.len(), PORTS),
            ("--share", self.share.len(), MOST_SHARES),
        ] {
            if asked > max {
                return Err(SpecError::TooMany { flag, asked, max });
            }
        }
        disk_check::check(&self.disk)?;
        self.check_ports()?;
        let tags: Vec<_> = self.shares().map(|(tag, _)| tag).collect();
        if let Some((tag, _)) = pair(&tags, |a, b| a == b) {
            return Err(SpecError::TagTwice(tag.clone()));
        }
        let mounts: Vec<_> = self.share.iter().filter_map(|share| share.mount.as_ref()).collect();
        if let Some((mount, _)) = pair(&mounts, |a, b| a == b) {
            return Err(SpecError::MountTwice((*mount).clone()));
        }
        if let Some((mount, what)) = mounts.iter().find_map(|mount| Some((*mount, mount.covers()?))) {
            return Err(SpecError::MountCovers { mount: mount.clone(), what });
        }
        self.check_nets()?;
        if self.merge() && self.mem_backing() == MemBacking::Memfd {
            return Err(SpecError::MergedMemfd);
        }
        match self.balloon {
            Some(balloon) if balloon.mib() >= self.mem().mib() => {
                Err(SpecError::Balloon { balloon, mem: self.mem() })
            }
            _ => Ok(()),
        }
    }

    fn check_nets(&self) -> Result<(), SpecError> {
        if self.net.len() > 1 && self.net.iter().any(|net| net.link == NetLink::None) {
            return Err(SpecError::NoneAndOthers);
        }
        let ids: Vec<_> = self.interfaces().map(|(id, _)| id).collect();
        if let Some((id, _)) = pair(&ids, |a, b| a == b) {
            return Err(SpecError::NetTwice(id.clone()));
        }
        let taps: Vec<_> = self.net.iter().filter_map(tap).collect();
        if let Some((name, _)) = pair(&taps, |a, b| a == b) {
            return Err(SpecError::TapTwice((*name).clone()));
        }
        let small =
            |net: &&NetSpec| net.user_net().is_some() && net.mtu.is_some_and(|mtu| mtu.get() < IPV6_MTU);
        if let Some(mtu) = self.net.iter().find(small).and_then(|net| net.mtu) {
            return Err(SpecError::UserMtu(mtu));
        }
        // Those that are derived are not known yet, and no two of them are the same.
        let macs: Vec<_> = self.net.iter().filter_map(NetSpec::known_mac).collect();
        if let Some((mac, _)) = pair(&macs, |a, b| a == b) {
            return Err(SpecError::MacTwice(*mac));
        }
        let users = self.net.iter().filter_map(NetSpec::user_net);
        let forwards: Vec<PortForward> = users.flat_map(|UserNet { forward, .. }| forward).copied().collect();
        if let Some((one, other)) = pair(&forwards, PortForward::clashes) {
            return Err(SpecError::ForwardTwice { one: *one, other: *other });
        }
        // Unlike machines, the networks of one machine meet: in its guest's routes.
        let users = self.net.iter().filter_map(NetSpec::user_net);
        let subnets: Vec<_> = users.map(|user| user.subnet.unwrap_or_default()).collect();
        if let Some((one, other)) = pair(&subnets, |a, b| a.overlaps(*b)) {
            let free = Subnet::examples().find(|free| !subnets.iter().any(|subnet| subnet.overlaps(*free)));
            return Err(SpecError::SubnetTwice { one: *one, other: *other, free: free.unwrap_or_default() });
        }
        self.check_files_of_nets()
    }

    /// Sockets and files that would be used twice.
    fn check_files_of_nets(&self) -> Result<(), SpecError> {
        let sockets: Vec<_> = self.net.iter().flat_map(|net| sockets(&net.link)).collect();
        if let Some(path) = sockets.iter().find(|path| path.as_os_str().len() > SOCKET_PATH_MAX) {
            return Err(SpecError::SocketPath { path: path.to_path_buf() });
        }
        // What connects to a socket may do so twice; two interfaces may also send to one.
        let own = self.net.iter().filter_map(|net| own_socket(&net.link));
        let own: Vec<_> = own.chain(self.port.iter().filter_map(|port| port.socket.as_ref())).collect();
        let to_itself = self.net.iter().find_map(|net| match &net.link {
            NetLink::Dgram { local, remote } if local == remote => Some(local),
            _ => None,
        });
        if let Some(path) = to_itself.or_else(|| pair(&own, |a, b| a == b).map(|(path, _)| *path)) {
            return Err(SpecError::SocketTwice { path: path.clone() });
        }
        // Standard output has the guest's console.
        if self.net.iter().any(|net| net.pcap.as_ref().is_some_and(|file| file.ends_with("-"))) {
            return Err(SpecError::PcapStandard);
        }
        let files: Vec<_> = self.net.iter().filter_map(|net| net.pcap.as_ref()).collect();
        match pair(&files, |a, b| a == b) {
            Some((file, _)) => Err(SpecError::PcapTwice { path: file.to_path_buf() }),
            None => Ok(()),
        }
    }

    fn check_ports(&self) -> Result<(), SpecError> {
        if let Some((one, _)) = pair(&self.port, |a, b| a.name == b.name) {
            return Err(SpecError::PortTwice(one.name.clone()));
        }
        let sockets: Vec<_> = self.port.iter().filter_map(|port| port.socket.as_ref()).collect();
        if let Some((one, _)) = pair(&sockets, |a, b| a == b) {
            return Err(SpecError::SocketTwice { path: (*one).clone() });
        }
        match sockets.iter().find(|socket| socket.as_os_str().len() > SOCKET_PATH_MAX) {
            Some(socket) => Err(SpecError::SocketPath { path: (*socket).clone() }),
            None => Ok(()),
        }
    }
}

fn tap(net: &NetSpec) -> Option<&InterfaceName> {
    if let NetLink::Tap(name) = &net.link { Some(name) } else { None }
}

/// The sockets of a link.
fn sockets(link: &NetLink) -> impl Iterator<Item = &PathBuf> {
    let [one, other] = match link {
        NetLink::Socket { path, .. } => [Some(path), None],
        NetLink::Dgram { local, remote } => [Some(local), Some(remote)],
        NetLink::User(_) | NetLink::Tap(_) | NetLink::Switch { .. } | NetLink::None => [None, None],
    };
    one.into_iter().chain(other)
}

/// The socket that the machine makes for a link.
fn own_socket(link: &NetLink) -> Option<&PathBuf> {
    match link {
        NetLink::Socket { path, listen: true } | NetLink::Dgram { local: path, .. } => Some(path),
        _ => None,
    }
}

/// The first pair that `clash`es.
fn pair<T>(all: &[T], clash: impl Fn(&T, &T) -> bool) -> Option<(&T, &T)> {
    all.iter().enumerate().find_map(|(at, one)| {
        let mut rest = all.iter().skip(at + 1);
        rest.find(|other| clash(one, other)).map(|other| (one, other))
    })
}

#[cfg(test)]
mod tests {
    use super::super::{DiskSpec, PortSpec};
    use super::*;

    fn disks(paths: &[&str]) -> Result<Spec, SpecError> {
        let disk = paths.iter().map(|text| text.parse().unwrap()).collect();
        Spec { disk, ..Spec::new("k") }.settled()
    }

    fn taps(texts: &[&str]) -> Result<Spec, SpecError> {
        let net = texts.iter().map(|text| NetSpec::parse_tap(text.as_ref()).unwrap()).collect();
        Spec { net, ..Spec::new("k") }.settled()
    }

    fn nets(texts: &[&str]) -> Result<Spec, SpecError> {
        let net = texts.iter().map(|text| text.parse().unwrap()).collect();
        Spec { net, ..Spec::new("k") }.settled()
    }

    fn ports(texts: &[&str]) -> Result<Spec, SpecError> {
        let port: Vec<PortSpec> = texts.iter().map(|text| text.parse().unwrap()).collect();
        Spec { port, ..Spec::new("k") }.settled()
    }

    #[test]
    fn tap_address_name_and_socket_belong_to_one_device() {
        assert!(matches!(taps(&["tap2", "tap2"]), Err(SpecError::TapTwice(_))));
        let error = taps(&["tap2", "x,mac=ba:ad:00:ca:fe:02"]).unwrap_err();
        assert!(error.to_string().contains("have the MAC address ba:ad:00:ca:fe:02"), "{error}");
        assert!(matches!(ports(&["name=a,socket=1", "name=a,socket=2"]), Err(SpecError::PortTwice(_))));
        assert!(matches!(ports(&["name=a,socket=1", "name=b,socket=1"]), Err(SpecError::SocketTwice { .. })));
        let long = format!("name=a,socket={}", "s".repeat(108));
        assert!(matches!(ports(&[&long]), Err(SpecError::SocketPath { .. })));
    }

    #[test]
    fn no_share_covers_what_every_guest_needs() {
        let at = |folder: &str| Spec::new("k").with_share(format!("/d:{folder}").parse().unwrap()).settled();
        for folder in ["/proc", "/proc/sys", "/sys", "/sys/fs/bpf", "/dev", "//dev/", "/dev/shm"] {
            let said = at(folder).unwrap_err().to_string();
            assert!(said.contains("would cover the guest's ") && said.contains("such as `/mnt/"), "{said}");
        }
        for folder in ["/mnt/dev", "/process", "/usr", "/run/user"] {
            assert!(at(folder).is_ok(), "{folder}");
        }
    }

    #[test]
    fn shares_have_tags_of_their_own() {
        let shares = |texts: &[&str]| {
            let share = texts.iter().map(|text| text.parse().unwrap()).collect();
            Spec { share, ..Spec::new("k") }.settled()
        };
        let tags = |spec: Spec| spec.shares().map(|(tag, _)| tag.to_string()).collect::<Vec<_>>();
        assert_eq!(tags(shares(&["a", "a,tag=x", "b"]).unwrap()), ["share0", "x", "share2"]);
        assert!(matches!(shares(&["a,tag=share1", "b"]), Err(SpecError::TagTwice(_))));
        assert!(shares(&["a"; MOST_SHARES]).is_ok());
        let error = shares(&["a"; MOST_SHARES + 1]).unwrap_err();
        assert!(matches!(error, SpecError::TooMany { asked: 25, max: 24, .. }), "{error}");
        let error = shares(&["a:/mnt", "b", "c:/mnt/,ro"]).unwrap_err().to_string();
        assert!(error.starts_with("two shares have the mount `/mnt`"), "{error}");
        assert!(shares(&["a:/mnt", "b:/mnt/b", "c"]).is_ok());
    }

    #[test]
    fn interfaces_do_not_share_what_only_one_can_have() {
        for (texts, said) in [
            (vec!["none", "user"], "`none` stands alone"),
            (vec!["user,id=net1", "user"], "two network interfaces are called net1"),
            (vec!["user,id=a", "tap=x,id=a"], "two network interfaces are called a"),
            (vec!["user,forward=1:2,forward=1:3"], "1:2 and 1:3"),
            (vec!["user,forward=1:2", "user,forward=0.0.0.0:1:3"], "1:2 and 0.0.0.0:1:3"),
            (
                vec!["user", "user"],
                "10.0.2.0/24 and 10.0.2.0/24: give one of them another with `,subnet=10.0.5.0/24`",
            ),
            (vec!["user,subnet=10.0.0.0/16", "user,subnet=10.0.5.0/24"], "`,subnet=10.1.5.0/24`"),
            (vec!["socket=a,listen", "dgram=a:b"], "socket a"),
            (vec!["dgram=a:a"], "socket a"),
            (vec!["user,pcap=-"], "`minivmm capture NAME -w -`"),
            (vec!["user,mtu=1279"], "1280 or more"),
            (vec!["user,pcap=f", "tap=x,pcap=f"], "the file f"),
        ] {
            let error = nets(&texts).expect_err(&texts.join(" ")).to_string();
            assert!(error.contains(said), "{texts:?}: {error}");
        }
        let long = format!("socket={}", "s".repeat(108));
        assert!(matches!(nets(&[&long]), Err(SpecError::SocketPath { .. })));
        let port = Spec::new("k").with_port("name=a,socket=s".parse().unwrap());
        assert!(port.with_net("socket=s,listen".parse().unwrap()).settled().is_err());
        let spec =
            nets(&["socket=a", "socket=a", "user,forward=1:2,forward=1:2/udp,forward=0:2,forward=0:2"]);
        let ids: Vec<_> = spec.unwrap().interfaces().map(|(id, _)| id.to_string()).collect();
        assert_eq!(ids, ["net0", "net1", "net2"]);
        assert!(nets(&["user", "user,subnet=10.0.5.0/24"]).is_ok());
        assert_eq!(nets(&["none"]).unwrap().interfaces().count(), 0);
    }

    #[test]
    fn every_interface_has_an_address_that_stays() {
        let spec = taps(&["tap3", "x", "tap4,mac=02:00:00:00:00:01"]).unwrap();
        let macs: Vec<_> = spec.net.iter().map(|tap| tap.mac.unwrap().to_string()).collect();
        assert_eq!((macs[0].as_str(), macs[2].as_str()), ("ba:ad:00:ca:fe:03", "02:00:00:00:00:01"));
        assert_eq!(spec.clone().settled().unwrap(), spec);
    }

    #[test]
    fn machine_has_so_many_places_and_no_more() {
        let names: Vec<_> = (0..17).map(|n| format!("d{n}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        assert!(disks(&names[..16]).is_ok());
        let error = disks(&names).unwrap_err().to_string();
        assert_eq!(error, "17 times `--disk` were given, and a machine has 16 at most");
        let names: Vec<_> = (0..9).map(|n| format!("tap{n}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        assert!(taps(&names[..8]).is_ok() && taps(&names).is_err());
    }

    #[test]
    fn memory_that_others_map_is_not_merged() {
        let merged = |backing| Spec::new("k").with_merge(true).with_mem_backing(backing).settled();
        let error = merged(MemBacking::Memfd).unwrap_err().to_string();
        assert!(error.contains("`--mem-backing memfd`"), "{error}");
        merged(MemBacking::Anonymous).unwrap();
        Spec::new("k").with_merge(false).with_mem_backing(MemBacking::Memfd).settled().unwrap();
    }

    #[test]
    fn balloon_leaves_the_guest_something() {
        let with = |balloon: &str| Spec::new("k").with_balloon(balloon.parse().unwrap()).settled();
        assert!(with("0").is_ok() && with("511").is_ok());
        let error = with("512").unwrap_err().to_string();
        assert!(error.contains("512 MiB leaves a guest of 512 MiB no memory"), "{error}");
        assert!(
            Spec::default()
                .with_disk(DiskSpec::new("d"))
                .with_balloon("1G".parse().unwrap())
                .settled()
                .is_err()
        );
    }
}
