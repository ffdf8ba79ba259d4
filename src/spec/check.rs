//! Checks of the options of a machine against each other, independent of the host.

use devices::pci::slots;

use super::{MacAddress, Spec, SpecError, TapSpec};

/// Maximum number of named ports: a virtio console has 31 ports, and one of them is the console (`VIRTCONS_MAX_PORTS` in Linux).
const PORTS: usize = 30;
/// `sun_path` without its terminating zero (unix(7)).
pub(super) const SOCKET_PATH_MAX: usize = 107;

impl Spec {
    /// Checks that the options fit each other, and gives every network interface its MAC address, which is the same at each
    /// start. Every start does this. Call it earlier to know the addresses before the start.
    ///
    /// # Errors
    /// [`SpecError`] for options that contradict each other.
    pub fn settled(mut self) -> Result<Self, SpecError> {
        self.check()?;
        let macs: Vec<_> = self
            .tap
            .iter()
            .map(|tap| tap.mac.unwrap_or_else(|| MacAddress::default_in(&self, &tap.name)))
            .collect();
        for (tap, mac) in self.tap.iter_mut().zip(macs) {
            tap.mac = Some(mac);
        }
        Ok(self)
    }

    fn check(&self) -> Result<(), SpecError> {
        for (flag, asked, max) in [
            ("--disk", self.disk.len(), slots::DISK.count()),
            ("--tap", self.tap.len(), slots::NETWORK.count()),
            ("--port", self.port.len(), PORTS),
        ] {
            if asked > max {
                return Err(SpecError::TooMany { flag, asked, max });
            }
        }
        if let Some((one, _)) = pair(&self.disk, |a, b| a.path == b.path && !(a.read_only && b.read_only)) {
            return Err(SpecError::DiskTwice { path: one.path.clone() });
        }
        if let Some((one, _)) = pair(&self.tap, |a, b| a.name == b.name) {
            return Err(SpecError::TapTwice(one.name.clone()));
        }
        // Those that are derived are not known yet, and no two of them are the same.
        let mut macs: Vec<_> = self.tap.iter().filter_map(TapSpec::known_mac).collect();
        macs.sort_unstable_by_key(|mac| mac.bytes());
        if let Some(&[mac, _]) =
            macs.windows(2).find_map(|two| two.first_chunk::<2>().filter(|[a, b]| a == b))
        {
            return Err(SpecError::MacTwice(mac));
        }
        self.check_ports()?;
        match self.balloon {
            Some(balloon) if balloon.mib() >= self.mem().mib() => {
                Err(SpecError::Balloon { balloon, mem: self.mem() })
            }
            _ => Ok(()),
        }
    }

    fn check_ports(&self) -> Result<(), SpecError> {
        if let Some((one, _)) = pair(&self.port, |a, b| a.name == b.name) {
            return Err(SpecError::PortTwice(one.name.clone()));
        }
        if let Some((one, _)) = pair(&self.port, |a, b| a.socket == b.socket) {
            return Err(SpecError::SocketTwice { path: one.socket.clone() });
        }
        match self.port.iter().find(|port| port.socket.as_os_str().len() > SOCKET_PATH_MAX) {
            Some(port) => Err(SpecError::SocketPath { path: port.socket.clone() }),
            None => Ok(()),
        }
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
        let tap = texts.iter().map(|text| text.parse().unwrap()).collect();
        Spec { tap, ..Spec::new("k") }.settled()
    }

    fn ports(texts: &[&str]) -> Result<Spec, SpecError> {
        let port: Vec<PortSpec> = texts.iter().map(|text| text.parse().unwrap()).collect();
        Spec { port, ..Spec::new("k") }.settled()
    }

    #[test]
    fn image_may_be_there_twice_only_if_nobody_writes() {
        assert!(matches!(disks(&["a", "b", "a"]), Err(SpecError::DiskTwice { path }) if path.ends_with("a")));
        assert!(matches!(disks(&["a", "a,ro"]), Err(SpecError::DiskTwice { .. })));
        assert!(disks(&["a,ro", "a,ro", "b"]).is_ok());
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
    fn every_interface_has_an_address_that_stays() {
        let spec = taps(&["tap3", "x", "tap4,mac=02:00:00:00:00:01"]).unwrap();
        let macs: Vec<_> = spec.tap.iter().map(|tap| tap.mac.unwrap().to_string()).collect();
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
