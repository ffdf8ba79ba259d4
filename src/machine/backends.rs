//! What the host lends a machine for all its boots: opened and locked before the first, given back after the last.

use virtio::balloon::BalloonControl;

use super::StartError;
use crate::spec::Spec;

/// The host's side of the machine's devices.
#[derive(Debug)]
pub(super) struct Backends {
    pub(super) balloon: BalloonControl,
}

impl Backends {
    /// Opens all that `spec` names.
    pub(super) fn open(spec: &Spec) -> Result<Self, StartError> {
        let balloon = spec.balloon.map_or(0, |balloon| balloon.mib());
        Ok(Backends { balloon: BalloonControl::new(balloon).map_err(StartError::Descriptors)? })
    }
}
