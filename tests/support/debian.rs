//! vm0, the Debian of `make image`, booted by minivmm in a lab that has Debian's programs: its console, its networks.

#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::OnceLock;
use std::time::Duration;

use lab::{Cmd, Lab, LabConfig, LabKind, Output, Process, Status};

/// Time for systemd to get to a login under two emulations: a minute of a processor, which a busy machine may take long to give.
pub(crate) const BOOT: Duration = Duration::from_secs(480);
/// Time for a guest that is up to answer.
pub(crate) const SOON: Duration = Duration::from_secs(90);
/// The values that the guide computes before it boots the machine on tap2.
pub(crate) const MAC: &str = "ba:ad:00:ca:fe:02";
pub(crate) const LINK_LOCAL: &str = "fe80::b8ad:ff:feca:fe02";
/// As a user whose only right is group kvm.
pub(crate) const AS_USER: &str = "setpriv --reuid 1000 --regid 1000 --groups 101 --bounding-set -all --inh-caps -all \
                                  --ambient-caps -all --no-new-privs --";

/// The lab that the tests of this file share. Its working directory holds minivmm and vm0, to write to.
pub(crate) fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| {
        let config = LabConfig::default().debian().file(env!("CARGO_BIN_EXE_minivmm"), "minivmm");
        let lab = Lab::start(&config).unwrap();
        // The images are the courses' user's.
        lab.sh("chown 1000:1000 . vm0.raw vm0-whole.raw cloud.qcow2").unwrap();
        lab
    })
}

/// A Debian, logged in as root on its console.
#[derive(Debug)]
pub(crate) struct Guest {
    console: Process,
}

impl Guest {
    /// Starts the shell line, waits for the login on its terminal, logs in as etu and becomes root.
    #[track_caller]
    pub(crate) fn start(line: &str) -> Self {
        let console = lab().spawn(&Cmd::sh(format!("exec {line}")).tty()).unwrap();
        let mut guest = Guest { console };
        guest.log_in();
        guest
    }

    /// Starts the shell line, which gives the console of a machine that is there already, where root's shell waits. It answers with
    /// `word`, which nobody has said before.
    #[track_caller]
    pub(crate) fn go_on(line: &str, word: &str) -> Self {
        Self::of(lab().spawn(&Cmd::sh(format!("exec {line}")).tty()).unwrap(), word)
    }

    /// The same for a process that is such a console.
    #[track_caller]
    pub(crate) fn of(console: Process, word: &str) -> Self {
        let mut guest = Guest { console };
        guest.says(word);
        guest
    }

    /// Root's shell answers with `word`, which nobody has said before.
    #[track_caller]
    pub(crate) fn says(&mut self, word: &str) {
        let (begin, end) = word.split_at(1);
        self.console.send(format!("echo {begin}''{end}\n")).unwrap();
        self.console.expect(word, SOON).unwrap();
    }

    /// Starts the shell line, whose kernel has `init=/bin/sh`: root's shell at once, and a root file system that is not written to.
    #[track_caller]
    pub(crate) fn start_shell(line: &str) -> Self {
        let mut console = lab().spawn(&Cmd::sh(format!("exec {line}")).tty()).unwrap();
        console.expect("job control turned off", BOOT).unwrap();
        console.send("PS1= PS2=\n").unwrap();
        let mut guest = Guest { console };
        guest.quiet_shell();
        guest
    }

    #[track_caller]
    fn log_in(&mut self) {
        let console = &mut self.console;
        console.expect("vm0 login: ", BOOT).unwrap();
        for (answer, question) in [("etu", "Password: "), ("-etu-", "etu@vm0:~$ ")] {
            console.send(format!("{answer}\n")).unwrap();
            console.expect(question, SOON).unwrap();
        }
        console.send("echo -etu- | sudo -S -p '' true && exec sudo env PS1= PS2= sh\n").unwrap();
        self.quiet_shell();
    }

    /// From here on root's shell says only what commands say.
    #[track_caller]
    fn quiet_shell(&mut self) {
        // The kernel keeps to its log. Echoed, the word does not read so.
        self.console.send("dmesg -n 1; stty -echo cols 999; echo 'root-'shell\n").unwrap();
        self.console.expect("root-shell", SOON).unwrap();
    }

    /// Sends it round by systemd, and logs in again.
    #[track_caller]
    pub(crate) fn reboot(&mut self) {
        self.console.send("systemctl reboot\n").unwrap();
        self.log_in();
    }

    /// The output of minivmm before the guest's.
    #[track_caller]
    pub(crate) fn banner_says(&self, lines: &[&str]) {
        banner_says(&self.console, lines);
    }

    /// Runs a shell line as root, which must succeed; returns its output.
    #[track_caller]
    pub(crate) fn sh(&mut self, line: &str) -> String {
        self.sh_within(line, SOON)
    }

    #[track_caller]
    pub(crate) fn sh_within(&mut self, line: &str, limit: Duration) -> String {
        self.begin(line);
        self.finish(line, limit)
    }

    /// Begins with a shell line; [`Self::finish`] waits for its end.
    #[track_caller]
    pub(crate) fn begin(&mut self, line: &str) {
        self.console.send(format!("( {line}\n) 2>&1; echo \"status=$?.\"\n")).unwrap();
    }

    /// The output of the line that was begun, from what was last waited for; it must succeed.
    #[track_caller]
    pub(crate) fn finish(&mut self, line: &str, limit: Duration) -> String {
        let mut said = self.console.expect("status=", limit).unwrap();
        said.truncate(said.len() - "status=".len());
        let status = self.console.expect(".", SOON).unwrap();
        // The end of the line before is still unread.
        let said = said.trim_start_matches(['\r', '\n']).replace("\r\n", "\n");
        assert_eq!(status, "0.", "{line}: {said}");
        said
    }

    /// Sends it to its end by systemd, and gives how minivmm ended.
    #[track_caller]
    pub(crate) fn power_off(mut self) -> Output {
        self.console.send("systemctl poweroff\n").unwrap();
        let out = self.console.wait(SOON).unwrap();
        assert_eq!(out.status, Status::Exited(0), "{}", out.text());
        out
    }

    /// Makes the programs on the disk of the lab's tools ready for [`in_tools`].
    #[track_caller]
    pub(crate) fn mount_tools(&mut self, disk: &str) {
        self.sh(&format!(
            "mount -o ro {disk} /mnt; for d in dev proc sys; do mount --bind /$d /mnt/$d; done; mount -t tmpfs t /mnt/tmp"
        ));
    }

    /// Waits until it has printed `words`.
    #[track_caller]
    pub(crate) fn expect(&mut self, words: &str, limit: Duration) {
        self.console.expect(words, limit).unwrap();
    }

    /// Kills minivmm.
    #[track_caller]
    pub(crate) fn kill(mut self) {
        self.console.signal(9).unwrap();
        self.console.wait(SOON).unwrap();
    }

    /// Waits until the machine has ended by itself.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Output {
        self.console.wait(SOON).unwrap()
    }

    /// systemd has nothing more to start, and nothing failed.
    #[track_caller]
    pub(crate) fn is_healthy(&mut self) {
        let state = self.sh("systemctl is-system-running --wait || systemctl --failed --no-pager");
        assert!(state.trim() == "running", "{state}");
        assert_eq!(self.sh("systemctl is-active multi-user.target").trim(), "active");
    }
}

/// The shell line that runs `command` with the lab's tools in a guest that has them mounted.
pub(crate) fn in_tools(command: &str) -> String {
    format!("chroot /mnt sh -c 'cd /tmp && {command}'")
}

/// Lines of the banner begin so.
#[track_caller]
pub(crate) fn banner_says(console: &Process, lines: &[&str]) {
    let text = console.so_far();
    for line in lines {
        let said =
            text.lines().any(|said| said.strip_prefix("~> ").is_some_and(|said| said.starts_with(line)));
        assert!(said, "the banner does not say {line:?}: {text}");
    }
}

/// A TAP for group kvm, as the courses make it; gone with this value, as is all that was put behind it.
#[derive(Debug)]
pub(crate) struct Tap {
    pub(crate) name: &'static str,
    undo: Vec<String>,
}

impl Tap {
    /// `flags` are ip's: nothing, `multi_queue`, `vnet_hdr`.
    pub(crate) fn new(name: &'static str, flags: &str) -> Self {
        lab().sh(&format!("ip tuntap add mode tap dev {name} group kvm {flags}")).unwrap();
        let tap = Tap { name, undo: vec![format!("ip link del {name}")] };
        lab().sh(&format!("ip link set {name} up")).unwrap();
        tap
    }

    /// Puts it on a new switch, on VLAN 2 where the switch can; gives the host's interface on that switch.
    pub(crate) fn on_switch(&mut self) -> &'static str {
        if lab().kind() == LabKind::Nested {
            lab().sh(OPEN_VSWITCH).unwrap();
        }
        let (name, there) = (self.name, lab().sh("ovs-vsctl --timeout 60 show").is_ok());
        assert!(there || lab().kind() != LabKind::Nested, "Open vSwitch does not answer");
        if there {
            self.undo.insert(0, "ovs-vsctl del-br sw-test".into());
            let line = format!(
                "ovs-vsctl --timeout 60 add-br sw-test -- add-port sw-test {name} tag=2 -- \
                 add-port sw-test vlan2 tag=2 -- set interface vlan2 type=internal && ip link set vlan2 up"
            );
            lab().sh(&line).unwrap();
            return "vlan2";
        }
        self.on_bridge()
    }

    /// Puts it on a new bridge; gives the host's interface on it.
    pub(crate) fn on_bridge(&mut self) -> &'static str {
        self.undo.insert(0, "ip link del br-test".into());
        let name = self.name;
        let line = format!(
            "ip link add br-test type bridge && ip link set br-test up && ip link set {name} master br-test"
        );
        lab().sh(&line).unwrap();
        "br-test"
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        for line in &self.undo {
            drop(lab().sh(line));
        }
    }
}

/// Starts Open vSwitch in the emulated machine, once. It counts the processors from the tenth second of the machine's
/// life on; sooner it takes itself to have none, starts no thread for packets and passes none, ever.
const OPEN_VSWITCH: &str = "\
    mkdir -p /run/openvswitch /etc/openvswitch /var/log/openvswitch; ip link set lo up; [ -e /run/openvswitch/ovs-vswitchd.pid ] && exit; \
    until [ $(cut -d. -f1 /proc/uptime) -gt 10 ]; do sleep 0.2; done; \
    ovsdb-tool create /etc/openvswitch/conf.db /usr/share/openvswitch/vswitch.ovsschema && \
    ovsdb-server --remote=punix:/run/openvswitch/db.sock --pidfile --log-file --detach >/dev/null 2>&1 && \
    ovs-vsctl --no-wait init && \
    ovs-vswitchd --pidfile --log-file --detach >/dev/null 2>&1";

/// Runs a command in the guest through ssh as etu; returns its output.
#[track_caller]
pub(crate) fn ssh(address: &str, command: &str) -> String {
    let line = format!(
        "sshpass -p -etu- ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
         -o ConnectTimeout=60 etu@{address} '{command}'"
    );
    let out = lab().exec(&Cmd::sh(line).limit(SOON)).unwrap();
    assert_eq!(out.status, Status::Exited(0), "{command}: {}", out.err_text());
    out.text()
}

/// The only minivmm that runs has no capability and no group but kvm.
#[track_caller]
pub(crate) fn the_user_may_do_nothing_else() {
    let status = lab().sh("cat /proc/$(pgrep -x minivmm)/status").unwrap();
    let none = ["Inh", "Prm", "Eff", "Bnd", "Amb"].map(|set| format!("Cap{set}:\t0000000000000000"));
    for fact in none.iter().map(String::as_str).chain(["Uid:\t1000\t1000\t1000\t1000", "Groups:\t101"]) {
        assert!(status.lines().any(|line| line.trim_end() == fact), "{fact}: {status}");
    }
}

/// What lspci says of the devices, after their places.
const DEVICES: [(&str, &str); 5] = [
    ("Ethernet controller: Red Hat, Inc. Virtio 1.0 network device", "1af4:1041"),
    ("Mass storage controller: Red Hat, Inc. Virtio 1.0 block device", "1af4:1042"),
    ("Communication controller: Red Hat, Inc. Virtio 1.0 console", "1af4:1043"),
    ("Unclassified device [00ff]: Red Hat, Inc. Virtio 1.0 RNG", "1af4:1044"),
    ("Unclassified device [00ff]: Red Hat, Inc. Virtio 1.0 memory balloon", "1af4:1045"),
];
/// What lsmod lists.
const DRIVERS: [&str; 6] =
    ["virtio_balloon", "virtio_blk", "virtio_console", "virtio_net", "virtio_pci", "virtio_ring"];

/// Its devices and their drivers.
#[track_caller]
pub(crate) fn the_hardware_is_what_the_guide_shows(guest: &mut Guest) {
    let (names, numbers) = (guest.sh("lspci"), guest.sh("lspci -n"));
    for (name, number) in DEVICES {
        assert!(names.contains(name) && numbers.contains(number), "{name}: {names}{numbers}");
    }
    let modules = guest.sh("lsmod");
    for driver in DRIVERS {
        let loaded = modules.lines().any(|line| line.split_whitespace().next() == Some(driver));
        assert!(loaded, "{driver}: {modules}");
    }
}

/// What a copy of the image must not share was made at this boot.
#[track_caller]
pub(crate) fn the_image_is_one_machine(guest: &mut Guest) {
    assert_eq!(guest.sh("wc -c < /etc/machine-id").trim(), "33");
    assert_eq!(guest.sh("find /etc/ssh -name 'ssh_host_*_key' -newer /etc/fstab").lines().count(), 1);
}
