//! What tells a machine from others, at each start the same: defaults of its addresses and of its UUID are made of it.

use std::cell::OnceCell;
use std::env;
use std::fs;
use std::hash::Hasher;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::Spec;

/// Host and machine, found out when they are asked for.
#[derive(Debug)]
pub(super) struct Identity<'a> {
    spec: &'a Spec,
    host: OnceCell<String>,
    machine: OnceCell<Vec<u8>>,
}

impl<'a> Identity<'a> {
    pub(super) fn new(spec: &'a Spec) -> Self {
        Identity { spec, host: OnceCell::new(), machine: OnceCell::new() }
    }

    /// Identity of this host.
    pub(super) fn host(&self) -> &str {
        self.host.get_or_init(host_id)
    }

    /// Identity of the machine on its host: its name; without one its first disk, or its kernel and the current folder.
    pub(super) fn machine(&self) -> &[u8] {
        self.machine.get_or_init(|| machine(self.spec, &env::current_dir().unwrap_or_default()))
    }
}

/// SipHash-2-4 of a list of parts, for one purpose. It must not change between versions.
pub(super) fn hashed(purpose: [u8; 8], parts: &[&[u8]]) -> u64 {
    // std promises this algorithm of this one of its hashers, and tests of addresses and UUIDs hold it to that.
    #[allow(deprecated, reason = "the hasher that replaced it may change its algorithm")]
    let mut hash =
        std::hash::SipHasher::new_with_keys(u64::from_be_bytes(*b"minivmm "), u64::from_be_bytes(purpose));
    for part in parts {
        // A length in front: no two lists of parts are the same bytes.
        hash.write(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        hash.write(part);
    }
    hash.finish()
}

/// What tells a machine from others of this host, and is the same at each start in `folder`.
fn machine(spec: &Spec, folder: &Path) -> Vec<u8> {
    // The first start makes an overlay, and its address is then as later.
    let beside =
        |path: &Path| Some(fs::canonicalize(folder.join(path).parent()?).ok()?.join(path.file_name()?));
    let canonical =
        |path: &Path| fs::canonicalize(path).ok().or_else(|| beside(path)).unwrap_or_else(|| path.to_owned());
    match (&spec.name, spec.disk.first()) {
        (Some(name), _) => [b"name ", name.as_str().as_bytes()].concat(),
        // Thirty machines on one base are told apart by their overlays.
        (None, Some(disk)) => [b"disk ", canonical(disk.image()).as_os_str().as_bytes()].concat(),
        (None, None) => {
            let kernel = spec.kernel.as_deref().map(canonical).unwrap_or_default();
            // No path has a zero in it.
            [b"kernel ", kernel.as_os_str().as_bytes(), b"\0", folder.as_os_str().as_bytes()].concat()
        }
    }
}

/// The identity of this host: machine-id(5), which is only used hashed. Without one, as in most containers, the host's
/// name.
pub(super) fn host_id() -> String {
    ["/etc/machine-id", "/var/lib/dbus/machine-id", "/etc/hostname"]
        .into_iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .map(|text| text.trim().to_owned())
        // What it says while the first boot of a host is under way.
        .find(|id| !id.is_empty() && id != "uninitialized")
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_name_and_a_disk_the_kernel_and_the_folder_tell_machines_apart() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("bzImage");
        fs::write(&kernel, "").unwrap();
        let of = |kernel: &Path, folder: &str| machine(&Spec::new(kernel), Path::new(folder));
        assert_eq!(of(&kernel, "/a"), of(&folder.path().join("./bzImage"), "/a"));
        assert_ne!(of(&kernel, "/a"), of(&kernel, "/b"));
        assert_ne!(of(&kernel, "/a"), of(Path::new("/boot/vmlinuz"), "/a"));
    }
}
