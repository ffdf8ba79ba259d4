//! Wires that are slow, lose frames and take their time.

use std::num::NonZeroU64;

use proptest::prelude::*;

use super::*;
use crate::{DropReason, Impairment};

const MS: Duration = Duration::from_millis(1);

fn delay(ms: u32) -> Impairment {
    Impairment { delay: MS * ms, ..Impairment::default() }
}

fn rate(bits: u64) -> Impairment {
    Impairment { rate: NonZeroU64::new(bits), ..Impairment::default() }
}

/// Two ports, the first one with an impaired wire to it.
fn pair(to_port: Impairment) -> (Lab, PortId, PortId) {
    let mut lab = Lab::new();
    let a = lab.port(PortConfig { to_port, ..PortConfig::default() });
    let b = lab.port(PortConfig::default());
    (lab, a, b)
}

/// The `number`th frame: 1,514 bytes.
fn numbered(number: u16) -> Vec<u8> {
    let mut payload = vec![0; 1500];
    payload[..2].copy_from_slice(&number.to_be_bytes());
    frame(BROADCAST, mac(2), &[], &payload)
}

fn number(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[14], frame[15]])
}

#[test]
fn a_frame_is_on_its_way_for_the_delay_of_each_wire_it_passes() {
    let (mut lab, a, b) = pair(delay(20));
    let hi = frame(BROADCAST, mac(2), &[], b"hi");
    assert_eq!(lab.send(b, &hi), []);
    assert_eq!(lab.switch.ports().map(|port| port.waiting).sum::<usize>(), 1);
    assert_eq!(lab.wait(MS * 19), []);
    assert_eq!(lab.wait(MS * 2), [(MS, a, hi.clone())]);
    assert_eq!(
        lab.send(a, &frame(BROADCAST, mac(1), &[], b"yo")).len(),
        1,
        "the other direction is as it was"
    );
    lab.switch.set(b, PortConfig { from_port: delay(5), ..PortConfig::default() });
    lab.send(b, &hi);
    assert_eq!(lab.wait(MS * 100), [(MS * 25, a, hi)]);
    assert_eq!(lab.switch.next_timeout(), None);
}

#[test]
fn a_station_is_learned_when_its_frame_has_arrived() {
    let mut lab = Lab::new();
    let a = lab.port(PortConfig { from_port: delay(10), ..PortConfig::default() });
    lab.port(PortConfig::default());
    lab.send(a, &frame(BROADCAST, mac(1), &[], b""));
    assert_eq!(lab.switch.table(lab.now).count(), 0);
    lab.wait(MS * 10);
    assert_eq!(lab.switch.table(lab.now).count(), 1);
}

#[test]
fn jitter_stays_in_its_bounds_is_spread_over_them_and_frames_keep_their_order() {
    let impairment = Impairment { jitter: MS * 5, ..delay(20) };
    let (mut lab, _, b) = pair(impairment);
    let mut times = Vec::new();
    for _ in 0..200 {
        lab.send(b, &numbered(0));
        times.extend(lab.wait(MS * 100).into_iter().map(|(time, ..)| time));
    }
    assert!(times.iter().all(|time| (MS * 15..=MS * 25).contains(time)), "{times:?}");
    let mean = times.iter().sum::<Duration>() / 200;
    assert!((Duration::from_micros(19_400)..Duration::from_micros(20_600)).contains(&mean), "{mean:?}");
    assert!(times.iter().min() < Some(&(MS * 16)) && times.iter().max() > Some(&(MS * 24)));
    (0..100).for_each(|index| _ = lab.send(b, &numbered(index)));
    let order: Vec<_> = lab.wait(MS * 100).iter().map(|(.., frame)| number(frame)).collect();
    assert_eq!(order, (0..100).collect::<Vec<_>>());
}

#[test]
fn a_jitter_beyond_the_delay_never_sends_a_frame_into_the_past() {
    let (mut lab, _, b) = pair(Impairment { jitter: MS * 50, ..delay(1) });
    (0..100).for_each(|index| _ = lab.send(b, &numbered(index)));
    lab.wait(MS * 60);
    assert_eq!(lab.switch.next_timeout(), None);
}

#[test]
fn as_many_frames_are_lost_as_were_asked_for() {
    let (mut lab, a, b) = pair(Impairment { loss_ppm: 10_000, ..Impairment::default() });
    let got: usize = (0..20_000).map(|_| lab.send(b, &numbered(0)).len()).sum();
    let lost = lab.switch.counters(a).unwrap().to_port.dropped(DropReason::Loss);
    assert_eq!(lost + got as u64, 20_000);
    assert!((150..250).contains(&lost), "{lost}");
    for (loss_ppm, left) in [(1_000_000, 0), (u32::MAX, 0), (0, 100)] {
        let to_port = Impairment { loss_ppm, ..Impairment::default() };
        lab.switch.set(a, PortConfig { to_port, ..PortConfig::default() });
        assert_eq!((0..100).map(|_| lab.send(b, &numbered(0)).len()).sum::<usize>(), left);
    }
}

#[test]
fn frames_come_at_the_rate_of_the_wire_however_late_the_timer_is() {
    // 1,538 bytes on the wire: 12,304 bits.
    let (mut lab, _, b) = pair(rate(12_304_000));
    (0..50).for_each(|index| _ = lab.send(b, &numbered(index)));
    let times: Vec<_> = lab.wait(MS * 100).into_iter().map(|(time, ..)| time).collect();
    assert_eq!(times, (1..=50).map(|ms| MS * ms).collect::<Vec<_>>());
    // A timer that comes after 10 ms sends what these are for, and no more.
    (0..50).for_each(|index| _ = lab.send(b, &numbered(index)));
    lab.now += MS * 10;
    lab.switch.timeout(lab.now, &mut lab.outside);
    assert_eq!(lab.outside.sent.len(), 10);
}

#[test]
fn short_frames_are_as_long_on_the_wire_as_ethernet_makes_them() {
    // 84 bytes on the wire: 672 bits.
    let (mut lab, _, b) = pair(rate(672_000));
    lab.send(b, &frame(BROADCAST, mac(2), &[], b""));
    assert_eq!(lab.wait(MS * 10).len(), 1);
    lab.send(b, &frame(BROADCAST, mac(2), &[], b""));
    assert_eq!(lab.wait(MS * 10)[0].0, MS);
}

#[test]
fn a_slow_wire_has_a_queue_of_a_quarter_of_a_second() {
    let (mut lab, a, b) = pair(rate(12_304_000));
    (0..1000).for_each(|index| _ = lab.send(b, &numbered(index)));
    let waiting = lab.switch.ports().map(|port| port.waiting).sum::<usize>();
    assert_eq!(waiting, 251, "one is being sent");
    assert_eq!(lab.switch.counters(a).unwrap().to_port.dropped(DropReason::QueueFull), 749);
    assert_eq!(lab.wait(Duration::from_secs(1)).len(), 251);
    // On a very slow one 250 ms are too few frames for TCP.
    lab.switch.set(a, PortConfig { to_port: rate(12_304), ..PortConfig::default() });
    (0..100).for_each(|index| _ = lab.send(b, &numbered(index)));
    assert_eq!(lab.wait(Duration::from_secs(100)).len(), 16);
}

#[test]
fn frames_and_bytes_on_a_wire_are_bounded() {
    let limits = Limits { waiting_frames: 10, waiting_bytes: 5000, ..Limits::default() };
    for (len, kept) in [(60, 10), (1500, 3)] {
        let mut lab = Lab::new();
        lab.switch = Switch::with_seed(limits, 1);
        let a = lab.port(PortConfig { to_port: delay(10), from_port: delay(10), ..PortConfig::default() });
        let b = lab.port(PortConfig::default());
        // What has left makes room again.
        for round in 1..=3 {
            for from in [a, b] {
                (0..100).for_each(|_| _ = lab.send(from, &frame(BROADCAST, mac(2), &[], &vec![0; len])));
            }
            let counters = lab.switch.counters(a).unwrap();
            assert_eq!(counters.from_port.dropped(DropReason::QueueFull), (100 - kept) * round);
            assert_eq!(counters.to_port.dropped(DropReason::QueueFull), (100 - kept) * round);
            assert_eq!(lab.wait(MS * 10).len() as u64, kept * 2);
        }
    }
}

#[test]
fn what_is_due_makes_room_however_late_the_timer_is() {
    let mut lab = Lab::new();
    lab.switch = Switch::with_seed(Limits { waiting_frames: 2, ..Limits::default() }, 1);
    let a = lab.port(PortConfig { to_port: delay(10), ..PortConfig::default() });
    let b = lab.port(PortConfig::default());
    (0..3).for_each(|index| _ = lab.send(b, &numbered(index)));
    lab.now += MS * 10;
    let sent: Vec<_> = lab.send(b, &numbered(3)).iter().map(|(port, frame)| (*port, number(frame))).collect();
    assert_eq!(sent, [(a, 0), (a, 1)]);
    assert_eq!(lab.wait(MS * 10).iter().map(|(.., frame)| number(frame)).collect::<Vec<_>>(), [3]);
}

#[test]
fn new_impairments_hold_for_frames_that_wait() {
    let (mut lab, a, b) = pair(delay(100_000));
    (0..3).for_each(|index| _ = lab.send(b, &numbered(index)));
    lab.wait(MS * 10);
    lab.switch.set(a, PortConfig { to_port: delay(30), ..PortConfig::default() });
    lab.send(b, &numbered(3));
    let times: Vec<_> = lab.wait(MS * 100).iter().map(|(time, _, frame)| (*time, number(frame))).collect();
    assert_eq!(times, [(MS * 20, 0), (MS * 20, 1), (MS * 20, 2), (MS * 30, 3)]);
    // On a perfect wire they come at once, and before what is sent later.
    (0..3).for_each(|index| _ = lab.send(b, &numbered(index)));
    lab.switch.set(a, PortConfig::default());
    let order: Vec<_> = lab.send(b, &numbered(3)).iter().map(|(_, frame)| number(frame)).collect();
    assert_eq!(order, [0, 1, 2, 3]);
    assert_eq!(lab.switch.next_timeout(), None);
    // A rate that was far too small is mended.
    lab.switch.set(a, PortConfig { to_port: rate(1), ..PortConfig::default() });
    assert_eq!(lab.send(b, &numbered(0)), []);
    lab.switch.set(a, PortConfig { to_port: rate(12_304_000), ..PortConfig::default() });
    assert_eq!(lab.wait(MS * 10)[0].0, MS);
}

#[test]
fn a_new_rate_is_that_of_the_frames_that_are_still_to_be_sent() {
    let (mut lab, a, b) = pair(rate(12_304_000));
    (0..50).for_each(|index| _ = lab.send(b, &numbered(index)));
    assert_eq!(lab.wait(MS * 10).len(), 10);
    lab.switch.set(a, PortConfig { to_port: rate(6_152_000), ..PortConfig::default() });
    let times: Vec<_> = lab.wait(MS * 100).into_iter().map(|(time, ..)| time).collect();
    assert_eq!(times, (1..=40).map(|frame| MS * 2 * frame).collect::<Vec<_>>());
}

#[test]
fn frames_on_the_way_to_a_port_that_leaves_its_vlan_do_not_arrive() {
    let (mut lab, a, b) = pair(delay(10));
    lab.send(b, &numbered(0));
    lab.switch.set(a, PortConfig { to_port: delay(10), ..access(2) });
    assert_eq!(lab.wait(MS * 20), []);
    assert_eq!(lab.switch.counters(a).unwrap().to_port.dropped(DropReason::Reconfigured), 1);
    // Nor do frames from it reach the VLAN that it was in.
    lab.switch.set(a, PortConfig { from_port: delay(10), ..PortConfig::default() });
    lab.send(a, &frame(BROADCAST, mac(1), &[], b""));
    lab.switch.set(a, PortConfig { from_port: delay(10), ..access(2) });
    assert_eq!(lab.wait(MS * 20), []);
}

#[test]
fn a_port_that_is_removed_leaves_no_timer() {
    let (mut lab, a, b) = pair(delay(10));
    lab.send(b, &numbered(0));
    lab.switch.remove(a);
    assert_eq!(lab.switch.next_timeout(), None);
    let next = lab.port(PortConfig::default());
    assert_eq!(lab.send(b, &numbered(1)), [(next, numbered(1))]);
}

#[test]
fn delays_without_end_do_no_harm() {
    let to_port =
        Impairment { delay: Duration::MAX, jitter: Duration::MAX, loss_ppm: 0, rate: NonZeroU64::new(1) };
    let (mut lab, _, b) = pair(to_port);
    assert_eq!(lab.send(b, &numbered(0)), []);
    let due = lab.switch.next_timeout().unwrap() - lab.now;
    assert!(due <= Duration::from_secs(3 * 3600 + 12_304), "{due:?}");
}

/// What happens to a pair of ports.
#[derive(Debug, Clone)]
enum Step {
    Send(usize),
    Set(Impairment, Impairment),
    Wait(u64),
}

fn impairment() -> impl Strategy<Value = Impairment> {
    let some = |values: std::ops::Range<u64>| prop_oneof![1 => Just(0), 1 => values];
    (some(1..50), some(1..80), some(1..500_000), some(50_000..20_000_000)).prop_map(
        |(delay, jitter, loss, rate)| Impairment {
            delay: Duration::from_millis(delay),
            jitter: Duration::from_millis(jitter),
            loss_ppm: loss as u32,
            rate: NonZeroU64::new(rate),
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let perfect = || Just(Impairment::default());
    let one = || prop_oneof![1 => perfect(), 3 => impairment()];
    prop_oneof![
        5 => (1usize..30).prop_map(Step::Send),
        1 => (one(), one()).prop_map(|(from, to)| Step::Set(from, to)),
        3 => (0u64..60).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn frames_keep_their_order_and_each_one_is_accounted_for(steps in proptest::collection::vec(step(), 1..120)) {
        let mut lab = Lab::new();
        lab.switch = Switch::with_seed(Limits { waiting_frames: 40, ..Limits::default() }, 1);
        let [a, b] = [(); 2].map(|()| lab.port(PortConfig::default()));
        let (mut next, mut got) = (0, Vec::new());
        for step in steps {
            match step {
                Step::Send(count) => for _ in 0..count {
                    got.extend(lab.send(b, &numbered(next)).iter().map(|(_, frame)| number(frame)));
                    next += 1;
                },
                Step::Set(from_port, to_port) => {
                    lab.switch.set(b, PortConfig { from_port, ..PortConfig::default() });
                    lab.switch.set(a, PortConfig { to_port, ..PortConfig::default() });
                }
                Step::Wait(ms) => got.extend(lab.wait(Duration::from_millis(ms)).iter().map(|(.., frame)| number(frame))),
            }
            let waiting: usize = lab.switch.ports().map(|port| port.waiting).sum();
            let [from, to] = [b, a].map(|port| lab.switch.counters(port).unwrap());
            let dropped: u64 = [from.from_port, to.to_port].iter().flat_map(|tally| tally.drops()).map(|(_, count)| count).sum();
            prop_assert_eq!(u64::from(next), got.len() as u64 + waiting as u64 + dropped);
            prop_assert_eq!(lab.switch.next_timeout().is_some(), waiting > 0);
            prop_assert!(waiting <= 80);
        }
        // What waits comes out, at the latest when its wires have become perfect.
        let perfect = PortConfig::default();
        [a, b].into_iter().for_each(|port| _ = lab.switch.set(port, perfect.clone()));
        got.extend(lab.wait(Duration::ZERO).iter().map(|(.., frame)| number(frame)));
        prop_assert_eq!(lab.switch.next_timeout(), None);
        prop_assert!(got.is_sorted_by(|one, next| one < next));
    }
}
