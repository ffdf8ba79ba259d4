//! Where frames go.

use super::*;
use crate::DropReason;

#[test]
fn a_frame_goes_to_all_until_its_destination_is_known_and_never_back() {
    let mut lab = Lab::new();
    let [a, b, c] = [(); 3].map(|()| lab.port(PortConfig::default()));
    let ask = frame(BROADCAST, mac(1), &[], b"who");
    assert_eq!(lab.send(a, &ask), [(b, ask.clone()), (c, ask)]);
    assert_eq!(lab.reached(b, &frame(mac(1), mac(2), &[], b"me")), [a]);
    assert_eq!(lab.reached(a, &frame(mac(2), mac(1), &[], b"ah")), [b]);
    assert_eq!(lab.reached(a, &frame(mac(9), mac(1), &[], b"unknown")), [b, c]);
    assert_eq!(lab.reached(a, &frame([0x33, 0x33, 0, 0, 0, 1], mac(1), &[], b"group")), [b, c]);
    // Two stations at one port need no switch.
    lab.reached(a, &frame(BROADCAST, mac(3), &[], b""));
    assert_eq!(lab.reached(a, &frame(mac(3), mac(1), &[], b"")), []);
    assert_eq!(lab.switch.counters(a).unwrap().from_port.dropped(DropReason::SamePort), 1);
}

#[test]
fn the_table_shows_who_is_where_and_since_when() {
    let mut lab = Lab::new();
    let [a, b] = [access(2), access(3)].map(|config| lab.port(config));
    lab.send(a, &frame(BROADCAST, mac(1), &[], b""));
    lab.now += Duration::from_secs(5);
    lab.send(b, &frame(BROADCAST, mac(1), &[], b""));
    let mut table: Vec<_> = lab.switch.table(lab.now).collect();
    table.sort_by_key(|station| station.vlan);
    let seen: Vec<_> = table.iter().map(|s| (s.vlan.get(), s.mac, s.port, s.age.as_secs())).collect();
    assert_eq!(seen, [(2, mac(1), a, 5), (3, mac(1), b, 0)]);
}

#[test]
fn a_station_that_is_plugged_elsewhere_is_found_there() {
    let mut lab = Lab::new();
    let [a, b, c] = [(); 3].map(|()| lab.port(PortConfig::default()));
    lab.send(a, &frame(BROADCAST, mac(1), &[], b""));
    lab.send(b, &frame(BROADCAST, mac(1), &[], b""));
    assert_eq!(lab.reached(c, &frame(mac(1), mac(3), &[], b"")), [b]);
    assert_eq!(lab.switch.counters(b).unwrap().moves, 1);
    lab.switch.remove(b);
    assert_eq!(lab.reached(c, &frame(mac(1), mac(3), &[], b"")), [a]);
    lab.now += Duration::from_secs(300);
    assert_eq!(lab.switch.table(lab.now).count(), 0);
}

#[test]
fn vlans_do_not_see_each_other_and_a_trunk_sees_both_with_tags() {
    let mut lab = Lab::new();
    let trunk = PortConfig { vlan: VlanMode::trunk([vlan(2), vlan(3)]), ..PortConfig::default() };
    let [a, b, c, other, t] =
        [access(2), access(2), access(3), PortConfig::default(), trunk].map(|config| lab.port(config));
    let all = frame(BROADCAST, mac(1), &[], b"hi");
    assert_eq!(lab.send(a, &all), [(b, all.clone()), (t, frame(BROADCAST, mac(1), &[2], b"hi"))]);
    // The same address in another VLAN is another station.
    assert_eq!(lab.send(c, &all), [(t, frame(BROADCAST, mac(1), &[3], b"hi"))]);
    let back = frame(mac(1), mac(7), &[3], b"yo");
    assert_eq!(lab.send(t, &back), [(c, frame(mac(1), mac(7), &[], b"yo"))]);
    // The frames of neither the other VLANs nor a port without one reach the trunk.
    assert_eq!(lab.reached(other, &all), []);
    assert_eq!(lab.reached(t, &frame(BROADCAST, mac(7), &[1], b"")), []);
    assert_eq!(lab.reached(t, &frame(BROADCAST, mac(7), &[], b"")), []);
    assert_eq!(lab.switch.counters(t).unwrap().from_port.dropped(DropReason::Vlan), 2);
}

#[test]
fn isolated_ports_reach_only_the_others() {
    let mut lab = Lab::new();
    let isolated = PortConfig { isolated: true, ..PortConfig::default() };
    let [a, b, up] = [isolated.clone(), isolated, PortConfig::default()].map(|config| lab.port(config));
    assert_eq!(lab.reached(a, &frame(BROADCAST, mac(1), &[], b"")), [up]);
    assert_eq!(lab.reached(b, &frame(BROADCAST, mac(2), &[], b"")), [up]);
    assert_eq!(lab.reached(a, &frame(mac(2), mac(1), &[], b"")), []);
    assert_eq!(lab.switch.counters(a).unwrap().from_port.dropped(DropReason::Isolated), 1);
    assert_eq!(lab.reached(up, &frame(mac(2), mac(3), &[], b"")), [b]);
    assert_eq!(lab.reached(up, &frame(BROADCAST, mac(3), &[], b"")), [a, b]);
}

#[test]
fn a_secure_port_sends_from_its_own_address_only_and_keeps_it() {
    let mut lab = Lab::new();
    let secure = PortConfig { secure: Some(mac(1)), ..PortConfig::default() };
    let [a, b, c] = [secure, PortConfig::default(), PortConfig::default()].map(|config| lab.port(config));
    assert_eq!(lab.reached(a, &frame(BROADCAST, mac(1), &[], b"")), [b, c]);
    assert_eq!(lab.reached(a, &frame(BROADCAST, mac(2), &[], b"")), []);
    assert_eq!(lab.switch.counters(a).unwrap().from_port.dropped(DropReason::Secure), 1);
    assert_eq!(lab.switch.table(lab.now).count(), 1);
    // Another port cannot take its frames away.
    lab.send(b, &frame(BROADCAST, mac(1), &[], b""));
    assert_eq!(lab.switch.counters(b).unwrap().moves_refused, 1);
    assert_eq!(lab.reached(c, &frame(mac(1), mac(3), &[], b"")), [a]);
}

#[test]
fn what_no_switch_forwards_is_counted_and_nobody_is_learned_from_it() {
    let mut lab = Lab::new();
    let [a, _] = [(); 2].map(|()| lab.port(PortConfig::default()));
    assert_eq!(lab.reached(a, &frame([1, 0x80, 0xc2, 0, 0, 0], mac(1), &[], b"STP")), []);
    assert_eq!(lab.reached(a, &frame(mac(2), [1, 0, 0, 0, 0, 1], &[], b"")), []);
    assert_eq!(lab.reached(a, &[0; 13]), []);
    let mut header = PLAIN;
    header[1] = 1;
    assert_eq!(lab.send_large(a, &header, &frame(mac(2), mac(1), &[], b"")), []);
    assert_eq!(lab.switch.table(lab.now).count(), 0);
    let tally = lab.switch.counters(a).unwrap().from_port;
    let dropped: Vec<_> = tally.drops().filter(|(_, count)| *count > 0).collect();
    let one = [(DropReason::Malformed, 2), (DropReason::Offload, 1), (DropReason::Reserved, 1)];
    assert_eq!((tally.frames, &dropped[..]), (4, &one[..]));
}

#[test]
fn a_port_is_counted_where_it_is_full_and_its_id_is_no_other_ports() {
    let mut lab = Lab::new();
    let [a, b] = [(); 2].map(|()| lab.port(PortConfig::default()));
    lab.send(a, &frame(BROADCAST, mac(1), &[], b"12"));
    lab.outside.full = true;
    lab.send(a, &frame(BROADCAST, mac(1), &[], b""));
    let tally = lab.switch.counters(b).unwrap().to_port;
    assert_eq!((tally.frames, tally.bytes, tally.dropped(DropReason::PortFull)), (1, 16, 1));
    lab.switch.remove(b);
    assert!(lab.switch.counters(b).is_none() && !lab.switch.set(b, PortConfig::default()));
    let next = lab.port(PortConfig::default());
    assert_ne!(next, b);
    assert_eq!(lab.reached(b, &frame(BROADCAST, mac(1), &[], b"")), []);
    assert_eq!(lab.switch.ports().map(|port| port.id).collect::<Vec<_>>(), [a, next]);
}

#[test]
fn there_are_no_more_ports_than_the_limit_says() {
    let mut switch = Switch::new(Limits { ports: 2, ..Limits::default() });
    let first = switch.add(PortConfig::default()).unwrap();
    assert!(switch.add(PortConfig::default()).is_some());
    assert!(switch.add(PortConfig::default()).is_none());
    switch.remove(first);
    assert!(switch.add(PortConfig::default()).is_some());
}

#[test]
fn settings_change_while_frames_pass() {
    let mut lab = Lab::new();
    let [a, b, c] = [access(2), access(2), access(3)].map(|config| lab.port(config));
    lab.send(b, &frame(BROADCAST, mac(2), &[], b""));
    assert_eq!(lab.reached(a, &frame(mac(2), mac(1), &[], b"")), [b]);
    // In another VLAN the station is another one.
    assert!(lab.switch.set(b, access(3)));
    assert_eq!(lab.reached(a, &frame(mac(2), mac(1), &[], b"")), []);
    assert_eq!(lab.reached(c, &frame(mac(2), mac(3), &[], b"")), [b]);
    assert_eq!(lab.switch.config(b), Some(&access(3)));
}
