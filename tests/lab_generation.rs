//! A Debian whose kernel has no driver for the VM generation ID, with the helper that `minivmm guest-helper` installs.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/debian.rs"]
mod debian;

use debian::{BOOT, Guest, lab};
use lab::{Cmd, Status};

/// What the helper has said so far.
const SAID: &str = "journalctl -b -o cat -u minivmm-generation.service | sed -n '/random generator is new/p'";

#[test]
fn debian_without_a_driver_draws_other_numbers_in_each_clone_once_its_helper_has_heard() {
    lab().sh("./minivmm guest-helper >helper; truncate -s 64K helper").unwrap();
    let mut guest = Guest::start(
        "./minivmm --name vm0 --mem 512 --disk vm0.raw --disk helper,ro --port generation --net none --append quiet",
    );
    guest.sh("! grep -q '^CONFIG_VMGENID=[my]' /boot/config-$(uname -r)");
    guest.sh("tr -d '\\0' </dev/vdb | sh");
    guest.sh("until systemctl is-active minivmm-generation.service; do sleep 0.2; done");
    assert_eq!(guest.sh(SAID).trim(), "");
    let out = lab().exec(&Cmd::sh("./minivmm save vm0 saved --with-disks").limit(BOOT)).unwrap();
    assert_eq!(out.status, Status::Exited(0), "{}", out.err_text());
    guest.wait();
    let clones = ["first-clone", "second-clone"].map(|word| {
        let mut clone = Guest::go_on("./minivmm restore saved --snapshot", word);
        clone.sh(&format!("until {SAID} | grep -q generation; do sleep 0.2; done"));
        let (number, said) = (clone.sh("head -c 16 /dev/urandom | md5sum"), clone.sh(SAID));
        assert_eq!(said.lines().count(), 1, "{said}");
        clone.kill();
        (number, said)
    });
    let [(one, heard_one), (other, heard_other)] = &clones;
    assert!(one != other && heard_one != heard_other, "{clones:?}");
}
