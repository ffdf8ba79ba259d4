//! Segments that no honest guest sends, and the exact answers to those that one does.

use std::time::Duration;

use super::peer::{Peer, flow};
use crate::config::Limits;
use crate::tcp::segment::SynOptions;

const OPTIONS: SynOptions = SynOptions { mss: 1000, shift: Some(7) };

#[test]
fn our_syn_names_mss_and_an_unscaled_window() {
    let mut peer = Peer::new(Limits::default());
    let seen = peer.handshake(OPTIONS);
    assert_eq!((seen.mss, seen.shift, seen.window), (Some(1460), Some(7), u16::MAX));
    assert_eq!(peer.hear(), None);
    // The first window behind it is scaled, and larger than that.
    peer.send(b"a");
    assert!(usize::from(peer.one().window) << 7 > usize::from(u16::MAX));
}

#[test]
fn guest_without_window_scale_gets_none() {
    let mut peer = Peer::new(Limits::default());
    let seen = peer.handshake(SynOptions { mss: 1000, shift: None });
    assert_eq!(seen.shift, None);
    peer.host.remote(0).to_guest.extend([1; 100_000]);
    peer.events();
    let sent: usize = peer.hear_all().iter().map(|seen| seen.payload.len()).sum();
    assert_eq!(sent, 60_000, "its window as it is");
}

#[test]
fn data_is_passed_on_and_acknowledged_at_once() {
    let mut peer = Peer::open();
    peer.send(b"hello");
    assert_eq!(peer.host.remote(0).from_guest, b"hello");
    let seen = peer.one();
    assert_eq!((seen.ack, seen.payload.len()), (Some(peer.seq), 0));
    // One acknowledgement for what comes together.
    peer.send(b"a");
    peer.send(b"b");
    assert_eq!(peer.one().ack, Some(peer.seq));
    // The answer carries it.
    peer.send(b"c");
    peer.host.remote(0).to_guest.extend(b"answer");
    peer.events();
    let seen = peer.one();
    assert_eq!((seen.ack, &seen.payload[..]), (Some(peer.seq), &b"answer"[..]));
}

#[test]
fn large_segment_of_the_guest_is_taken_whole() {
    let mut peer = Peer::open();
    let bytes = vec![3; 65_000];
    peer.send(&bytes);
    assert_eq!(peer.host.remote(0).from_guest.len(), 65_000);
    assert_eq!(peer.one().ack, Some(peer.seq));
    assert_eq!(peer.tcp.buffered(), 0, "nothing was copied");
}

#[test]
fn segments_to_the_guest_are_large_if_it_takes_them() {
    let mut peer = Peer::open();
    peer.host.remote(0).to_guest.extend([1; 50_500]);
    peer.events();
    peer.most = 40_999;
    let seen = peer.hear_all();
    let lens: Vec<_> = seen.iter().map(|seen| (seen.payload.len(), seen.gso)).collect();
    assert_eq!(lens, [(40_000, Some(1000)), (10_500, Some(1000))]);
}

#[test]
fn overlap_is_cut_and_a_gap_makes_duplicates() {
    let mut peer = Peer::open();
    peer.send(b"abcdef");
    peer.hear_all();
    let start = peer.seq.back(3);
    peer.say(|said| (said.seq, said.payload) = (start, b"defghi"));
    peer.seq += 3;
    assert_eq!(peer.host.remote(0).from_guest, b"abcdefghi");
    assert_eq!(peer.one().ack, Some(peer.seq));
    // Three segments behind a gap: three acknowledgements, so that the guest sends the missing one again.
    for ahead in 1..=3 {
        let seq = peer.seq + ahead * 10;
        peer.say(|said| (said.seq, said.payload) = (seq, b"later"));
    }
    let seen = peer.hear_all();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|seen| seen.ack == Some(peer.seq) && seen.payload.is_empty()));
    assert_eq!(peer.host.remote(0).from_guest, b"abcdefghi");
}

#[test]
fn old_data_and_probes_are_acknowledged_again() {
    let mut peer = Peer::open();
    peer.send(b"abc");
    peer.hear_all();
    let old = peer.seq.back(3);
    peer.say(|said| (said.seq, said.payload) = (old, b"abc"));
    assert_eq!(peer.one().ack, Some(peer.seq));
    let probe = peer.seq.back(1);
    peer.say(|said| said.seq = probe);
    assert_eq!(peer.one().ack, Some(peer.seq), "a keep-alive");
    let far = peer.seq + (1 << 30);
    peer.say(|said| (said.seq, said.payload) = (far, b"far"));
    assert_eq!(peer.one().ack, Some(peer.seq));
    assert_eq!(peer.host.remote(0).from_guest, b"abc");
}

#[test]
fn acknowledgement_of_the_unsent_is_answered_and_ignored() {
    let mut peer = Peer::open();
    let beyond = peer.ack + 1000;
    peer.say(|said| (said.ack, said.payload) = (Some(beyond), b"data"));
    assert_eq!(peer.one().ack, Some(peer.seq));
    assert_eq!(peer.tcp.len(), 1);
    peer.host.remote(0).to_guest.extend(b"x");
    peer.events();
    assert_eq!(peer.one().seq, peer.ack);
}

#[test]
fn syn_in_an_open_connection_is_challenged() {
    let mut peer = Peer::open();
    peer.say(|said| (said.syn, said.ack) = (Some(OPTIONS), None));
    let seen = peer.one();
    assert_eq!((seen.syn, seen.rst, seen.seq, seen.ack), (false, false, peer.ack, Some(peer.seq)));
    // A guest that has forgotten the connection resets it then, and may use the port again.
    peer.say(|said| (said.rst, said.ack) = (true, None));
    assert_eq!(peer.tcp.len(), 0);
    assert!(peer.host.remote(0).reset);
    peer.handshake(OPTIONS);
}

#[test]
fn reset_counts_only_where_it_is_expected() {
    let mut peer = Peer::open();
    let elsewhere = peer.seq + 1;
    peer.say(|said| (said.rst, said.seq) = (true, elsewhere));
    assert_eq!((peer.one().ack, peer.tcp.len()), (Some(peer.seq), 1));
    let old = peer.seq.back(1);
    peer.say(|said| (said.rst, said.seq) = (true, old));
    assert_eq!((peer.hear(), peer.tcp.len()), (None, 1));
    peer.say(|said| said.rst = true);
    assert_eq!(peer.tcp.len(), 0);
}

#[test]
fn segment_of_no_connection_is_reset() {
    let mut peer = Peer::new(Limits::default());
    peer.say(|_| {});
    let seen = peer.one();
    assert!(seen.rst && seen.seq == peer.ack);
    peer.say(|said| said.rst = true);
    assert_eq!(peer.hear(), None, "never answer a reset");
    peer.say(|said| (said.syn, said.ack) = (Some(OPTIONS), Some(peer_ack())));
    assert!(peer.one().rst, "not a SYN that opens");
    assert!(peer.host.remotes.is_empty());
}

fn peer_ack() -> crate::tcp::seq::Seq {
    crate::tcp::seq::Seq(77)
}

#[test]
fn wrong_answer_to_our_syn_is_reset() {
    let mut peer = Peer::new(Limits::default());
    peer.syn(OPTIONS);
    peer.events();
    let syn = peer.one();
    peer.ack = syn.seq + 2;
    peer.say(|_| {});
    let seen = peer.one();
    assert!(seen.rst && seen.seq == syn.seq + 2);
    assert_eq!(peer.tcp.len(), 1);
    peer.ack = syn.seq + 1;
    peer.send(b"early");
    assert_eq!(peer.host.remote(0).from_guest, b"early");
}

#[test]
fn repeated_syn_gets_the_same_answer() {
    let mut peer = Peer::new(Limits::default());
    peer.syn(OPTIONS);
    peer.events();
    let first = peer.one();
    peer.seq = peer.seq.back(1);
    peer.syn(OPTIONS);
    assert_eq!(peer.one(), first);
    peer.wait(Duration::from_millis(200));
    assert_eq!(peer.one(), first, "unasked, after a while");
    assert_eq!(peer.host.remotes.len(), 1);
}

#[test]
fn retransmissions_back_off_and_end() {
    let mut peer = Peer::open();
    peer.host.remote(0).to_guest.extend(b"data");
    peer.events();
    assert_eq!(peer.one().payload, b"data");
    let began = peer.now;
    let mut times = Vec::new();
    while peer.tcp.len() > 0 {
        let at = peer.tcp.next_timeout().unwrap();
        peer.wait(at - peer.now);
        if let Some(seen) = peer.hear_all().first() {
            times.push((peer.now - began).as_millis());
            assert!(seen.payload == b"data" || seen.rst);
        }
    }
    assert_eq!(times[..4], [200, 600, 1400, 3000]);
    assert!((60_000..300_000).contains(times.last().unwrap()), "{times:?}");
    assert!(peer.host.remote(0).reset);
}

#[test]
fn closed_window_is_probed_and_never_given_up_while_answered() {
    let mut peer = Peer::open();
    peer.say(|said| said.window = 0);
    peer.host.remote(0).to_guest.extend(b"data");
    peer.events();
    assert_eq!(peer.hear(), None);
    for _ in 0..40 {
        let at = peer.tcp.next_timeout().unwrap();
        peer.wait(at - peer.now);
        for probe in peer.hear_all() {
            assert_eq!((probe.seq, probe.payload.len()), (peer.ack.back(1), 0));
            peer.say(|said| said.window = 0);
        }
    }
    assert_eq!(peer.tcp.len(), 1);
    peer.say(|said| said.window = 10);
    assert_eq!(peer.one().payload, b"data");
    // The long pauses between probes are over.
    peer.wait(Duration::from_millis(200));
    assert_eq!(peer.one().payload, b"data");
}

/// Bytes on their way when nothing more comes, with the guest's window at `window`; then the guest acknowledges.
fn round(peer: &mut Peer, window: u16) -> usize {
    peer.events();
    let seen = peer.hear_all();
    let bytes = seen.iter().map(|seen| seen.payload.len()).sum();
    for seen in seen {
        peer.ack = seen.seq + seen.payload.len();
        peer.say(|said| said.window = window);
    }
    bytes
}

#[test]
fn buffer_grows_while_the_window_takes_more() {
    for (window, largest) in [(u16::MAX, 4 << 20), (512, 64 << 10)] {
        let mut peer = Peer::open();
        peer.most = 60_000;
        peer.say(|said| said.window = window);
        peer.host.remote(0).to_guest.extend(vec![9; 30 << 20]);
        let rounds: Vec<_> = (0..16).map(|_| round(&mut peer, window)).collect();
        assert!(rounds.iter().any(|bytes| *bytes > largest / 2), "{rounds:?}");
        assert!(rounds.iter().all(|bytes| *bytes <= largest), "{rounds:?}");
        // The last bytes take the memory with them.
        peer.host.remote(0).to_guest.clear();
        while round(&mut peer, window) > 0 {}
        assert_eq!(peer.tcp.buffered(), 0);
    }
}

#[test]
fn what_came_before_a_failure_of_the_host_still_comes() {
    let mut peer = Peer::open();
    let answer = vec![4; 300_000];
    peer.host.remote(0).to_guest.extend(&answer);
    peer.host.remote(0).error = Some(std::io::ErrorKind::ConnectionReset);
    // A write meets the failure first, as while a guest uploads what the server does not want.
    peer.send(b"too much");
    let mut got = 0;
    while peer.tcp.len() > 0 {
        assert!(peer.host.events().is_empty(), "a broken stream is not watched");
        for seen in peer.hear_all() {
            got += seen.payload.len();
            assert!(!seen.fin, "a failure is no end");
            peer.ack = seen.seq + seen.payload.len();
            peer.say(|_| {});
        }
        peer.send(b"and more");
    }
    assert_eq!(got, answer.len());
    assert!(peer.hear_all().iter().any(|seen| seen.rst));
    assert!(peer.host.remote(0).closed);
    assert_eq!(peer.tcp.buffered(), 0);
}

#[test]
fn late_event_of_a_closed_stream_is_ignored() {
    let mut peer = Peer::open();
    peer.host.remote(0).to_guest.extend(b"data");
    let events = peer.host.events();
    peer.say(|said| said.rst = true);
    peer.flow = flow(4001);
    peer.handshake(OPTIONS);
    for (token, ready) in events {
        peer.tcp.ready(token, ready, &mut peer.host, peer.now);
    }
    assert_eq!(peer.host.remote(1).reads, 0, "the slot has another stream");
}
