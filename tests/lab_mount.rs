//! Shares that a systemd mounts by itself, told by the machine's SMBIOS tables; and what else it reads there.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/lab_guest.rs"]
mod lab_guest;

use lab::{Access, Cmd, Flavour, InitramfsSpec, Lab, LabConfig, Status, initramfs, kernel, systemd};
use lab_guest::BOOT;

/// Loads the drivers that a distribution's initrd would, and gives the disk to systemd.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
while read -r file parameters; do insmod \"/modules/$file\" $parameters; done </modules/order
until [ -b /dev/vda ]; do sleep 0.1; done
mkdir /new
mount -t ext4 /dev/vda /new
mount --move /dev /new/dev
exec switch_root /new /lib/systemd/systemd
";

/// What the system does when it is up. /mnt/work and \"/mnt/read only\" are on no disk.
const PROOF: &str = "
cat /proc/mounts | while read -r what where kind options rest; do
    [ $kind = virtiofs ] && echo MOUNTED $what \"$where\" ${options%%,*}
done
cat /mnt/work/letter
echo from the guest >/mnt/work/answer
echo no >'/mnt/read only/answer' || echo ro is ro
echo ID $(cat /etc/machine-id)
";

const UUID: &str = "0b5f4ec6-90a1-4d36-a1f0-2b9d0a6f7c11";

#[test]
fn a_systemd_guest_that_nobody_has_prepared_has_its_shares_and_its_id() {
    let kernel = kernel(Flavour::Trixie).unwrap();
    let modules = ["virtio_pci", "virtio_blk", "ext4", "virtiofs"].map(String::from).to_vec();
    let initrd =
        initramfs(&kernel, &InitramfsSpec { init: INIT.into(), modules, ..InitramfsSpec::default() })
            .unwrap();
    let config = LabConfig::default()
        .file(env!("CARGO_BIN_EXE_minivmm"), "minivmm")
        .file(&kernel.bzimage, "vmlinuz")
        .file(initrd, "initrd")
        .disk(systemd(PROOF).unwrap(), "debian13.raw", Access::Forget);
    let lab = Lab::start(&config).unwrap();
    lab.sh("mkdir work 'read only'; echo 'a letter' >work/letter").unwrap();
    let line = format!(
        "./minivmm --kernel vmlinuz --initrd initrd --disk debian13.raw --uuid {UUID} \
         --share work:/mnt/work --share 'read only:/mnt/read only,ro' --net none --append 'root=/dev/vda quiet systemd.show_status=0'"
    );
    let out = lab.exec(&Cmd::sh(line).limit(2 * BOOT)).unwrap();
    let said = out.text().replace('\r', "");
    assert_eq!(out.status, Status::Exited(0), "{said}{}", out.err_text());
    for line in [
        "MOUNTED share0 /mnt/work rw",
        "MOUNTED share1 /mnt/read only ro",
        "a letter",
        "ro is ro",
        &format!("ID {}", UUID.replace('-', "")),
    ] {
        assert!(said.lines().any(|said| said.ends_with(line)), "{line}: {said}");
    }
    assert_eq!(lab.sh("cat work/answer; ls 'read only'").unwrap(), "from the guest\n");
}
