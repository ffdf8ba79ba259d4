use std::time::Duration;

use super::*;
use crate::testing::Guest;
use crate::transport::VirtioFunction;

const STATISTICS: usize = 2;

fn guest(control: &BalloonControl) -> Guest<Epoll> {
    let guest = Guest::new(Box::new(Balloon::new("balloon", control)), Box::new(Epoll::new));
    control.attach(guest.handle());
    guest
}

fn numbers(pages: impl IntoIterator<Item = u32>) -> Vec<u8> {
    pages.into_iter().flat_map(u32::to_le_bytes).collect()
}

fn entries(entries: &[(u16, u64)]) -> Vec<u8> {
    entries.iter().flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()).collect()
}

#[test]
fn inflated_pages_leave_the_host_and_neighbours_leave_together() {
    let mut guest = guest(&BalloonControl::new(0));
    guest.start(u64::MAX, 8);
    guest.request(0, &[&numbers((0x200..0x300).rev()), &numbers([0x300, 7])], &[]);
    assert_eq!(guest.discards.all(), [(7 << 12, 1 << 12), (0x200 << 12, 0x101 << 12)]);
    // Deflating is the guest's business alone.
    guest.request(1, &[&numbers(0x200..0x300)], &[]);
    assert_eq!(guest.discards.all().len(), 2);
    let counters = guest.counters();
    assert_eq!((counters.bytes_out.now(), counters.bytes_in.now()), (0x102 << 12, 0x100 << 12));
    assert_eq!((counters.requests.now(), counters.errors.now()), (2, 0));
}

#[test]
fn page_numbers_of_any_value_and_buffers_of_any_length_are_survived() {
    let mut guest = guest(&BalloonControl::new(0));
    guest.start(u64::MAX, 8);
    guest.request(0, &[&numbers([u32::MAX, 0, u32::MAX]), &[1, 2, 3]], &[16]);
    guest.request(0, &[&numbers(0..100_000)], &[]);
    guest.request(0, &[], &[16]);
    let discards = guest.discards.all();
    assert_eq!(discards[..2], [(0, 4096), (0xffff_ffff << 12, 4096)]);
    assert!(discards.iter().map(|(_, len)| len >> 12).sum::<u64>() <= 2 * pages::MOST_PAGES as u64);
}

#[test]
fn reported_ranges_leave_the_host_on_whichever_queue_they_come() {
    for (features, queue) in [(u64::MAX, 3), (u64::MAX, 4), (!STATS_VQ, 2), (!STATS_VQ, 4)] {
        let mut guest = guest(&BalloonControl::new(0));
        guest.start(features, 8);
        let (_, ranges) = guest.add(queue, &[], &[2 << 20, 1 << 20]);
        guest.kick(queue);
        assert_eq!(guest.rings[queue].wait_used().len, 0);
        assert_eq!(guest.discards.all(), [(ranges[0], 2 << 20), (ranges[1], 1 << 20)]);
    }
}

#[test]
fn target_reaches_the_guest_before_and_while_it_runs() {
    let control = BalloonControl::new(3);
    let mut guest = guest(&control);
    guest.start(u64::MAX, 8);
    assert_eq!(guest.config(0, 4), (3u32 * 256).to_le_bytes());
    let before = guest.config_interrupts();
    set_target(&control, 5);
    assert_eq!(control.target(), 5);
    guest.wait_until("the guest is told", |guest| guest.config_interrupts() == before + 1);
    assert_eq!(guest.config(0, 4), (5u32 * 256).to_le_bytes());
    set_target(&control, u64::MAX);
    guest.wait_until("the next is told", |guest| guest.config(0, 4) == [0xff; 4]);
}

#[test]
fn guest_says_its_actual_size_and_cannot_change_its_target() {
    let control = BalloonControl::new(1);
    let mut guest = guest(&control);
    guest.start(u64::MAX, 8);
    guest.set_config(4, &256u32.to_le_bytes());
    guest.set_config(0, &9u32.to_le_bytes());
    assert_eq!((control.target(), control.actual()), (1, 1 << 20));
    guest.reset();
    assert_eq!((control.target(), control.actual()), (1, 0));
    let next = Balloon::new("balloon", &control);
    assert_eq!(next.config.read_u32(TARGET), 256);
}

#[test]
fn statistics_come_when_they_are_asked_for() {
    let control = BalloonControl::new(0);
    let mut guest = guest(&control);
    guest.start(u64::MAX, 8);
    assert_eq!(control.statistics(), None);
    guest.add(STATISTICS, &[&entries(&[(4, 1000), (5, 2000), (99, 1)])], &[]);
    guest.kick(STATISTICS);
    guest.wait_until("the first ones", |_| control.statistics().is_some());
    let first = control.statistics().unwrap();
    assert_eq!((first.free, first.total, first.swap_in), (Some(1000), Some(2000), None));
    assert_eq!(guest.rings[STATISTICS].poll_used(), None, "the buffer stays until it is wanted");

    let asking = std::thread::spawn({
        let control = control.clone();
        move || control.fresh_statistics(Duration::from_secs(60))
    });
    guest.rings[STATISTICS].wait_used();
    guest.add(STATISTICS, &[&entries(&[(4, 900)])[..], &[1, 2]], &[]);
    guest.kick(STATISTICS);
    assert_eq!(asking.join().unwrap().unwrap().free, Some(900));
    assert_eq!(control.fresh_statistics(Duration::from_millis(20)), None, "a guest that does not answer");
}

#[test]
fn statistics_wanted_before_the_guest_is_there_come_with_it() {
    let control = BalloonControl::new(0);
    control.request_statistics();
    let mut guest = guest(&control);
    guest.start(u64::MAX, 8);
    guest.add(STATISTICS, &[&entries(&[(4, 1)])], &[]);
    guest.kick(STATISTICS);
    guest.wait_until("statistics", |_| control.statistics().is_some());
}

#[test]
fn control_keeps_nothing_of_a_device_that_is_gone() {
    let control = BalloonControl::new(2);
    let mut guest = guest(&control);
    guest.set_config(4, &[0, 1, 0, 0]);
    assert_eq!(control.actual(), 1 << 20);
    drop(guest);
    assert_eq!((control.target(), control.actual()), (2, 0));
    set_target(&control, 3);
    let asked = Instant::now();
    assert_eq!(control.fresh_statistics(Duration::from_secs(60)), None);
    assert!(asked.elapsed() < Duration::from_secs(30), "it waited for a guest that is gone");
    let next = self::guest(&control);
    assert_eq!(next.function().info().config.read_u32(TARGET), 3 * 256);
}

#[test]
fn target_that_was_set_while_a_boot_was_made_reaches_it() {
    let control = BalloonControl::new(2);
    let guest = Guest::new(Box::new(Balloon::new("balloon", &control)), Box::new(Epoll::new));
    set_target(&control, 3);
    control.attach(guest.handle());
    assert_eq!(guest.function().info().config.read_u32(TARGET), 3 * 256);
}

#[test]
fn balloon_is_loaded_with_its_size() {
    let control = BalloonControl::new(7);
    let balloon = Balloon::new("balloon", &control);
    balloon.config.set(ACTUAL, &[0, 4, 0, 0]);
    let state = balloon.save().unwrap();
    let control = BalloonControl::new(0);
    let mut other = Balloon::new("balloon", &control);
    other.load(&state).unwrap();
    assert_eq!((control.target(), other.save().unwrap()), (7, state.clone()));
    assert!(other.load(&State { version: 2, ..state.clone() }).is_err());
    assert!(other.load(&State { data: serde_json::json!({ "target": -1 }), ..state }).is_err());
}
