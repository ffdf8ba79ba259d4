//! Tests of the table.

use super::*;

const AGEING: Duration = Duration::from_secs(300);

fn port(slot: u32) -> PortId {
    PortId { slot, generation: 0 }
}

fn key(number: u16) -> Key {
    let [high, low] = number.to_be_bytes();
    Key::new(VlanId::DEFAULT, [2, 0, 0, 0, high, low])
}

struct Fixture {
    table: Table,
    now: Instant,
    ports: usize,
}

impl Fixture {
    fn new(most: usize, ports: usize) -> Self {
        Fixture { table: Table::new(most, AGEING), now: Instant::now(), ports }
    }

    fn learn(&mut self, number: u16, slot: u32) -> Learned {
        self.table.learn(key(number), port(slot), false, self.ports, self.now)
    }

    fn find(&self, number: u16) -> Option<u32> {
        self.table.find(key(number), self.now).map(|port| port.slot)
    }

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }
}

#[test]
fn a_key_is_its_vlan_and_address() {
    let vlan = VlanId::new(4094).unwrap();
    assert_eq!(Key::new(vlan, [0xfe; 6]).parts(), (Some(vlan), [0xfe; 6]));
    assert_ne!(Key::new(vlan, [2; 6]), Key::new(VlanId::DEFAULT, [2; 6]));
}

#[test]
fn a_station_is_found_until_it_is_silent_for_the_time_of_ageing() {
    let mut table = Fixture::new(16, 2);
    assert_eq!(table.learn(1, 0), Learned::New { evicted: None });
    table.wait(299);
    assert_eq!(table.find(1), Some(0));
    assert_eq!(table.learn(1, 0), Learned::Known);
    table.wait(299);
    assert_eq!(table.find(1), Some(0));
    table.wait(1);
    assert_eq!(table.find(1), None);
    assert_eq!(table.table.iter(table.now).count(), 0);
}

#[test]
fn a_station_that_moves_is_found_at_its_new_port() {
    let mut table = Fixture::new(16, 2);
    table.learn(1, 0);
    assert_eq!(table.learn(1, 1), Learned::Moved);
    assert_eq!(table.find(1), Some(1));
    table.table.flush(port(0));
    assert_eq!(table.find(1), Some(1));
    table.table.flush(port(1));
    assert_eq!(table.find(1), None);
}

#[test]
fn the_address_of_a_secure_port_does_not_move_while_it_is_young() {
    let mut table = Fixture::new(16, 2);
    table.table.learn(key(1), port(0), true, 2, table.now);
    assert_eq!(table.learn(1, 1), Learned::Refused);
    assert_eq!(table.find(1), Some(0));
    table.wait(300);
    assert_eq!(table.learn(1, 1), Learned::New { evicted: None });
    assert_eq!(table.table.learn(key(1), port(0), true, 2, table.now), Learned::Moved);
}

#[test]
fn a_flood_of_addresses_costs_the_flooding_port_its_own() {
    let mut table = Fixture::new(64, 4);
    (0..16).for_each(|number| _ = table.learn(number, 1));
    (100..5000).for_each(|number| _ = table.learn(number, 0));
    assert_eq!(table.table.index.len(), 64);
    assert!((0..16).all(|number| table.find(number) == Some(1)));
    assert_eq!(table.find(4999), Some(0));
    // The other ports get their share, and the flooding port loses what it has above its own.
    for number in 20..36 {
        assert_eq!(table.learn(number, 2), Learned::New { evicted: Some(port(0)) });
    }
    (5000..9000).for_each(|number| _ = table.learn(number, 0));
    assert!((20..36).all(|number| table.find(number) == Some(2)));
    assert_eq!(table.table.lists[0].len, 32);
    // A port that has its share takes nothing of one that has more.
    (9000..9999).for_each(|number| _ = table.learn(number, 2));
    let lens: Vec<_> = table.table.lists.iter().map(|list| list.len).collect();
    assert_eq!(lens, [32, 16, 16]);
    assert!(table.table.entries.len() <= 64);
}

#[test]
fn the_oldest_address_goes_first() {
    let mut table = Fixture::new(3, 1);
    for number in 0..3 {
        table.learn(number, 0);
        table.wait(2);
    }
    table.learn(0, 0);
    table.learn(9, 0);
    assert_eq!([0, 1, 2, 9].map(|number| table.find(number).is_some()), [true, false, true, true]);
}

#[test]
fn old_addresses_are_swept_in_portions_when_frames_come() {
    let mut table = Fixture::new(4096, 2);
    (0..1000).for_each(|number| _ = table.learn(number, 0));
    table.wait(301);
    let mut sizes = Vec::new();
    for _ in 0..5 {
        table.learn(2000, 1);
        sizes.push(table.table.index.len());
        table.wait(1);
    }
    assert_eq!(sizes, [745, 489, 233, 1, 1]);
}
