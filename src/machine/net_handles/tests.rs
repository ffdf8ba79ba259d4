use std::net::TcpStream;
use std::time::Duration;

use super::*;

fn handles(user: [bool; 3]) -> NetHandles {
    let nets = (0..).zip(user).map(|(index, user)| {
        let forwards = user.then(|| (Ports::default(), Vec::new()));
        Arc::new(NetHandle::new(NetId::numbered(index), forwards))
    });
    NetHandles::new(nets, Publisher::default())
}

fn free() -> PortForward {
    "0:22".parse().unwrap()
}

#[test]
fn forward_is_had_listed_and_removed_by_the_port_that_the_host_gave() {
    let nets = handles([false, true, false]);
    let events = nets.publisher.listen();
    let (first, second) = (nets.add_forward(None, free()).unwrap(), nets.add_forward(Some("net1"), free()));
    let second = second.unwrap();
    assert_eq!(nets.forwards(), [first.clone(), second.clone()]);
    assert_eq!(first.net.as_str(), "net1");
    TcpStream::connect(first.address).unwrap();
    // Both were asked for so.
    let unclear = nets.remove_forward(None, free()).unwrap_err().to_string();
    let (one, two) = (first.settled(), second.settled());
    assert_eq!(
        unclear,
        format!("0:22 is no forward of network interface net1; its forwards are: {one}, {two}")
    );
    assert_eq!(nets.remove_forward(None, first.settled()).unwrap(), first);
    assert!(TcpStream::connect(first.address).is_err());
    TcpStream::connect(second.address).unwrap();
    let written: PortForward = format!("127.0.0.1:{}:22", second.address.port()).parse().unwrap();
    assert!(nets.remove_forward(None, PortForward { guest: 23, ..written }).is_err());
    assert_eq!(nets.remove_forward(None, written).unwrap(), second);
    assert_eq!(nets.forwards(), []);
    let heard: Vec<_> = (0..4).map(|_| events.next_within(Duration::from_secs(60)).unwrap()).collect();
    let added = |bound: &BoundForward| MachineEvent::ForwardAdded(bound.clone());
    let removed = |bound: &BoundForward| MachineEvent::ForwardRemoved(bound.clone());
    assert_eq!(heard, [added(&first), added(&second), removed(&first), removed(&second)]);
}

#[test]
fn port_that_is_taken_names_its_forward_or_its_owner() {
    let nets = handles([false, true, false]);
    let bound = nets.add_forward(None, free()).unwrap();
    let again = PortForward { guest: 80, ..bound.settled() };
    let error = nets.add_forward(None, again).unwrap_err().to_string();
    let (address, settled) = (bound.address, bound.settled());
    assert_eq!(
        error,
        format!("{address} leads to port 22 of the guest already; remove that forward first (`{settled}`)")
    );
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = PortForward { host: held.local_addr().unwrap().port(), ..free() };
    let error = nets.add_forward(None, taken).unwrap_err().to_string();
    assert!(error.contains(&format!("(process {})", std::process::id())), "{error}");
    assert!(error.ends_with("any that is free (`0:22`)"), "{error}");
    assert_eq!(nets.forwards(), [bound]);
}

#[test]
fn interface_that_is_meant_is_the_only_one_or_has_to_be_named() {
    let says = |nets: &NetHandles, id| nets.add_forward(id, free()).unwrap_err().to_string();
    let none = handles([false; 3]);
    assert!(says(&none, None).ends_with("`--net user` gives it one"));
    assert!(says(&none, Some("net0")).ends_with("the machine has none (`--net user` gives it one)"));
    assert!(
        says(&none, Some("x")).ends_with("no network interface \"x\"; its interfaces are: net0, net1, net2")
    );
    let two = handles([true, false, true]);
    assert!(says(&two, None).ends_with("user networks: net0, net2; say which (`--net net0`)"));
    assert!(says(&two, Some("net1")).ends_with("its user networks are: net0, net2"));
    let bound = two.add_forward(Some("net2"), free()).unwrap();
    assert_eq!(two.forwards_of(Some("net0")).unwrap(), []);
    assert_eq!(two.forwards_of(Some("net2")).unwrap(), [bound]);
    let listed = |id| two.forwards_of(Some(id)).unwrap_err().to_string();
    assert!(
        listed("net1").contains("is no user network") && listed("x").contains("no network interface \"x\"")
    );
    let several = two.capture(None, CaptureLimits::default()).unwrap_err().to_string();
    assert!(several.contains("several network interfaces: net0, net1, net2"), "{several}");
    assert!(two.capture(Some("net1"), CaptureLimits::default()).is_ok());
    let nothing = NetHandles::new(std::iter::empty(), Publisher::default());
    assert!(says(&nothing, Some("net0")).ends_with("it has none"));
    assert!(nothing.capture(None, CaptureLimits::default()).is_err());
}

#[test]
fn nothing_is_open_once_the_machine_has_ended() {
    let nets = handles([true, false, false]);
    let bound = nets.add_forward(None, free()).unwrap();
    let mut capture = nets.capture(Some("net0"), CaptureLimits::default()).unwrap();
    nets.close();
    assert!(TcpStream::connect(bound.address).is_err());
    assert!(matches!(nets.add_forward(None, free()), Err(NetError::Ended)));
    assert!(matches!(nets.remove_forward(None, bound.settled()), Err(NetError::Ended)));
    assert!(matches!(nets.capture(Some("net0"), CaptureLimits::default()), Err(NetError::Ended)));
    assert_eq!(nets.forwards(), []);
    // The header and the statistics, and no wait for frames.
    let mut buffer = Vec::new();
    for _ in 0..2 {
        assert_eq!(capture.next(&mut buffer, Duration::MAX), crate::host::capture::StreamState::Bytes);
    }
    assert_eq!(capture.next(&mut buffer, Duration::MAX), crate::host::capture::StreamState::Ended);
}

#[test]
fn forwards_and_captures_are_limited() {
    let nets = handles([true, false, false]);
    let captures: Vec<_> =
        std::iter::repeat_with(|| nets.capture(Some("net0"), CaptureLimits::default())).take(8).collect();
    assert!(captures.iter().all(Result::is_ok));
    let ninth = nets.capture(Some("net0"), CaptureLimits::default());
    assert!(matches!(ninth, Err(NetError::TooManyCaptures(8))));
    assert!(nets.capture(Some("net1"), CaptureLimits::default()).is_ok());
    drop(captures);
    assert!(nets.capture(Some("net0"), CaptureLimits::default()).is_ok());
    let all: Vec<_> = std::iter::repeat_with(|| nets.add_forward(None, free())).take(MOST_FORWARDS).collect();
    assert!(all.iter().all(Result::is_ok));
    assert!(matches!(nets.add_forward(None, free()), Err(NetError::TooManyForwards(MOST_FORWARDS))));
}
