//! What a clone has of its own: name, addresses, sockets; and what stays the original's.

use std::path::Path;

use super::CloneArgs;
use super::error::CloneError;
use super::report::Report;
use crate::shown::path as shown;
use crate::spec::{MachineName, NetId, NetLink, NetSpec, PortForward, Spec};

/// The clone's description, as the original's with absolute paths and its disks.
///
/// `runs`: its guest goes on, and keeps the MAC addresses that it knows. What is left out is put down in `report`.
pub(super) fn identity(
    original: &Spec,
    args: &CloneArgs,
    folder: &Path,
    runs: bool,
    report: &mut Report,
) -> Result<Spec, CloneError> {
    let mut spec = original.clone();
    spec.name = Some(args.name.clone());
    spec.uuid = None;
    if args.net.is_empty() {
        keep_nets(&mut spec, args, runs, report)?;
    } else {
        if runs {
            replace_nets(&mut spec, original, args, report)?;
        } else {
            spec.net = args.net.clone();
        }
        replaced(&original.net, args, report);
    }
    for port in &mut spec.port {
        let Some(socket) = &mut port.socket else { continue };
        *socket = folder.join(format!("{}.sock", port.name));
        report.port(&port.name, socket);
    }
    Ok(spec)
}

/// The same as it boots later: with MAC addresses of its own.
pub(super) fn at_next_boot(mut spec: Spec, same_mac: bool) -> Spec {
    if !same_mac {
        spec.net.iter_mut().for_each(|net| net.mac = None);
    }
    spec
}

/// The original's networks, without what the original alone can have.
fn keep_nets(spec: &mut Spec, args: &CloneArgs, runs: bool, report: &mut Report) -> Result<(), CloneError> {
    let ids: Vec<_> = spec.interfaces().map(|(id, _)| id).collect();
    let nets = spec.net.iter_mut().filter(|net| net.link != NetLink::None);
    for (net, id) in nets.zip(ids) {
        if let Some(file) = net.pcap.take() {
            report.left_out(format!(
                "the capture {} is the original's alone; `minivmm capture {} -w FILE` makes one",
                shown(&file),
                args.name
            ));
        }
        match &mut net.link {
            NetLink::User(user) => {
                let forwards = std::mem::take(&mut user.forward);
                forwards.into_iter().for_each(|forward| forward_stays(&forward, args, report));
            }
            _ if runs && !args.same_mac => return Err(shared(&id, &net.link)),
            NetLink::Switch { .. } | NetLink::None => {}
            link => report.left_out(format!(
                "{id} is on {} as the original's, where one of the two can be at a time; `--net` gives it another network",
                words(link)
            )),
        }
        if !runs && !args.same_mac {
            net.mac = None;
        }
    }
    Ok(())
}

fn forward_stays(forward: &PortForward, args: &CloneArgs, report: &mut Report) {
    report.left_out(format!(
        "the forward {forward} stays the original's; `minivmm forward {} HOST:GUEST` adds one",
        args.name
    ));
}

/// Says what of these networks, which others replace, the clone does not have.
fn replaced(nets: &[NetSpec], args: &CloneArgs, report: &mut Report) {
    let forwards = nets.iter().filter_map(NetSpec::user_net).flat_map(|user| &user.forward);
    let is_given = |forward: &&PortForward| {
        args.net.iter().filter_map(NetSpec::user_net).any(|user| user.forward.contains(forward))
    };
    forwards.filter(|forward| !is_given(forward)).for_each(|forward| forward_stays(forward, args, report));
}

/// Other networks for a guest that runs: the same interfaces, with the addresses that the guest knows.
fn replace_nets(
    spec: &mut Spec,
    original: &Spec,
    args: &CloneArgs,
    report: &mut Report,
) -> Result<(), CloneError> {
    let had: Vec<_> = original.interfaces().collect();
    let given: Vec<_> = args.net.iter().filter(|net| net.link != NetLink::None).collect();
    if had.len() != given.len() {
        let has = match had.len() {
            0 => "no network interface".to_owned(),
            1 => "one network interface".to_owned(),
            many => format!("{many} network interfaces"),
        };
        return Err(CloneError::NetCount { has, given: given.len() });
    }
    spec.net.clear();
    for ((id, old), new) in had.into_iter().zip(given) {
        if let (Some(_), Some(mac)) = (new.mac, old.mac) {
            return Err(CloneError::NetMac { id: id.to_string(), mac: mac.to_string() });
        }
        if meets(&old.link, &new.link) && !args.same_mac {
            return Err(shared(&id, &new.link));
        }
        if let (false, Some(mac)) = (matches!(new.link, NetLink::User(_)), old.mac) {
            report.left_out(format!(
                "{id} has the original's MAC address {mac} until the clone reboots, and must not meet it: keep the two apart"
            ));
        }
        spec.net.push(NetSpec { mac: old.mac, mtu: new.mtu.or(old.mtu), id: Some(id), ..new.clone() });
    }
    Ok(())
}

/// Whether two interfaces on these links are on one network for certain.
fn meets(one: &NetLink, other: &NetLink) -> bool {
    match (one, other) {
        (NetLink::Switch { name: one, .. }, NetLink::Switch { name: other, .. }) => one == other,
        (NetLink::User(_), NetLink::User(_)) => false,
        (one, other) => one == other,
    }
}

fn shared(id: &NetId, link: &NetLink) -> CloneError {
    let only = match link {
        NetLink::Switch { .. } => " if the original does not run",
        _ => "",
    };
    // A guest that runs goes on using what its network took from it, which is more on a TAP or a switch than elsewhere.
    let other = match link {
        NetLink::Tap(_) => "--net tap=NAME",
        NetLink::Switch { .. } => "--net switch=NAME",
        _ => "--net user",
    };
    CloneError::SharedNet { id: id.to_string(), link: words(link), other, only }
}

/// Refuses a clone of a machine that runs which would stand on one switch with it.
pub(super) fn check_switches(original: &Spec, clone: &Spec, name: &MachineName) -> Result<(), CloneError> {
    for ((id, old), (_, new)) in original.interfaces().zip(clone.interfaces()) {
        if let NetLink::Switch { name: switch, .. } = &new.link
            && meets(&old.link, &new.link)
        {
            let (id, switch) = (id.to_string(), switch.to_string());
            return Err(CloneError::SameSwitch { id, switch, machine: name.clone() });
        }
    }
    Ok(())
}

fn words(link: &NetLink) -> String {
    match link {
        NetLink::Tap(name) => format!("the TAP {name}"),
        NetLink::Switch { name, .. } => format!("the switch {name}"),
        NetLink::Socket { path, .. } | NetLink::Dgram { local: path, .. } => {
            format!("the socket {}", shown(path))
        }
        link => link.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Command, parse};

    fn args(words: &str) -> CloneArgs {
        let words = ["minivmm", "clone", "vm0", "vm1"].into_iter().chain(words.split_whitespace());
        let Ok(Command::Clone(args)) = parse(words) else { panic!() };
        *args
    }

    fn original(nets: &[&str]) -> Spec {
        let net = nets.iter().map(|text| text.parse().unwrap()).collect();
        let spec = Spec { net, ..Spec::new("/k") }.with_name("vm0".parse().unwrap());
        spec.with_port("name=agent,socket=/a.sock".parse().unwrap()).settled().unwrap()
    }

    fn clone(nets: &[&str], words: &str, runs: bool) -> Result<(Spec, Report), CloneError> {
        let (args, mut report) = (args(words), Report::default());
        let spec = identity(&original(nets), &args, Path::new("/vm1"), runs, &mut report)?;
        Ok((spec, report))
    }

    fn refusal(nets: &[&str], words: &str) -> String {
        clone(nets, words, true).unwrap_err().to_string()
    }

    #[test]
    fn on_a_user_network_a_running_clone_keeps_its_address_until_it_boots_and_nothing_else() {
        let nets = ["user,forward=5555:22,pcap=/c.pcap"];
        let (spec, report) = clone(&nets, "", true).unwrap();
        assert_eq!(spec.name.as_ref().unwrap().as_str(), "vm1");
        assert_eq!(spec.net[0].mac, original(&nets).net[0].mac);
        assert_eq!(spec.net[0].pcap, None);
        assert!(spec.net[0].user_net().unwrap().forward.is_empty());
        assert_eq!(spec.port[0].socket.as_deref(), Some(Path::new("/vm1/agent.sock")));
        let said = report.to_string();
        for word in ["5555:22", "/c.pcap", "forward vm1", "capture vm1", "/vm1/agent.sock"] {
            assert!(said.contains(word), "{word}: {said}");
        }
        let later = at_next_boot(spec.clone(), false).settled().unwrap();
        assert_ne!(later.net[0].mac, spec.net[0].mac);
        assert_eq!(at_next_boot(spec.clone(), true).net[0].mac, spec.net[0].mac);
    }

    #[test]
    fn on_one_network_no_two_guests_run_with_one_address_unless_it_is_said() {
        for (net, other) in [
            ("tap=tap0", "tap=NAME"),
            ("switch=lab", "switch=NAME"),
            ("socket=/s", "user"),
            ("dgram=/a:/b", "user"),
        ] {
            assert!(refusal(&[net], "").contains(&format!("`--net {other}`")), "{net}");
            assert!(refusal(&[net], &format!("--net {net}")).contains("--same-mac"), "{net}");
            assert!(clone(&[net], "--same-mac", true).is_ok(), "{net}");
            let (spec, _) = clone(&[net], "--net user", true).unwrap();
            assert_eq!(spec.net[0].mac, original(&[net]).net[0].mac);
            assert_eq!(spec.net[0].id.as_ref().unwrap().as_str(), "net0");
            // One that is off takes another one.
            assert_eq!(clone(&[net], "", false).unwrap().0.net[0].mac, None);
        }
        let (_, report) = clone(&["switch=lab"], "--net switch=other", true).unwrap();
        assert!(report.to_string().contains("must not meet it"), "{report}");
        assert!(refusal(&["switch=lab,vlan=2"], "--net switch=lab,vlan=3").contains("the switch lab"));
    }

    #[test]
    fn a_switch_has_no_place_for_both_while_the_original_runs() {
        for (nets, words, refused) in [
            (&["switch=lab"], "--same-mac", true),
            (&["switch=lab"], "--same-mac --net switch=lab,vlan=3", true),
            (&["switch=lab"], "--same-mac --net switch=other", false),
            (&["tap=tap0"], "--same-mac", false),
        ] {
            let spec = clone(nets, words, true).unwrap().0;
            let checked = check_switches(&original(nets), &spec, &"vm0".parse().unwrap());
            assert_eq!(checked.is_err(), refused, "{words}");
            assert!(checked.err().is_none_or(|error| error.to_string().contains("the switch lab with vm0")));
        }
        assert!(refusal(&["switch=lab"], "").contains("`--same-mac` if the original does not run"));
    }

    #[test]
    fn forwards_of_a_network_that_another_one_replaces_are_said() {
        for runs in [true, false] {
            for net in ["user", "tap=tap9", "user,forward=6666:22"] {
                let said =
                    clone(&["user,forward=5555:22"], &format!("--net {net}"), runs).unwrap().1.to_string();
                assert!(said.contains("5555:22 stays the original's"), "{net}: {said}");
                assert!(!said.contains("6666:22"), "{net}: {said}");
            }
        }
    }

    #[test]
    fn a_guest_that_runs_has_the_interfaces_that_it_had() {
        assert!(refusal(&["user", "tap=tap0"], "--net user").contains("has 2 network interfaces"));
        assert!(refusal(&["none"], "--net user").contains("no network interface"));
        assert!(refusal(&["tap=tap0"], "--net user,mac=02:00:00:00:00:09").contains("leave out `mac=`"));
        assert_eq!(clone(&["user"], "--net tap=tap9", false).unwrap().0.net[0].link.kind(), "tap");
    }
}
