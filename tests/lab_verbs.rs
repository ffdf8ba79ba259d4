//! A Debian from a disk without partitions, with a name: its data under load, two networks and `hvc0`; frozen, squeezed, spoken to
//! and stopped from other terminals while it works.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/debian.rs"]
mod debian;
#[path = "support/dose.rs"]
mod dose;

use std::time::Duration;

use debian::{
    AS_USER, BOOT, Guest, LINK_LOCAL, SOON, Tap, in_tools, lab, ssh, the_hardware_is_what_the_guide_shows,
    the_image_is_one_machine, the_user_may_do_nothing_else,
};
use dose::dose;
use lab::{Cmd, Status};

/// A command of the courses' user.
fn as_user(line: &str) -> String {
    format!("env XDG_RUNTIME_DIR=$PWD/run {AS_USER} {line}")
}

/// A verb, which must do what it is asked; gives what it printed.
#[track_caller]
fn verb(words: &str) -> String {
    lab().sh(&as_user(&format!("./minivmm {words}"))).unwrap()
}

#[test]
fn debian_of_a_disk_without_partitions_keeps_its_data_under_load_and_lives_with_every_verb() {
    let (mut on_switch, mut on_bridge) = (Tap::new("tap2", "multi_queue"), Tap::new("tap3", "vnet_hdr"));
    let (switch, bridge) = (on_switch.on_switch(), on_bridge.on_bridge());
    lab().sh("mkdir -m 700 run; truncate -s 256M data.raw; truncate -s 24M files.raw; chown 1000:1000 run data.raw files.raw").unwrap();
    let mut guest = Guest::start(&as_user(
        "./minivmm --name vm0 --disk vm0-whole.raw --disk data.raw,direct --disk tools.ext4,ro --disk files.raw \
         --tap tap2 --tap tap3 --cpus 2 --console hvc0",
    ));
    guest.banner_says(&[
        "Kernel      : /boot/vmlinuz-6.1.",
        "Initrd      : /boot/initrd.img-6.1.",
        "Root        : root=/dev/vda, the whole disk",
    ]);
    guest.is_healthy();
    // systemd has made a login of the kernel's console.
    assert!(guest.sh("who").contains("etu      hvc0"));
    assert_eq!(guest.sh("cat /sys/class/tty/console/active").trim(), "ttyS0 hvc0");
    assert!(guest.sh("findmnt -no SOURCE /").contains("/dev/vda\n"));
    the_user_may_do_nothing_else();
    the_hardware_is_what_the_guide_shows(&mut guest);
    it_is_listed_and_described(&mut guest);

    let address = format!("{LINK_LOCAL}%{switch}");
    assert_eq!(ssh(&address, "hostname; id -un"), "vm0\netu\n");
    the_image_is_one_machine(&mut guest);
    both_pairs_of_queues_are_used(&mut guest, switch);
    // Large segments cross the bridge both ways.
    let other = format!("fe80::b8ad:ff:feca:fe03%{bridge}");
    assert_eq!(ssh(&other, "head -c 3000000 /dev/zero").len(), 3_000_000);
    lab().sh(&format!("ping -c 3 -s 1400 {other}")).unwrap();

    let sum = fill_files(&mut guest);
    let at_first = clocks(&address, "")[0];
    set_right(&mut guest, at_first);
    guest.mount_tools("/dev/vdc");
    pauses_harm_no_write(&mut guest);
    a_rest_is_no_time_lost(&mut guest, &address);
    the_balloon_takes_and_gives();
    the_console_is_shared(&mut guest);
    no_splat(&mut guest);
    guest.sh("umount -R /mnt");
    guest.is_healthy();
    stop_goes_through_systemd(guest);
    // The guest's words, read on the host.
    let check = format!("{FIO} --filename=data.raw {LAST} --verify_only");
    let out = lab().exec(&Cmd::sh(check).limit(BOOT)).unwrap();
    assert_eq!(out.status, Status::Exited(0), "{}{}", out.text(), out.err_text());
    // On the host the file shows what the guest used, not what it could use.
    assert!(lab().sh("du -m vm0-whole.raw | cut -f1").unwrap().trim().parse::<u64>().unwrap() < 1024);
    for image in ["vm0-whole.raw", "files.raw"] {
        lab().sh(&format!("e2fsck -fn {image}")).unwrap();
    }
    assert_eq!(lab().sh("debugfs -R 'cat /all' files.raw | sha256sum").unwrap(), sum);
}

fn it_is_listed_and_described(guest: &mut Guest) {
    // The UUID that a guest's system reads.
    let uuid = guest.sh("cat /sys/class/dmi/id/product_uuid");
    assert!(verb("info vm0 --json").contains(uuid.trim()), "{uuid}");
    assert_eq!(
        guest.sh("cat /sys/class/dmi/id/sys_vendor /sys/class/dmi/id/product_serial"),
        "minivmm\nvm0\n"
    );
    let list = verb("ls");
    assert!(list.lines().any(|line| line.starts_with("vm0 ")), "{list}");
    assert!(verb("info vm0").contains("tap2"));
    let stats = verb("stats vm0");
    let resident = stats.lines().find_map(|line| line.strip_prefix("memory.resident ")).unwrap();
    let mib = resident.strip_suffix(" MiB").unwrap().parse::<f64>().unwrap();
    assert!(mib > 32.0, "{stats}");
}

/// Those of a multi_queue TAP, by a guest with two processors.
fn both_pairs_of_queues_are_used(guest: &mut Guest, switch: &str) {
    let interface = guest.sh("grep -l ba:ad:00:ca:fe:02 /sys/class/net/*/address | cut -d / -f 5");
    let interface = interface.trim();
    let queues = |name| format!("cd /sys/class/net/{name}/queues && echo *");
    assert_eq!(guest.sh(&queues(interface)).trim(), "rx-0 rx-1 tx-0 tx-1");
    assert_eq!(lab().sh(&queues("tap2")).unwrap().trim(), "rx-0 rx-1 tx-0 tx-1");
    // Each processor sends from its own pair, and the TAP answers into the pair that a flow comes from: an answer to one
    // address, as that of everybody has answers that belong to no flow.
    let line =
        format!("ip -6 -o addr show dev {switch} scope link | awk '{{ sub(\"/.*\", \"\", $4); print $4 }}'");
    let host = lab().sh(&line).unwrap();
    let host = host.trim();
    for cpu in ["0", "1"] {
        let line = format!("awk '/virtio0-input\\.{cpu}$/ {{ print $2 + $3 }}' /proc/interrupts");
        let before: u64 = guest.sh(&line).trim().parse().unwrap();
        guest.sh(&format!("taskset -c {cpu} ping -q -c 10 -i 0.2 {host}%{interface}"));
        let after: u64 = guest.sh(&line).trim().parse().unwrap();
        // Answers that come 200 ms apart do not share an interrupt, but on a busy host some come together; the first may come through
        // the other pair, as its flow is new.
        assert!(after >= before + 4, "pair {cpu}: {before} interrupts, then {after}");
    }
}

/// Makes an ext4 on the fourth disk and writes one file until there is no room; gives what sha256sum says of it.
fn fill_files(guest: &mut Guest) -> String {
    guest.sh("mkfs.ext4 -q /dev/vdd && mount /dev/vdd /srv");
    guest.sh("! dd if=/dev/urandom of=/srv/all bs=256k 2> /tmp/dd && grep 'No space left on device' /tmp/dd");
    let sum = guest.sh("sha256sum < /srv/all");
    guest.sh("umount /srv && e2fsck -fn /dev/vdd");
    sum
}

/// For a while, in any order.
const MIXED: &str = "--name=mixed --rw=randrw --size=64m --time_based --verify_backlog=256";
/// Four jobs, each on a part of the disk of its own.
const FIO: &str = "fio --output-format=terse --direct=1 --ioengine=libaio --iodepth=16 --bs=4k --numjobs=4 \
                   --offset_increment=64m --verify=crc32c --verify_fatal=1 --exitall_on_error=1";
/// Every block of its part is written once, in an order that another run repeats.
const LAST: &str = "--name=last --rw=randwrite --size=2m";

/// Blocks are written in random order and read back from behind for a while, as the machine is put at rest again and again; then
/// each block once more.
fn pauses_harm_no_write(guest: &mut Guest) {
    let job = in_tools(&format!("{FIO} --filename=/dev/vdb {MIXED} --runtime={}", dose(60)));
    // Again, until it has outlived the pauses.
    guest.sh(&format!(
        "rm -f /tmp/enough; ((until [ -e /tmp/enough ]; do {job} || exit 1; echo run >>/tmp/runs; done; echo all-verified >>/tmp/runs) >/tmp/fio 2>&1; echo over >>/tmp/runs) &"
    ));
    let pauses = dose(200);
    let line = format!(
        "i=0; while [ $i -lt {pauses} ]; do i=$((i + 1)); ./minivmm pause vm0 && ./minivmm resume vm0 || exit 1; done; echo $i"
    );
    let out = lab().exec(&Cmd::sh(as_user(&format!("sh -c '{line}'"))).limit(BOOT)).unwrap();
    assert_eq!(out.text(), format!("{pauses}\n"), "{}", out.err_text());
    let said = guest.sh_within(
        "touch /tmp/enough; until grep -qx over /tmp/runs; do sleep 1; done; cat /tmp/runs /tmp/fio",
        2 * BOOT,
    );
    assert!(said.contains("all-verified"), "{said}");
    let last = in_tools(&format!("{FIO} --filename=/dev/vdb {LAST} --do_verify=0 --end_fsync=1"));
    guest.sh_within(&last, BOOT);
}

/// Compares the clocks through a connection that stays open: each answer says what the guest's clock showed at some time
/// between its question and its arrival. The difference (guest - host, in microseconds) is at least the largest difference
/// to an arrival and at most the least one to a question.
const CLOCKS: &str = r#"
say() { printf '%s\n' "$*"; }
coproc GUEST { sshpass -p -etu- ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
    "etu@$1" 'while read -r _; do echo ${EPOCHREALTIME/./}; done'; }
clocks() {
    local least= most= i asked told came
    for i in $(seq "$1"); do
        asked=${EPOCHREALTIME/./}
        echo x >&"${GUEST[1]}"
        read -r -t 60 told <&"${GUEST[0]}" || { say no answer; exit 1; }
        came=${EPOCHREALTIME/./}
        [ -n "$least" ] && [ "$((told - came))" -le "$least" ] || least=$((told - came))
        [ -n "$most" ] && [ "$((told - asked))" -ge "$most" ] || most=$((told - asked))
    done
    say "$2 $least $most"
}
clocks 30 before
if [ -n "$2" ]; then
    ./minivmm pause vm0 || exit 1
    sleep "$2"
    ./minivmm resume vm0 || exit 1
    clocks 30 after
fi
"#;

/// Both bounds of the difference, before the guest rests for so many seconds (if it shall) and after it.
#[track_caller]
fn clocks(address: &str, rest: &str) -> Vec<[i64; 2]> {
    lab().put("clocks.sh", CLOCKS.as_bytes()).unwrap();
    let line = as_user(&format!("bash clocks.sh {address} {rest}"));
    let out = lab().exec(&Cmd::sh(line).limit(BOOT)).unwrap();
    assert_eq!(out.status, Status::Exited(0), "{}{}", out.text(), out.err_text());
    let bounds = |line: &str| {
        let mut words = line.split_whitespace().skip(1).map(|number| number.parse().unwrap());
        [words.next().unwrap(), words.next().unwrap()]
    };
    out.text().lines().map(bounds).collect()
}

/// Steps the guest's clock, as a time service would. Before it has its own clock, Linux counts ticks, of which an emulated
/// processor loses seconds while it boots.
fn set_right(guest: &mut Guest, [from, to]: [i64; 2]) {
    let step = -(from + to) / 2;
    // adjtimex(2) with ADJ_SETOFFSET: the modes, seconds and microseconds of a struct timex.
    guest.sh(&format!(
        "perl -e '$t = pack(\"Lx4q4lx4q3q2x120\", 0x100, (0) x 8, {}, {}); syscall(159, $t) >= 0 or die $!'",
        step.div_euclid(1_000_000),
        step.rem_euclid(1_000_000)
    ));
}

fn a_rest_is_no_time_lost(guest: &mut Guest, address: &str) {
    // In `make soak` longer than the 20 s after which Linux speaks of a soft lockup.
    let seconds = dose(30).max(10);
    // Due during the rest, which begins some seconds from now.
    guest.sh(&format!("rm -f /tmp/woke; (sleep {}; touch /tmp/woke) >/tmp/sleeper 2>&1 &", seconds / 2 + 4));
    let mut ping = lab().spawn(&Cmd::sh(format!("exec ping -i 1 {address}"))).unwrap();
    ping.expect("seq=3 ", SOON).unwrap();
    let begin = guest_seconds(guest);
    let clocks = clocks(address, &seconds.to_string());
    assert!(clocks.iter().flatten().all(|bound| bound.abs() < 100_000), "{clocks:?}");
    assert!(guest_seconds(guest) - begin >= i64::try_from(seconds).unwrap());
    // The timer did not begin anew.
    guest.sh("[ -e /tmp/woke ]");
    let begin = guest_seconds(guest);
    guest.sh("sleep 1");
    assert!(guest_seconds(guest) - begin < 10);
    // The same ping is answered again.
    let so_far = ping.so_far().matches("bytes from").count();
    assert!(so_far > 3);
    let next = ping.so_far().lines().filter_map(sequence).max().unwrap() + 5;
    ping.expect(&format!("seq={next} "), SOON).unwrap();
    ping.signal(2).unwrap();
    ping.wait(SOON).unwrap();
}

/// Of a line that says a ping was answered.
fn sequence(line: &str) -> Option<u32> {
    line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse().ok()
}

fn guest_seconds(guest: &mut Guest) -> i64 {
    guest.sh("date +%s").trim().parse().unwrap()
}

/// The guest does as it is told, and what it has left to the host is the host's.
fn the_balloon_takes_and_gives() {
    for mib in [128, 0] {
        verb(&format!("balloon vm0 {mib}"));
        let wanted =
            if mib == 0 { "memory.balloon 0 B$".to_owned() } else { format!("memory.balloon {mib} MiB$") };
        let line =
            as_user(&format!("sh -c 'until ./minivmm stats vm0 | grep -q \"{wanted}\"; do sleep 1; done'"));
        assert_eq!(lab().exec(&Cmd::sh(line).limit(SOON)).unwrap().status, Status::Exited(0), "{mib} MiB");
    }
}

/// What is typed in one terminal is done once, and seen in both.
fn the_console_is_shared(guest: &mut Guest) {
    let line = as_user("./minivmm console vm0");
    let line = format!("tty; stty rows 43 cols 132; exec {line}");
    let mut other = lab().spawn(&Cmd::sh(line).tty()).unwrap();
    let said = other.expect("Ctrl-] d detaches", SOON).unwrap();
    let terminal = said.lines().find(|line| line.starts_with("/dev/pts/")).unwrap().trim().to_owned();
    // Its size is that of the terminal that was opened or changed last.
    let is_so = |guest: &mut Guest, size: &str| {
        guest.sh(&format!("until [ \"$(stty size)\" = '{size}' ]; do sleep 1; done"));
    };
    is_so(guest, "43 132");
    lab().sh(&format!("stty -F {terminal} rows 50 cols 100")).unwrap();
    is_so(guest, "50 100");
    other.send("echo typed-$((6 * 7))-there\n").unwrap();
    other.expect("typed-42-there", SOON).unwrap();
    guest.expect("typed-42-there", SOON);
    other.send("\x1dd").unwrap();
    let out = other.wait(SOON).unwrap();
    assert_eq!(out.status, Status::Exited(0), "{}", out.text());
    assert!(out.text().contains("detached from vm0; it runs on"), "{}", out.text());
}

/// Nothing in the guest has taken its rest for a fault.
fn no_splat(guest: &mut Guest) {
    let log = guest.sh("dmesg");
    // Linux calls the TSC of several AMD processors unstable from the start, unless it is said to be invariant.
    let clocks = ["clocksource watchdog", "as unstable because"];
    for splat in
        ["soft lockup", "rcu: INFO", "hung_task", "blocked for more than", "I/O error"].iter().chain(&clocks)
    {
        assert!(!log.contains(*splat), "{splat}: {log}");
    }
}

fn stop_goes_through_systemd(guest: Guest) {
    let mut waits = lab().spawn(&Cmd::sh(format!("exec {}", as_user("./minivmm wait vm0")))).unwrap();
    let out = lab().exec(&Cmd::sh(as_user("./minivmm stop vm0")).limit(Duration::from_secs(120))).unwrap();
    assert_eq!(out.status, Status::Exited(0), "{}{}", out.text(), out.err_text());
    assert_eq!((out.text(), out.err_text()), (String::new(), String::new()), "the guest was down in time");
    assert_eq!(waits.wait(SOON).unwrap().status, Status::Exited(0));
    let out = guest.wait();
    assert_eq!(out.status, Status::Exited(0), "{}", out.text());
    assert!(out.text().contains("Power Off"), "systemd did not shut it down: {}", out.text());
    assert!(!verb("ls").contains("vm0"));
}
