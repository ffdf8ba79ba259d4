//! How a Debian guest's machine ends: each way with the status that the README gives it.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/lab_guest.rs"]
mod lab_guest;

use lab::{Process, Status};
use lab_guest::{BOOT, PROMPT, SOON, in_guest, lab, minivmm, shell, status};

const CTRL_BRACKET: &str = "\x1d";

#[test]
fn power_off_is_status_0() {
    let out = in_guest(minivmm("cloud", "bzimage"), "echo last words", "");
    assert!(out.text().contains("last words"), "{}", out.text());
    assert_eq!(out.status, Status::Exited(0));
}

#[test]
fn reboot_boots_again_in_the_same_process_three_times_in_a_row() {
    let mut guest = shell(&[]);
    for _ in 0..3 {
        guest.send("cat /proc/sys/kernel/random/boot_id; reboot -f\n").unwrap();
        guest.expect(PROMPT, BOOT).unwrap();
    }
    guest.send("poweroff -f\n").unwrap();
    let out = guest.wait(SOON).unwrap();
    assert_eq!(out.status, Status::Exited(0));
    let text = out.text();
    let mut boots: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| line.len() == 36 && line.chars().filter(|letter| *letter == '-').count() == 4)
        .collect();
    boots.sort_unstable();
    boots.dedup();
    assert_eq!(boots.len(), 3, "three boots, each with an id of its own: {text}");
}

#[test]
fn reboot_is_status_3_where_the_machine_shall_leave_then() {
    let mut guest = shell(&["--on-reboot", "exit"]);
    guest.send("reboot -f\n").unwrap();
    assert_eq!(status(&mut guest), Status::Exited(3));
}

#[test]
fn panic_is_status_4_with_and_without_the_panic_device() {
    // The test's initrd loads the driver of the panic device.
    let mut with = shell(&[]);
    with.send("lsmod; echo c > /proc/sysrq-trigger\n").unwrap();
    with.expect("pvpanic_mmio", SOON).unwrap();
    assert_eq!(status(&mut with), Status::Exited(4));
    // Without an init the kernel panics long before any module: its line on the console and the reset tell.
    let without = in_guest(minivmm("cloud", "bzimage"), "true", "rdinit=/nowhere root=/dev/nowhere");
    assert!(without.text().contains("Kernel panic - not syncing"), "{}", without.text());
    assert_eq!(without.status, Status::Exited(4));
}

#[test]
fn panic_that_spins_for_ever_is_status_4() {
    let out = in_guest(minivmm("cloud", "bzimage"), "true", "rdinit=/nowhere root=/dev/nowhere panic=0");
    assert!(out.text().contains("---[ end Kernel panic - not syncing"), "{}", out.text());
    assert_eq!(out.status, Status::Exited(4));
}

fn menu(guest: &Process, key: &str) {
    guest.send(CTRL_BRACKET).unwrap();
    guest.send(key).unwrap();
}

#[test]
fn menu_quits_with_status_6_and_says_its_keys() {
    let mut guest = shell(&[]);
    menu(&guest, "?");
    guest.expect("press the power button", SOON).unwrap();
    menu(&guest, "q");
    assert_eq!(status(&mut guest), Status::Exited(6));
}

#[test]
fn menu_resets_and_presses_the_power_button() {
    let mut guest = shell(&[]);
    menu(&guest, "r");
    guest.expect(PROMPT, BOOT).unwrap();
    menu(&guest, "p");
    guest.expect("init: power button", SOON).unwrap();
    assert_eq!(status(&mut guest), Status::Exited(0));
}

#[test]
fn sigterm_presses_the_power_button() {
    let mut guest = shell(&[]);
    guest.signal(libc_sigterm()).unwrap();
    guest.expect("init: power button", SOON).unwrap();
    assert_eq!(status(&mut guest), Status::Exited(0));
}

#[test]
fn second_sigterm_ends_a_guest_that_does_not_listen() {
    // Without its event device the button reaches nobody.
    let mut guest = shell(&[]);
    guest.send("rmmod button; echo de''af\n").unwrap();
    guest.expect("deaf\r\n", SOON).unwrap();
    guest.signal(libc_sigterm()).unwrap();
    guest.expect("power button pressed", SOON).unwrap();
    // Closer together they would count as one.
    // The lab's clock and ours do not go alike.
    std::thread::sleep(std::time::Duration::from_secs(3));
    guest.signal(libc_sigterm()).unwrap();
    assert_eq!(status(&mut guest), Status::Exited(143));
}

#[test]
fn verbs_reset_and_kill_a_guest_by_its_name() {
    let mut guest = shell(&["--name", "vm0"]);
    lab().sh("./minivmm reset vm0").unwrap();
    guest.expect(PROMPT, BOOT).unwrap();
    let mut waits = lab().spawn(&lab::Cmd::new("./minivmm").args(["wait", "vm0"])).unwrap();
    // It is connected, as the kernel says of the socket.
    lab().sh("until grep -q ' 03 .*vm0.sock' /proc/net/unix; do sleep 1; done").unwrap();
    lab().sh("./minivmm kill vm0").unwrap();
    assert_eq!(status(&mut guest), Status::Exited(6));
    assert_eq!(status(&mut waits), Status::Exited(6));
}

fn libc_sigterm() -> i32 {
    15
}

#[test]
fn doctor_finds_a_host_that_boots_linux_and_the_parts_of_a_guest() {
    let cmd =
        lab::Cmd::new("./minivmm").args(["doctor", "--kernel", "cloud.bzimage", "--initrd", "cloud.initrd"]);
    let out = lab().exec(&cmd).unwrap();
    assert_eq!(out.status, Status::Exited(0), "{}", out.text());
    assert!(out.text().contains("-cloud-amd64"), "{}", out.text());
}
