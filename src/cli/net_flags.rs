//! The flags for network interfaces: `--net` and `--tap` in the order of the command line, and `-p`.

use clap::ArgMatches;
use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::spec::{NetLink, NetSpec, PortForward, Spec};

/// The flags.
// The first paragraph of a field's comment is its line in `--help`; the rest is for the manual page and docs/reference.md.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct NetFlags {
    /// Network: user, switch=, tap=, socket=, none
    ///
    /// Written as `KIND[,OPTION]...`, once for each interface, in the guest's order. `user`: a network of the guest's own, which
    /// reaches others through the host's sockets; a machine of which no network is said has this one (`run` has none).
    /// `switch=NAME`: a virtual switch of this user, which is started if it does not run. `tap=NAME`: a TAP that exists and belongs
    /// to this user or group. `socket=PATH`: a Unix stream socket, as QEMU's `-netdev stream`; with `,listen` the machine makes it.
    /// `dgram=LOCAL:REMOTE`: two Unix datagram sockets. `none`: no network. All kinds: `mac=ADDRESS`, `mtu=BYTES`, `pcap=FILE` (a
    /// copy of every frame), `id=NAME`. `user` also: `subnet=10.0.2.0/24`, `host-loopback=on` (the gateway's address leads to the
    /// host's 127.0.0.1), `restrict=on` (only forwards pass), `hostname=NAME`. `switch` also: `vlan=2` (the port is in one VLAN),
    /// `trunk=2+3` or `trunk=all` (frames are tagged), `isolated` (no frames to other isolated ports), `secure=on` (only frames from
    /// the guest's own address), `delay=20ms`, `jitter=5ms`, `loss=1%` and `rate=10mbit` in both directions, or in one of them as
    /// `delay-in=` (to the guest) and `delay-out=`. A comma in a path is written twice.
    #[arg(long, value_name = "KIND", value_parser = OsStringValueParser::new().try_map(|text| NetSpec::parse(&text)))]
    net: Vec<NetSpec>,

    /// Network interface on this TAP: --net tap=NAME
    ///
    /// The default address on tapN is ba:ad:00:ca:fe:00 plus N. On another TAP, and on another kind of network, it is computed
    /// from the host's machine-id, the machine's name (without one, the first disk's path, or the kernel's and the current folder)
    /// and the TAP's name or the interface's id, and is the same at each start.
    #[arg(long, value_name = "NAME", hide_short_help = true, value_parser = OsStringValueParser::new().try_map(|text| NetSpec::parse_tap(&text)))]
    tap: Vec<NetSpec>,

    /// Forward a port of the host to the guest: 5555:22
    ///
    /// Written as `[ADDRESS:]HOST:GUEST[/udp]`, once for each port; an IPv6 address is in brackets. The host listens on 127.0.0.1
    /// unless there is an address. HOST 0 is any free port, which the banner shows. It belongs to the first user network; a
    /// machine without one gets one.
    #[arg(short = 'p', long, value_name = "HOST:GUEST")]
    publish: Vec<PortForward>,
}

impl NetFlags {
    /// Changes `spec` as the flags say. Interfaces replace those of a file, forwards come on top.
    pub(super) fn apply(self, matches: &ArgMatches, spec: &mut Spec) {
        let position = |flag| matches.indices_of(flag).into_iter().flatten();
        let mut nets: Vec<_> = position("net").zip(self.net).chain(position("tap").zip(self.tap)).collect();
        if !nets.is_empty() {
            nets.sort_by_key(|(at, _)| *at);
            spec.net = nets.into_iter().map(|(_, net)| net).collect();
        }
        if self.publish.is_empty() {
            return;
        }
        let is_user = |net: &NetSpec| net.user_net().is_some();
        if !spec.net.iter().any(is_user) {
            spec.net.push(NetSpec::user());
        }
        if let Some(NetLink::User(user)) =
            spec.net.iter_mut().find(|net| is_user(net)).map(|net| &mut net.link)
        {
            user.forward.extend(self.publish);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::args::{ArgsError, Command, parse};
    use crate::spec::NetSpec;

    /// The networks of a machine with these flags.
    fn nets(words: &str) -> Result<Vec<NetSpec>, ArgsError> {
        let words = ["minivmm", "--kernel", "k"].into_iter().chain(words.split_whitespace());
        let Command::Run(spec, _) = parse(words)? else { panic!("no machine") };
        Ok(spec.net)
    }

    fn parsed(texts: &[&str]) -> Vec<NetSpec> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn interfaces_are_in_the_order_of_the_command_line() {
        let words = "--tap tap2 --net socket=a --tap x,mtu=1400 --net user,restrict=on";
        assert_eq!(
            nets(words).unwrap(),
            parsed(&["tap=tap2", "socket=a", "tap=x,mtu=1400", "user,restrict=on"])
        );
    }

    #[test]
    fn a_switch_has_its_options_behind_its_name() {
        let words = "--net switch=lab,trunk=2,3,delay=20ms --net switch=lab,vlan=4,isolated -p 1:2";
        assert_eq!(
            nets(words).unwrap(),
            parsed(&["switch=lab,trunk=2+3,delay=20ms", "switch=lab,vlan=4,isolated=on", "user,forward=1:2"])
        );
        let error = nets("--net switch=show").unwrap_err().to_string();
        assert!(error.contains("a word of `minivmm switch`"), "{error}");
    }

    #[test]
    fn forwards_belong_to_the_first_user_network_or_make_one() {
        assert_eq!(nets("-p 5555:22").unwrap(), parsed(&["user,forward=5555:22"]));
        assert_eq!(
            nets("-p 1:2 --net user --publish 0:3/udp --tap t --net user").unwrap(),
            parsed(&["user,forward=1:2,forward=0:3/udp", "tap=t", "user"])
        );
        assert_eq!(nets("--tap t -p 1:2").unwrap(), parsed(&["tap=t", "user,forward=1:2"]));
        let error = nets("-p 22").unwrap_err().to_string();
        assert!(error.contains("`5555:22`") && error.contains("--publish"), "{error}");
    }

    #[test]
    fn a_machine_of_which_no_network_is_said_has_a_user_network() {
        assert_eq!(nets("").unwrap(), parsed(&["user"]));
        assert_eq!(nets("--net none").unwrap(), parsed(&["none"]));
        assert_eq!(nets("--tap t").unwrap(), parsed(&["tap=t"]));
        let Ok(Command::RunCommand(_, spec)) = parse(["minivmm", "run", "--kernel", "k", "true"]) else {
            panic!()
        };
        assert_eq!(spec.net, []);
        let words = ["minivmm", "run", "--kernel", "k", "-p", "1:2", "--", "true", "-p", "3:4"];
        let Ok(Command::RunCommand(_, spec)) = parse(words) else { panic!() };
        assert_eq!(spec.net, parsed(&["user,forward=1:2"]));
    }

    #[test]
    fn flags_replace_the_files_networks_and_forwards_come_on_top() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vm.toml");
        let with = |text: &str, words: &str| {
            std::fs::write(&file, text).unwrap();
            nets(&format!("--config {} {words}", file.display())).unwrap()
        };
        assert_eq!(with("mem = 5", ""), parsed(&["user"]));
        assert_eq!(with("net = []", ""), parsed(&["none"]));
        assert_eq!(with("tap = 'tap2'", ""), parsed(&["tap=tap2"]));
        assert_eq!(with("tap = 'tap2'", "--net socket=a"), parsed(&["socket=a"]));
        assert_eq!(with("net = 'user,forward=1:2'", "-p 3:4"), parsed(&["user,forward=1:2,forward=3:4"]));
        assert_eq!(
            with("net = [{ switch = 'lab', vlan = 2 }, { switch = 'lab', trunk = [2, 3], loss = '1%' }]", ""),
            parsed(&["switch=lab,vlan=2", "switch=lab,trunk=2+3,loss=1%"])
        );
        assert_eq!(with("tap = 'tap2'", "-p 3:4"), parsed(&["tap=tap2", "user,forward=3:4"]));
    }
}
