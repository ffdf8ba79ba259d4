//! A Debian with a name: looked at, frozen, squeezed, spoken to and stopped from other terminals, while it works.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/debian.rs"]
mod debian;

use std::time::Duration;

use debian::{AS_USER, BOOT, Guest, LINK_LOCAL, SOON, Tap, in_tools, lab};
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
fn debian_lives_with_every_verb_while_it_works() {
    lab().sh("mkdir -m 700 run; truncate -s 64M data.raw; chown 1000:1000 run data.raw").unwrap();
    let mut tap = Tap::new("tap2", "");
    let address = format!("{LINK_LOCAL}%{}", tap.on_bridge());
    let mut guest = Guest::start(&as_user(
        "./minivmm --name vm0 --disk vm0-whole.raw --disk data.raw,direct --disk tools.ext4,ro --tap tap2 --mem 384",
    ));
    guest.is_healthy();
    it_is_listed_and_described();
    let at_first = clocks(&address, "")[0];
    set_right(&mut guest, at_first);
    two_hundred_pauses_harm_no_write(&mut guest);
    let bounds = half_a_minute_at_rest(&mut guest, &address);
    println!(
        "guest - host, in microseconds: {at_first:?} at first, before and after a rest of 30 s {bounds:?}"
    );
    the_balloon_takes_and_gives();
    the_console_is_shared(&mut guest);
    no_splat(&mut guest);
    guest.is_healthy();
    stop_goes_through_systemd(guest);
}

fn it_is_listed_and_described() {
    let list = verb("ls");
    assert!(list.lines().any(|line| line.starts_with("vm0 ")), "{list}");
    assert!(verb("info vm0").contains("tap2"));
    let stats = verb("stats vm0");
    let resident = stats.lines().find_map(|line| line.strip_prefix("memory.resident ")).unwrap();
    let mib = resident.strip_suffix(" MiB").unwrap().parse::<f64>().unwrap();
    assert!(mib > 32.0, "{stats}");
}

/// Blocks are written in random order and read back from behind, until the machine has been at rest two hundred times.
const VERIFIED_WRITES: &str = "fio --name=w --filename=/dev/vdb --output-format=terse --direct=1 --ioengine=libaio --iodepth=16 \
    --bs=4k --rw=randrw --size=64m --time_based --runtime=5 --verify=crc32c --verify_backlog=256 --verify_fatal=1";
const PAUSES: &str = "i=0; while [ $i -lt 200 ]; do i=$((i + 1)); ./minivmm pause vm0 && ./minivmm resume vm0 || exit 1; done; echo $i";

fn two_hundred_pauses_harm_no_write(guest: &mut Guest) {
    guest.mount_tools("/dev/vdc");
    // Several runs, so that it surely outlives the pauses.
    let job = in_tools(VERIFIED_WRITES);
    guest.sh(&format!(
        "rm -f /tmp/enough; ((until [ -e /tmp/enough ]; do {job} || exit 1; echo run >>/tmp/runs; done; echo all-verified >>/tmp/runs) >/tmp/fio 2>&1; echo over >>/tmp/runs) &"
    ));
    let line = as_user(&format!("sh -c '{PAUSES}'"));
    let out = lab().exec(&Cmd::sh(line).limit(BOOT)).unwrap();
    assert_eq!(out.text(), "200\n", "{}", out.err_text());
    let said = guest.sh_within(
        "touch /tmp/enough; until grep -qx over /tmp/runs; do sleep 1; done; cat /tmp/runs /tmp/fio",
        BOOT,
    );
    assert!(said.contains("all-verified"), "{said}");
    guest.sh("umount -R /mnt");
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

fn half_a_minute_at_rest(guest: &mut Guest, address: &str) -> Vec<[i64; 2]> {
    // Due in the middle of the rest.
    guest.sh("rm -f /tmp/woke; (sleep 15; touch /tmp/woke) >/tmp/sleeper 2>&1 &");
    let mut ping = lab().spawn(&Cmd::sh(format!("exec ping -i 1 {address}"))).unwrap();
    ping.expect("seq=3 ", SOON).unwrap();
    let begin = guest_seconds(guest);
    let clocks = clocks(address, "30");
    assert!(clocks.iter().flatten().all(|bound| bound.abs() < 100_000), "{clocks:?}");
    assert!(guest_seconds(guest) - begin >= 30);
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
    clocks
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
    let mut other = lab().spawn(&Cmd::sh(format!("exec {line}")).tty()).unwrap();
    other.expect("Ctrl-] d detaches", SOON).unwrap();
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
    for splat in ["soft lockup", "rcu: INFO", "hung_task", "blocked for more than", "unstable", "I/O error"] {
        assert!(!log.contains(splat), "{splat}: {log}");
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
