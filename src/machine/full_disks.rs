//! Disks whose writes wait for room on the host, and what people are told of them.

use std::fmt;

use super::disks::disk_id;
use super::resources::Resources;
use crate::host::disk::free_space;
use crate::shown::path as shown;
use crate::spec::DiskSpec;

/// A disk that found no room.
#[derive(Debug, Clone)]
pub(super) struct FullDisk {
    /// Such as `vda`.
    pub(super) id: String,
    /// Bytes of the first request that found none.
    pub(super) bytes: u64,
    /// What the host said.
    pub(super) error: String,
}

impl FullDisk {
    /// Its description.
    pub(super) fn spec<'a>(&self, resources: &'a Resources) -> Option<&'a DiskSpec> {
        let (_, spec) = (0..).zip(&resources.spec.disk).find(|(index, _)| disk_id(*index) == self.id)?;
        Some(spec)
    }

    /// Says that the machine is paused, and what to do. Asks the host for what is missing, and may wait for it.
    pub(super) fn report(&self, resources: &Resources) {
        let Some(spec) = self.spec(resources) else { return };
        let path = spec.image();
        let Self { id, bytes, error } = self;
        let drive = (0..).zip(&resources.files.drives).find(|(index, _)| disk_id(*index) == *id);
        let missing = drive.and_then(|(_, drive)| {
            let disk = drive.medium();
            disk.used().map(|used| disk.length().saturating_sub(used))
        });
        let name = resources.spec.name.as_ref().map_or("NAME".to_owned(), ToString::to_string);
        let what = if *bytes > 0 { format!("to write {} to", Size(*bytes)) } else { "for".to_owned() };
        let needs = match (missing, free_space(path)) {
            (Some(missing @ 1..), Some(free)) => format!(
                " (the whole disk needs up to {} more, and {} are free there)",
                Size(missing),
                Size(free)
            ),
            _ => String::new(),
        };
        log::error!(
            "the host has no room {what} the disk {id} ({}): {error}; the machine is paused. Make room{needs}, then \
             `minivmm resume {name}` repeats the write",
            shown(path)
        );
    }
}

/// Bytes in the largest unit that leaves a number before the point, rounded down.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let unit = usize::try_from(self.0.checked_ilog2().unwrap_or(0) / 10).unwrap_or(0);
        write!(f, "{} {}", self.0 >> (10 * unit), UNITS.get(unit).copied().unwrap_or_default())
    }
}
