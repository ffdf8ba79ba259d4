//! What the guest's SMBIOS tables say of the machine.

use boot::smbios::{SmbiosError, System};

use crate::spec::{MachineName, MachineUuid, Spec};

/// The tables of a machine whose spec is settled. Its serial number is its name.
pub(super) fn tables(spec: &Spec) -> Result<Vec<u8>, SmbiosError> {
    boot::smbios::build(&System {
        version: env!("CARGO_PKG_VERSION"),
        uuid: spec.uuid.map(MachineUuid::bytes).unwrap_or_default(),
        serial: spec.name.as_ref().map(MachineName::as_str),
        oem_strings: &[],
    })
}
