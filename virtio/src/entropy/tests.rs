use super::*;
use crate::testing::Guest;

fn guest(device: Entropy) -> Guest<Epoll> {
    Guest::new(Box::new(device), Box::new(Epoll::new))
}

#[test]
fn a_request_is_filled_whole_and_never_twice_the_same() {
    let mut guest = guest(Entropy::new("rng"));
    guest.start(u64::MAX, 8);
    let (used, first) = guest.request(0, &[], &[64, 8000]);
    assert_eq!(used.len, 8064);
    let (_, second) = guest.request(0, &[], &[64]);
    assert_ne!(first[0], second[0]);
    assert!(first[1].chunks(1000).all(|part| part.iter().any(|byte| *byte != 0xee)));
    let counters = guest.counters();
    assert_eq!((counters.requests.now(), counters.bytes_in.now(), counters.errors.now()), (2, 8128, 0));
}

#[test]
fn a_request_for_too_much_gets_a_short_answer() {
    let mut guest = guest(Entropy::new("rng"));
    guest.start(0, 8);
    let (used, _) = guest.request(0, &[], &[1 << 20, 1 << 20]);
    assert_eq!(u64::from(used.len), MOST_BYTES);
}

#[test]
fn a_greedy_guest_is_served_at_the_rate_and_not_faster() {
    let mut guest = guest(Entropy::with_source("rng", |bytes| {
        bytes.fill(7);
        Ok(())
    }));
    guest.start(0, 8);
    let start = Instant::now();
    for _ in 0..6 {
        guest.request(0, &[], &[64 << 10]);
    }
    // 384 KiB, of which the first 128 KiB come at once; the rest at 1 MiB/s.
    assert!(start.elapsed().as_millis() >= 240, "{:?}", start.elapsed());
}

#[test]
fn requests_of_nothing_cost_too() {
    let mut guest = guest(Entropy::new("rng"));
    guest.start(0, 8);
    let start = Instant::now();
    for _ in 0..512 {
        guest.request(0, &[b"?"], &[]);
    }
    assert!(start.elapsed().as_millis() >= 120, "{:?}", start.elapsed());
}

#[test]
fn a_host_without_random_bytes_gives_an_empty_answer() {
    let mut guest = guest(Entropy::with_source("rng", |_| Err(io::ErrorKind::Unsupported.into())));
    guest.start(0, 8);
    assert_eq!(guest.request(0, &[], &[64]).0.len, 0);
    assert_eq!(guest.counters().errors.now(), 1);
}

#[test]
fn requests_that_wait_survive_a_reset_of_their_queue() {
    let mut guest = guest(Entropy::new("rng"));
    guest.start(0, 8);
    for _ in 0..8 {
        guest.add(0, &[], &[64 << 10]);
    }
    guest.kick(0);
    guest.start(0, 8);
    assert_eq!(guest.request(0, &[], &[64]).0.len, 64);
}
