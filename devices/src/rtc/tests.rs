use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::*;
use crate::component::{Component, StateError};
use proptest::prelude::*;
use serde_json::json;

#[derive(Debug, Clone)]
struct Fixed(Arc<AtomicI64>);

impl WallClock for Fixed {
    fn now(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// 2024-02-29 23:59:59, a Thursday.
const LEAP: i64 = 1_709_251_199;

struct Rig(Rtc, Arc<AtomicI64>);

fn rig(now: i64) -> Rig {
    let time = Arc::new(AtomicI64::new(now));
    Rig(Rtc::new(Box::new(Fixed(time.clone()))), time)
}

impl Rig {
    fn get(&mut self, index: u8) -> u8 {
        let mut byte = [0];
        self.0.write(0, &[index]);
        self.0.read(1, &mut byte);
        byte[0]
    }
    fn set(&mut self, index: u8, value: u8) {
        self.0.write(0, &[index]);
        self.0.write(1, &[value]);
    }
    fn time(&mut self) -> [u8; 8] {
        TIME.map(|register| self.get(register))
    }
}

#[test]
fn the_time_is_in_bcd_and_24_hours_by_default() {
    assert_eq!(rig(LEAP).time(), [0x59, 0x59, 0x23, 5, 0x29, 0x02, 0x24, 0x20]);
}

#[test]
fn binary_and_12_hours_are_understood() {
    let mut rig = rig(LEAP);
    rig.set(STATUS_B, B_BINARY);
    assert_eq!(rig.time(), [59, 59, 11 | PM, 5, 29, 2, 24, 20]);
    rig.set(STATUS_B, 0);
    assert_eq!(rig.get(HOURS), 0x11 | PM);
    for (hour, shown) in [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81)] {
        rig.1.store(hour * 3600, Ordering::Relaxed);
        rig.get(SECONDS);
        assert_eq!(rig.get(HOURS), shown);
    }
}

#[test]
fn no_update_is_ever_in_progress_and_no_flag_ever_stands() {
    let mut rig = rig(LEAP);
    rig.set(STATUS_A, 0xff);
    rig.set(STATUS_B, 0x7f);
    assert_eq!(rig.get(STATUS_A), 0x7f);
    assert_eq!(rig.get(STATUS_C), 0);
    assert_eq!(rig.get(STATUS_D), D_VALID);
}

#[test]
fn a_second_that_passes_between_reads_is_not_seen_by_halves() {
    let mut rig = rig(LEAP);
    assert_eq!(rig.get(SECONDS), 0x59);
    rig.1.fetch_add(1, Ordering::Relaxed);
    assert_eq!((rig.get(MINUTES), rig.get(DAY)), (0x59, 0x29));
    assert_eq!((rig.get(SECONDS), rig.get(MINUTES), rig.get(DAY), rig.get(MONTH)), (0, 0, 0x01, 0x03));
    rig.1.fetch_add(60, Ordering::Relaxed);
    assert_eq!(rig.get(MINUTES), 0x01, "a guest that never reads seconds sees time pass");
}

#[test]
fn the_guest_sets_its_clock_and_the_clock_goes_on() {
    let mut rig = rig(LEAP);
    let b = rig.get(STATUS_B);
    rig.set(STATUS_B, b | B_SET);
    for (register, value) in TIME.into_iter().zip([0x30, 0x45, 0x06, 1, 0x15, 0x08, 0x31, 0x20]) {
        rig.set(register, value);
    }
    rig.1.fetch_add(5, Ordering::Relaxed);
    assert_eq!(rig.get(SECONDS), 0x30, "SET holds the registers still");
    rig.set(STATUS_B, b);
    rig.1.fetch_add(3600, Ordering::Relaxed);
    assert_eq!(rig.time(), [0x30, 0x45, 0x07, 6, 0x15, 0x08, 0x31, 0x20]);
}

#[test]
fn a_time_register_may_be_written_without_set() {
    let mut rig = rig(LEAP);
    rig.set(YEAR, 0x28);
    assert_eq!(rig.time(), [0x59, 0x59, 0x23, 3, 0x29, 0x02, 0x28, 0x20]);
}

#[test]
fn ram_keeps_what_is_written_and_the_index_cannot_be_read() {
    let mut rig = rig(0);
    rig.set(0x80 | 0x40, 0xa5);
    assert_eq!(rig.get(0x40), 0xa5);
    assert_eq!(rig.get(0x7f), 0);
    let mut both = [0; 2];
    rig.0.read(0, &mut both);
    assert_eq!(both, [0xff, 0]);
}

#[test]
fn a_word_written_to_the_index_port_sets_index_and_data() {
    let mut rig = rig(0);
    rig.0.write(0, &[0x40, 0x77]);
    assert_eq!(rig.get(0x40), 0x77);
}

#[test]
fn a_damaged_state_is_refused_and_changes_nothing() {
    let mut rig = rig(0);
    let good = rig.0.save().unwrap();
    for (field, value) in [
        ("ram", json!("00".repeat(127))),
        ("ram", json!("0")),
        ("frozen", json!(vec![0; 8])),
        ("index", json!(256)),
        ("more", json!(0)),
    ] {
        let mut damaged = good.clone();
        damaged.data[field] = value;
        assert!(matches!(rig.0.load(&damaged), Err(StateError::Damaged { .. })), "{field}");
        assert_eq!(rig.0.save().unwrap(), good);
    }
    for [offset, read_at] in [[i64::MIN, i64::MAX], [i64::MAX, i64::MIN]] {
        let mut odd = good.clone();
        (odd.data["offset"], odd.data["read_at"]) = (offset.into(), read_at.into());
        rig.0.load(&odd).unwrap();
        rig.time();
    }
}

proptest! {
    #[test]
    fn junk_never_panics_and_setting_what_is_read_changes_nothing(
        now in any::<i64>(),
        writes in prop::collection::vec((any::<u8>(), any::<u8>()), 0..64),
        mode in 0u8..4,
    ) {
        let mut rig = rig(now);
        for (index, value) in writes {
            rig.set(index, value);
            rig.get(index);
        }
        rig.set(STATUS_B, mode << 1);
        let time = rig.time();
        rig.set(STATUS_B, mode << 1 | B_SET);
        for (register, value) in TIME.into_iter().zip(time) {
            rig.set(register, value);
        }
        rig.set(STATUS_B, mode << 1);
        prop_assert_eq!(rig.time(), time);
        let mut again = Rtc::new(Box::new(Fixed(rig.1.clone())));
        again.load(&rig.0.save().unwrap()).unwrap();
        prop_assert_eq!(Rig(again, rig.1).time(), time);
    }
}
