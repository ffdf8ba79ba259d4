//! The addresses that DHCP gave to the guests of a shared network.
//!
//! A guest keeps its address for as long as another has no greater need of it: the place of an address is made of the guest's
//! Ethernet address, so that it gets the same one from a network that was started again.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use smoltcp::wire::EthernetAddress;

use crate::config::Ipv4Subnet;

/// A day: a guest that was paused for the night keeps its address.
pub(crate) const LEASE: u32 = 86400;
/// An offer that is not taken, and an address that was declined, are free after this.
const OFFER: Duration = Duration::from_secs(60);
const DECLINED: Duration = Duration::from_secs(600);
/// The part of the pool that may be declined at a time: a guest that declines all that it is offered leaves the rest to the others.
const DECLINED_PART: u32 = 8;
/// Addresses that are looked at for one that nobody uses.
const TRIES: usize = 64;

/// An address that is not free.
#[derive(Debug)]
struct Lease {
    /// Who has it; nobody, if it was declined.
    holder: Option<EthernetAddress>,
    /// It was offered, and taken.
    taken: bool,
    until: Instant,
}

/// All leases.
#[derive(Debug)]
pub(crate) struct Leases {
    /// The pool.
    first: u32,
    free: BTreeSet<u32>,
    size: u32,
    leases: HashMap<u32, Lease>,
    /// Leases in the order in which they end.
    ends: BTreeSet<(Instant, u32)>,
    /// Those that were declined, in the order in which that ends.
    declined: BTreeSet<(Instant, u32)>,
    holders: HashMap<EthernetAddress, Holder>,
    /// Names that guests gave themselves: the first one has it.
    names: HashMap<String, EthernetAddress>,
}

#[derive(Debug)]
struct Holder {
    address: u32,
    name: Option<String>,
}

impl Leases {
    /// A pool of at most `most` addresses, from the one that a guest of its own would have.
    pub(crate) fn new(subnet: &Ipv4Subnet, most: u16) -> Self {
        let first = subnet.guest.to_bits();
        let size = subnet.broadcast().to_bits().saturating_sub(first).min(most.into());
        Leases {
            first,
            free: (first..first + size).collect(),
            size,
            leases: HashMap::new(),
            ends: BTreeSet::new(),
            declined: BTreeSet::new(),
            holders: HashMap::new(),
            names: HashMap::new(),
        }
    }

    /// The address that a guest was given or offered.
    pub(crate) fn of(&self, guest: EthernetAddress) -> Option<Ipv4Addr> {
        self.bits_of(guest).map(Ipv4Addr::from_bits)
    }

    fn bits_of(&self, guest: EthernetAddress) -> Option<u32> {
        self.holders.get(&guest).map(|holder| holder.address)
    }

    /// Who has an address now.
    pub(crate) fn holder(&self, address: Ipv4Addr, now: Instant) -> Option<EthernetAddress> {
        let lease = self.leases.get(&address.to_bits())?;
        lease.holder.filter(|_| lease.taken && lease.until > now)
    }

    /// The address of the guest with a name.
    pub(crate) fn named(&self, name: &str) -> Option<Ipv4Addr> {
        self.of(*self.names.get(name)?)
    }

    /// All that were taken: who has which address.
    pub(crate) fn iter(&self, now: Instant) -> impl Iterator<Item = (EthernetAddress, Ipv4Addr)> {
        self.leases.iter().filter_map(move |(address, lease)| {
            let holder = lease.holder.filter(|_| lease.taken && lease.until > now)?;
            Some((holder, Ipv4Addr::from_bits(*address)))
        })
    }

    /// The address that a guest is offered: the one that it has, that it asks for, or that its Ethernet address leads to. `used`:
    /// somebody has the address without a lease. `None`: there is none left.
    pub(crate) fn offer(
        &mut self,
        guest: EthernetAddress,
        wanted: Option<Ipv4Addr>,
        used: impl Fn(Ipv4Addr) -> bool,
        now: Instant,
    ) -> Option<Ipv4Addr> {
        if let Some(address) = self.bits_of(guest) {
            if !used(Ipv4Addr::from_bits(address)) {
                self.prolong(address, OFFER, now);
                return Some(Ipv4Addr::from_bits(address));
            }
            self.forget(guest);
        }
        let usable = |address: &u32| !used(Ipv4Addr::from_bits(*address));
        let wanted = wanted.map(Ipv4Addr::to_bits).filter(|address| self.free.contains(address));
        let first = self.holders.is_empty().then_some(self.first).filter(|first| self.free.contains(first));
        let from = self.place(guest);
        let around = self.free.range(from..).chain(self.free.range(..from)).copied().take(TRIES);
        let found = wanted.into_iter().chain(first).chain(around).find(usable);
        let address = match found {
            Some(address) => address,
            None => self.reclaim(now)?,
        };
        self.give(guest, address, now);
        Some(Ipv4Addr::from_bits(address))
    }

    /// A guest takes `address`, or goes on with it. False: it cannot have it.
    pub(crate) fn take(
        &mut self,
        guest: EthernetAddress,
        address: Ipv4Addr,
        used: impl Fn(Ipv4Addr) -> bool,
        now: Instant,
    ) -> bool {
        let bits = address.to_bits();
        match self.bits_of(guest) {
            Some(known) if known != bits => return false,
            Some(_) => {}
            // It has it from a network that was here before.
            None if self.free.contains(&bits) && !used(address) => self.give(guest, bits, now),
            None => return false,
        }
        self.prolong(bits, Duration::from_secs(LEASE.into()), now);
        if let Some(lease) = self.leases.get_mut(&bits) {
            lease.taken = true;
        }
        true
    }

    /// The name of a guest that has an address, unless another has it.
    pub(crate) fn name(&mut self, guest: EthernetAddress, name: String) {
        let Some(holder) = self.holders.get_mut(&guest) else { return };
        if name.is_empty() || self.names.contains_key(&name) {
            return;
        }
        if let Some(old) = holder.name.replace(name.clone()) {
            self.names.remove(&old);
        }
        self.names.insert(name, guest);
    }

    /// A guest needs its address no more. It gets it again if nobody else had to have it.
    pub(crate) fn release(&mut self, guest: EthernetAddress, address: Ipv4Addr, now: Instant) {
        let bits = address.to_bits();
        if self.bits_of(guest) != Some(bits) {
            return;
        }
        if let Some(lease) = self.leases.get_mut(&bits) {
            self.ends.remove(&(lease.until, bits));
            (lease.until, lease.taken) = (now, false);
            self.ends.insert((now, bits));
        }
    }

    /// A guest found that somebody else has its address. Nobody is offered it for a while, unless many are declined.
    pub(crate) fn decline(&mut self, guest: EthernetAddress, address: Ipv4Addr, now: Instant) {
        let bits = address.to_bits();
        if self.bits_of(guest) != Some(bits) {
            return;
        }
        self.forget(guest);
        let most = usize::try_from((self.size / DECLINED_PART).max(1)).unwrap_or(usize::MAX);
        while self.declined.len() >= most {
            let Some((_, first)) = self.declined.first().copied() else { break };
            self.free_again(first);
        }
        self.free.remove(&bits);
        let until = now + DECLINED;
        self.leases.insert(bits, Lease { holder: None, taken: false, until });
        self.ends.insert((until, bits));
        self.declined.insert((until, bits));
    }

    /// Where the search for a guest's address begins.
    fn place(&self, guest: EthernetAddress) -> u32 {
        // FNV-1a: the same in each process.
        let hash = guest
            .0
            .iter()
            .fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(16_777_619));
        self.first + (hash ^ (hash >> 16)).checked_rem(self.size).unwrap_or(0)
    }

    fn give(&mut self, guest: EthernetAddress, address: u32, now: Instant) {
        let until = now + OFFER;
        self.free.remove(&address);
        self.leases.insert(address, Lease { holder: Some(guest), taken: false, until });
        self.ends.insert((until, address));
        self.holders.insert(guest, Holder { address, name: None });
    }

    fn prolong(&mut self, address: u32, by: Duration, now: Instant) {
        let Some(lease) = self.leases.get_mut(&address) else { return };
        self.ends.remove(&(lease.until, address));
        lease.until = lease.until.max(now + by);
        self.ends.insert((lease.until, address));
    }

    fn forget(&mut self, guest: EthernetAddress) {
        let Some(holder) = self.holders.remove(&guest) else { return };
        if let Some(name) = holder.name {
            self.names.remove(&name);
        }
        self.free_again(holder.address);
    }

    fn free_again(&mut self, address: u32) {
        if let Some(lease) = self.leases.remove(&address) {
            self.ends.remove(&(lease.until, address));
            self.declined.remove(&(lease.until, address));
            self.free.insert(address);
        }
    }

    /// The address whose lease has been over for the longest.
    fn reclaim(&mut self, now: Instant) -> Option<u32> {
        let (until, address) = self.ends.first().copied()?;
        if until > now {
            return None;
        }
        match self.leases.get(&address).and_then(|lease| lease.holder) {
            Some(guest) => self.forget(guest),
            None => self.free_again(address),
        }
        Some(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(number: u8) -> EthernetAddress {
        EthernetAddress([2, 0, 0, 0, 0, number])
    }

    fn unused(_: Ipv4Addr) -> bool {
        false
    }

    fn leases(most: u16) -> Leases {
        Leases::new(&Ipv4Subnet::default(), most)
    }

    /// The address that a guest is offered and takes.
    fn take(leases: &mut Leases, guest: u8, now: Instant) -> Option<Ipv4Addr> {
        let address = leases.offer(mac(guest), None, unused, now)?;
        assert!(leases.take(mac(guest), address, unused, now));
        Some(address)
    }

    #[test]
    fn first_guest_has_the_address_of_a_guest_alone_and_each_the_same_from_a_new_network() {
        let now = Instant::now();
        let (mut one, mut two) = (leases(1000), leases(1000));
        let first = take(&mut one, 1, now).unwrap();
        assert_eq!(first.to_string(), "10.0.2.15");
        take(&mut two, 9, now).unwrap();
        let addresses: Vec<_> = (2..9).map(|guest| take(&mut one, guest, now).unwrap()).collect();
        let again: Vec<_> = (2..9).rev().map(|guest| take(&mut two, guest, now).unwrap()).collect();
        assert!(addresses.iter().eq(again.iter().rev()), "{addresses:?} {again:?}");
        // One that comes with the address of before has it, unless somebody else does.
        let mut new = leases(1000);
        assert!(new.take(mac(2), addresses[0], unused, now));
        assert!(!new.take(mac(3), addresses[0], unused, now));
        assert!(!new.take(mac(4), addresses[1], |_| true, now));
        assert!(!new.take(mac(4), Ipv4Addr::new(10, 0, 2, 255), unused, now));
        assert!(!new.take(mac(4), Ipv4Addr::new(10, 0, 2, 2), unused, now));
    }

    #[test]
    fn pool_that_is_used_up_gives_nothing_until_a_lease_has_ended() {
        let mut now = Instant::now();
        let mut leases = leases(3);
        let held: Vec<_> = (1..4).map(|guest| take(&mut leases, guest, now).unwrap()).collect();
        assert_eq!(take(&mut leases, 4, now), None);
        // Offers alone are free again after a minute, leases after a day.
        now += Duration::from_secs(u64::from(LEASE) / 2);
        assert!(leases.take(mac(1), held[0], unused, now) && leases.take(mac(3), held[2], unused, now));
        now += Duration::from_secs(u64::from(LEASE) / 2);
        assert_eq!(leases.offer(mac(4), None, unused, now), Some(held[1]));
        assert_eq!(leases.offer(mac(5), None, unused, now), None);
        now += OFFER;
        assert_eq!(leases.offer(mac(5), None, unused, now), Some(held[1]));
        assert!(!leases.take(mac(4), held[1], unused, now));
        assert_eq!((leases.leases.len(), leases.ends.len(), leases.holders.len()), (3, 3, 3));
    }

    #[test]
    fn released_address_is_kept_for_its_guest_and_a_declined_one_is_given_to_nobody_for_a_while() {
        let mut now = Instant::now();
        let mut leases = leases(2);
        let (one, two) = (take(&mut leases, 1, now).unwrap(), take(&mut leases, 2, now).unwrap());
        leases.release(mac(2), one, now);
        assert_eq!(leases.holder(one, now), Some(mac(1)), "another's");
        leases.release(mac(1), one, now);
        assert_eq!(leases.holder(one, now), None);
        assert_eq!(take(&mut leases, 1, now), Some(one));
        leases.decline(mac(1), two, now);
        assert_eq!(leases.holder(two, now), Some(mac(2)), "another's");
        leases.decline(mac(2), two, now);
        assert_eq!(leases.offer(mac(2), Some(two), unused, now), None);
        now += DECLINED;
        assert_eq!(take(&mut leases, 2, now), Some(two));
    }

    #[test]
    fn guest_that_declines_all_that_it_is_offered_leaves_addresses_to_the_others() {
        let now = Instant::now();
        for size in [2, 16, 240] {
            let mut leases = leases(size);
            for _ in 0..size * 2 {
                let offered = leases.offer(mac(1), None, unused, now).unwrap();
                leases.decline(mac(1), offered, now);
            }
            assert_eq!(leases.declined.len(), usize::from((size / 8).max(1)));
            assert!(take(&mut leases, 2, now).is_some());
            assert_eq!(leases.free.len() + leases.leases.len(), size.into());
        }
    }

    #[test]
    fn address_that_somebody_uses_without_a_lease_is_not_given() {
        let now = Instant::now();
        let mut leases = leases(2);
        let first = Ipv4Addr::new(10, 0, 2, 15);
        let offered = leases.offer(mac(1), Some(first), |address| address == first, now);
        assert_eq!(offered, Some(Ipv4Addr::new(10, 0, 2, 16)));
    }

    #[test]
    fn name_is_of_the_guest_that_had_it_first() {
        let mut now = Instant::now();
        let mut leases = leases(2);
        leases.name(mac(1), "early".into());
        let (one, two) = (take(&mut leases, 1, now).unwrap(), take(&mut leases, 2, now).unwrap());
        leases.name(mac(1), "vm0".into());
        leases.name(mac(2), "vm0".into());
        assert_eq!((leases.named("vm0"), leases.named("early")), (Some(one), None));
        now += Duration::from_secs(LEASE.into());
        leases.offer(mac(3), None, unused, now).unwrap();
        leases.name(mac(2), "vm0".into());
        assert_eq!(leases.named("vm0"), Some(two));
        assert_eq!(leases.names.len(), 1);
    }
}
