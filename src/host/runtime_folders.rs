//! Where the sockets of this user's machines and switches are looked for.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::lock::user;

/// The folder of root's machines, and of users without a runtime directory whom root has given access.
const SYSTEM_FOLDER: &str = "/run/minivmm";
/// The folder of switches beside the machines' files.
pub(crate) const SWITCHES: &str = "switch";

/// The folder for this user's machines.
pub(crate) fn own_folder() -> PathBuf {
    let own = |path: &PathBuf| {
        // `sudo` may pass on another user's folder; do not use that.
        fs::metadata(path).is_ok_and(|folder| folder.uid() == user())
    };
    runtime_folder().filter(own).map_or_else(|| SYSTEM_FOLDER.into(), |folder| folder.join("minivmm"))
}

/// The session's runtime directory, whether it exists or not.
fn runtime_folder() -> Option<PathBuf> {
    std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute())
}

/// The folders to search for machines. Root's own session does not have the services that systemd starts;
/// `su` and cron set no folder, so logind's is used; a folder that has vanished still identifies machines in
/// the kernel.
pub(crate) fn folders() -> Vec<PathBuf> {
    let logind = || PathBuf::from(format!("/run/user/{}", user()));
    let session = runtime_folder().unwrap_or_else(logind).join("minivmm");
    each_once([own_folder(), session, SYSTEM_FOLDER.into()])
}

/// Those of switches.
pub(crate) fn switch_folders() -> Vec<PathBuf> {
    folders().iter().map(|folder| folder.join(SWITCHES)).collect()
}

fn each_once(folders: [PathBuf; 3]) -> Vec<PathBuf> {
    let mut each = Vec::new();
    for folder in folders {
        if !each.contains(&folder) {
            each.push(folder);
        }
    }
    each
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_folder_is_looked_into_twice() {
        let [system, session] = ["/run/minivmm", "/run/user/0/minivmm"].map(PathBuf::from);
        assert_eq!(each_once([system.clone(), session.clone(), system.clone()]), [system, session]);
    }
}
