//! Who has which address on a wire that several guests share.
//!
//! An address with a lease is its holder's alone. Any other is of the guest that used it first: another one that claims it is
//! believed only when the first, asked at its Ethernet address, is silent. So a guest cannot draw another's packets to
//! itself. A guest that also forges Ethernet addresses can be stopped only by the switch.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use smoltcp::wire::EthernetAddress;

use crate::leases::Leases;
use crate::link;
use crate::packet::Drop;
use crate::shares::GuestId;

/// Guests that are known at once; [`GuestId::FIRST`] is nobody's.
pub(crate) const GUESTS: u16 = 512;
/// Addresses of one guest. IPv6 has a temporary one every day.
const ADDRESSES: usize = 16;
/// A guest that was silent for so long may be forgotten for the sake of another.
const IDLE: Duration = Duration::from_secs(60);
/// An address is given to another guest when it was not used for so long.
const IN_USE: Duration = Duration::from_secs(300);
/// The first owner of an address has so long to say that it is there.
const CHALLENGE: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Station {
    mac: EthernetAddress,
    addresses: Vec<IpAddr>,
    heard: Instant,
}

#[derive(Debug)]
struct Neighbour {
    guest: GuestId,
    heard: Instant,
    /// Another guest claimed the address, and this one was asked.
    challenged: Option<Instant>,
}

/// Whether a guest has the address that it uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It does; `new`: this was not known.
    Holds { guest: GuestId, new: bool },
    /// Not as far as is known; the owner is asked whether it is still there.
    Challenges(EthernetAddress),
    /// It does not.
    Refused(Drop),
}

/// All guests and their addresses.
#[derive(Debug)]
pub(crate) struct Neighbours {
    /// By number, of which the first is not used.
    stations: Vec<Option<Station>>,
    free: Vec<u16>,
    by_mac: HashMap<EthernetAddress, GuestId>,
    by_address: HashMap<IpAddr, Neighbour>,
}

impl Neighbours {
    /// Nobody.
    pub(crate) fn new() -> Self {
        Neighbours {
            stations: vec![None],
            free: Vec::new(),
            by_mac: HashMap::new(),
            by_address: HashMap::new(),
        }
    }

    /// Where packets to `address` go.
    pub(crate) fn find(&self, address: IpAddr) -> Option<EthernetAddress> {
        self.mac(self.by_address.get(&address)?.guest)
    }

    /// Whose account conversations with `address` are on.
    pub(crate) fn guest(&self, address: IpAddr) -> GuestId {
        self.by_address.get(&address).map_or(GuestId::FIRST, |neighbour| neighbour.guest)
    }

    /// Whether a guest other than `mac` has used `address` of late.
    pub(crate) fn is_used(&self, address: Ipv4Addr, mac: EthernetAddress, now: Instant) -> bool {
        let neighbour = self.by_address.get(&IpAddr::V4(address));
        neighbour.is_some_and(|neighbour| {
            now.saturating_duration_since(neighbour.heard) < IN_USE && self.mac(neighbour.guest) != Some(mac)
        })
    }

    /// An IPv4 address of the guest with an Ethernet address.
    pub(crate) fn address4(&self, mac: EthernetAddress) -> Option<IpAddr> {
        let guest = self.by_mac.get(&mac)?;
        let station = self.stations.get(usize::from(guest.0))?.as_ref()?;
        station.addresses.iter().copied().find(IpAddr::is_ipv4)
    }

    fn mac(&self, guest: GuestId) -> Option<EthernetAddress> {
        Some(self.stations.get(usize::from(guest.0))?.as_ref()?.mac)
    }

    /// A packet from `address` came from `mac`.
    pub(crate) fn claim(
        &mut self,
        mac: EthernetAddress,
        address: IpAddr,
        leases: &Leases,
        now: Instant,
    ) -> Claim {
        let holder = match address {
            IpAddr::V4(address) => leases.holder(address, now),
            IpAddr::V6(_) => None,
        };
        if holder.is_some_and(|holder| holder != mac) {
            return Claim::Refused(Drop::Spoofed);
        }
        let certain = holder.is_some() || is_made_of(address, mac);
        if let Some(neighbour) = self.by_address.get_mut(&address) {
            let station = self.stations.get_mut(usize::from(neighbour.guest.0)).and_then(Option::as_mut);
            match station {
                Some(station) if station.mac == mac => {
                    (station.heard, neighbour.heard, neighbour.challenged) = (now, now, None);
                    return Claim::Holds { guest: neighbour.guest, new: false };
                }
                Some(owner) if !certain => match neighbour.challenged {
                    None => {
                        neighbour.challenged = Some(now);
                        return Claim::Challenges(owner.mac);
                    }
                    Some(since) if now.saturating_duration_since(since) < CHALLENGE => {
                        return Claim::Refused(Drop::Spoofed);
                    }
                    Some(_) => {}
                },
                _ => {}
            }
            self.forget(address);
        }
        match self.station(mac, leases, now) {
            Some(guest) => {
                self.learn(guest, address, now);
                Claim::Holds { guest, new: true }
            }
            None => Claim::Refused(Drop::Full),
        }
    }

    /// Nobody has `address` any more.
    pub(crate) fn forget(&mut self, address: IpAddr) {
        let Some(neighbour) = self.by_address.remove(&address) else { return };
        if let Some(Some(station)) = self.stations.get_mut(usize::from(neighbour.guest.0)) {
            station.addresses.retain(|other| *other != address);
        }
    }

    fn learn(&mut self, guest: GuestId, address: IpAddr, now: Instant) {
        let Some(Some(station)) = self.stations.get(usize::from(guest.0)) else { return };
        if station.addresses.len() >= ADDRESSES {
            let heard = |address: &&IpAddr| self.by_address.get(*address).map(|neighbour| neighbour.heard);
            if let Some(oldest) = station.addresses.iter().min_by_key(heard).copied() {
                self.forget(oldest);
            }
        }
        if let Some(Some(station)) = self.stations.get_mut(usize::from(guest.0)) {
            station.addresses.push(address);
            self.by_address.insert(address, Neighbour { guest, heard: now, challenged: None });
        }
    }

    /// The guest with an Ethernet address. `None`: there are too many.
    fn station(&mut self, mac: EthernetAddress, leases: &Leases, now: Instant) -> Option<GuestId> {
        if let Some(guest) = self.by_mac.get(&mac).copied() {
            if let Some(Some(station)) = self.stations.get_mut(usize::from(guest.0)) {
                station.heard = now;
            }
            return Some(guest);
        }
        if self.free.is_empty() && self.stations.len() >= GUESTS.into() {
            self.evict(leases.of(mac).is_some(), leases, now)?;
        }
        let station = Some(Station { mac, addresses: Vec::new(), heard: now });
        let number = match self.free.pop() {
            Some(number) => {
                *self.stations.get_mut(usize::from(number))? = station;
                number
            }
            None => {
                self.stations.push(station);
                u16::try_from(self.stations.len() - 1).ok()?
            }
        };
        self.by_mac.insert(mac, GuestId(number));
        Some(GuestId(number))
    }

    /// Forgets the guest that was silent for the longest. For one with a lease, one without has to go.
    fn evict(&mut self, leased: bool, leases: &Leases, now: Instant) -> Option<()> {
        let goes = |station: &Station| {
            now.saturating_duration_since(station.heard) >= IDLE
                || (leased && leases.of(station.mac).is_none())
        };
        let oldest = self.stations.iter().flatten().filter(|station| goes(station));
        let mac = oldest.min_by_key(|station| station.heard)?.mac;
        let guest = self.by_mac.remove(&mac)?;
        let station = self.stations.get_mut(usize::from(guest.0))?.take()?;
        for address in station.addresses {
            self.by_address.remove(&address);
        }
        self.free.push(guest.0);
        Some(())
    }
}

/// Whether an address is the one that a guest makes of its Ethernet address (RFC 4291, appendix A).
fn is_made_of(address: IpAddr, mac: EthernetAddress) -> bool {
    let half = |address: std::net::Ipv6Addr| address.to_bits() & u128::from(u64::MAX);
    matches!(address, IpAddr::V6(address) if half(address) == half(link::link_local(mac.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Ipv4Subnet;

    fn mac(number: u16) -> EthernetAddress {
        let [high, low] = number.to_be_bytes();
        EthernetAddress([2, 0, 0, 0, high, low])
    }

    fn no_leases() -> Leases {
        Leases::new(&Ipv4Subnet::default(), 100)
    }

    fn holds(neighbours: &mut Neighbours, guest: u16, address: &str, leases: &Leases, now: Instant) -> bool {
        let claim = neighbours.claim(mac(guest), address.parse().unwrap(), leases, now);
        matches!(claim, Claim::Holds { .. })
    }

    #[test]
    fn address_is_of_the_first_that_used_it_while_it_answers() {
        let (mut neighbours, leases, mut now) = (Neighbours::new(), no_leases(), Instant::now());
        let address: IpAddr = "10.0.2.77".parse().unwrap();
        assert!(holds(&mut neighbours, 1, "10.0.2.77", &leases, now));
        assert_eq!(neighbours.claim(mac(2), address, &leases, now), Claim::Challenges(mac(1)));
        // It answers.
        assert!(holds(&mut neighbours, 1, "10.0.2.77", &leases, now));
        now += CHALLENGE * 2;
        assert_eq!(neighbours.claim(mac(2), address, &leases, now), Claim::Challenges(mac(1)));
        assert!(!holds(&mut neighbours, 2, "10.0.2.77", &leases, now));
        assert_eq!(neighbours.find(address), Some(mac(1)));
        // It does not.
        now += CHALLENGE;
        assert!(holds(&mut neighbours, 2, "10.0.2.77", &leases, now));
        assert_eq!(neighbours.find(address), Some(mac(2)));
    }

    #[test]
    fn address_with_a_lease_is_its_holders_and_one_made_of_a_mac_address_is_that_ones() {
        let (mut neighbours, mut leases, mut now) = (Neighbours::new(), no_leases(), Instant::now());
        let leased = leases.offer(mac(1), None, |_| false, now).unwrap();
        assert!(leases.take(mac(1), leased, |_| false, now));
        for _ in 0..3 {
            let claim = neighbours.claim(mac(2), leased.into(), &leases, now);
            assert_eq!(claim, Claim::Refused(Drop::Spoofed));
            now += CHALLENGE * 2;
        }
        assert!(holds(&mut neighbours, 1, &leased.to_string(), &leases, now));
        let own = link::link_local(mac(1).0).to_string();
        assert!(holds(&mut neighbours, 2, &own, &leases, now));
        assert!(holds(&mut neighbours, 1, &own, &leases, now));
        assert!(!holds(&mut neighbours, 2, &own, &leases, now));
    }

    #[test]
    fn guests_and_their_addresses_are_bounded_and_only_silent_ones_are_forgotten() {
        let (mut neighbours, mut leases, mut now) = (Neighbours::new(), no_leases(), Instant::now());
        for host in 0..100 {
            assert!(holds(&mut neighbours, 1, &format!("fd62:6164:2::1:{host}"), &leases, now));
            now += Duration::from_millis(1);
        }
        assert_eq!(neighbours.by_address.len(), ADDRESSES);
        assert_eq!(neighbours.find("fd62:6164:2::1:99".parse().unwrap()), Some(mac(1)));
        let flood = |neighbours: &mut Neighbours, leases: &Leases, now| {
            (100..2000)
                .filter(|guest| {
                    holds(neighbours, *guest, &format!("10.1.{}.{}", guest / 250, guest % 250), leases, now)
                })
                .count()
        };
        assert_eq!(flood(&mut neighbours, &leases, now), usize::from(GUESTS) - 2);
        assert!(!holds(&mut neighbours, 2, "10.0.2.50", &leases, now));
        // A guest with a lease comes in all the same.
        let leased = leases.offer(mac(3), None, |_| false, now).unwrap();
        assert!(leases.take(mac(3), leased, |_| false, now));
        assert!(holds(&mut neighbours, 3, &leased.to_string(), &leases, now));
        now += IDLE;
        assert!(holds(&mut neighbours, 2, "10.0.2.50", &leases, now));
        let tables = (neighbours.by_mac.len(), neighbours.stations.len());
        assert_eq!(tables, (usize::from(GUESTS) - 1, usize::from(GUESTS)));
        let known =
            neighbours.stations.iter().flatten().map(|station| station.addresses.len()).sum::<usize>();
        assert_eq!(known, neighbours.by_address.len());
    }
}
