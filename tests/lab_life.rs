//! How a Debian guest's machine ends: each way with the status that the README gives it.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/dose.rs"]
mod dose;
#[path = "support/lab_guest.rs"]
mod lab_guest;

use dose::dose;
use lab::{Process, Status};
use lab_guest::{BOOT, PROMPT, SOON, in_guest, lab, minivmm, shell, status};

const SIGTERM: i32 = 15;
const CTRL_BRACKET: &str = "\x1d";

fn menu(guest: &Process, key: &str) {
    guest.send(CTRL_BRACKET).unwrap();
    guest.send(key).unwrap();
}

fn boot_id(guest: &mut Process) -> String {
    guest.send("echo boot $(cat /proc/sys/kernel/random/boot_id) id\n").unwrap();
    guest.expect("\nboot ", SOON).unwrap();
    let id = guest.expect(" id", SOON).unwrap();
    // Otherwise this prompt would be taken for that of the next boot.
    guest.expect(PROMPT, SOON).unwrap();
    id
}

/// Linux reboots, is reset from outside, hears the power button: one process all the while.
#[test]
fn a_machine_boots_again_by_reboot_and_by_reset_and_ends_by_the_power_button_with_status_0() {
    let mut guest = shell(&["--name", "vm0"]);
    let mut boots = vec![boot_id(&mut guest)];
    for _ in 0..dose(3) {
        guest.send("reboot -f\n").unwrap();
        guest.expect(PROMPT, BOOT).unwrap();
        boots.push(boot_id(&mut guest));
    }
    menu(&guest, "?");
    guest.expect("press the power button", SOON).unwrap();
    menu(&guest, "r");
    guest.expect(PROMPT, BOOT).unwrap();
    boots.push(boot_id(&mut guest));
    let number = boots.len();
    boots.sort_unstable();
    boots.dedup();
    assert_eq!(boots.len(), number, "each boot has an id of its own: {boots:?}");
    // As the menu's key p and `minivmm stop` do, which the native tests show.
    guest.signal(SIGTERM).unwrap();
    guest.expect("init: power button", SOON).unwrap();
    assert_eq!(status(&mut guest), Status::Exited(0));
}

/// Without its event device the button reaches nobody, and the guest goes on.
#[test]
fn a_guest_that_does_not_listen_to_the_button_goes_on_and_its_reboot_is_status_3_where_that_is_wanted() {
    let mut guest = shell(&["--on-reboot", "exit"]);
    guest.send("rmmod button; echo de''af\n").unwrap();
    guest.expect("deaf\r\n", SOON).unwrap();
    guest.signal(SIGTERM).unwrap();
    guest.expect("power button pressed", SOON).unwrap();
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
    let without = in_guest(minivmm("cloud", "vmlinux"), "true", "rdinit=/nowhere root=/dev/nowhere");
    assert!(without.text().contains("Kernel panic - not syncing"), "{}", without.text());
    assert_eq!(without.status, Status::Exited(4));
}

#[test]
fn panic_that_spins_for_ever_is_status_4() {
    let out = in_guest(minivmm("cloud", "vmlinux"), "true", "rdinit=/nowhere root=/dev/nowhere panic=0");
    assert!(out.text().contains("---[ end Kernel panic - not syncing"), "{}", out.text());
    assert_eq!(out.status, Status::Exited(4));
}

#[test]
fn doctor_finds_a_host_that_boots_linux_and_the_parts_of_a_guest() {
    let cmd =
        lab::Cmd::new("./minivmm").args(["doctor", "--kernel", "cloud.bzimage", "--initrd", "cloud.initrd"]);
    let out = lab().exec(&cmd).unwrap();
    assert_eq!(out.status, Status::Exited(0), "{}", out.text());
    assert!(out.text().contains("-cloud-amd64"), "{}", out.text());
}
