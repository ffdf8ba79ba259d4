//! What the guest's SMBIOS tables say of the machine, and tell its systemd.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use boot::smbios::{SmbiosError, System};

use crate::spec::{MachineName, MachineUuid, Spec};

/// The tables of a machine whose spec is settled. Its serial number is its name.
pub(super) fn tables(spec: &Spec) -> Result<Vec<u8>, SmbiosError> {
    let mounts = mounts(spec);
    let credential = (!mounts.is_empty()).then(|| credential("fstab.extra", &mounts));
    boot::smbios::build(&System {
        version: env!("CARGO_PKG_VERSION"),
        uuid: spec.uuid.map(MachineUuid::bytes).unwrap_or_default(),
        serial: spec.name.as_ref().map(MachineName::as_str),
        oem_strings: credential.as_slice(),
    })
}

/// A credential of the guest's systemd (systemd.system-credentials(7)): base64, as it may have several lines.
fn credential(name: &str, value: &str) -> String {
    format!("io.systemd.credential.binary:{name}={}", STANDARD.encode(value))
}

/// Without the first a guest boots only with its share; with it alone its boot would not wait for it.
const OPTIONS: &str = "nofail,x-systemd.before=local-fs.target";

/// Lines of fstab(5) for the shares that the guest mounts by itself. A guest boots without them, too.
fn mounts(spec: &Spec) -> String {
    let mut lines = String::new();
    for (tag, share) in spec.shares() {
        let Some(folder) = &share.mount else { continue };
        let rights = if share.read_only { "ro," } else { "" };
        let (tag, folder) = (escaped(tag.as_str()), escaped(folder.as_str()));
        // Writing to a text does not fail.
        let _ = writeln!(lines, "{tag} {folder} virtiofs {rights}{OPTIONS} 0 0");
    }
    lines
}

/// A field of fstab(5).
fn escaped(field: &str) -> String {
    field.replace('\\', r"\134").replace(' ', r"\040")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_that_are_mounted_by_themselves_are_lines_of_fstab() {
        let spec = |texts: &[&str]| {
            texts.iter().fold(Spec::new("k"), |spec, text| spec.with_share(text.parse().unwrap()))
        };
        assert_eq!(mounts(&spec(&["/a"])), "");
        let all = spec(&["/a:/mnt/my work", "/b", "/c:/c,ro,tag=c\\"]);
        assert_eq!(
            mounts(&all),
            format!("share0 /mnt/my\\040work virtiofs {OPTIONS} 0 0\nc\\134 /c virtiofs ro,{OPTIONS} 0 0\n")
        );
        let told = |spec: &Spec| String::from_utf8_lossy(&tables(spec).unwrap()).into_owned();
        let line = STANDARD.encode(format!("share0 /b virtiofs {OPTIONS} 0 0\n"));
        assert!(
            told(&spec(&["/a:/b"]))
                .contains(&format!("\u{1}io.systemd.credential.binary:fstab.extra={line}\0"))
        );
        assert!(!told(&spec(&["/a"])).contains("systemd"));
    }
}
