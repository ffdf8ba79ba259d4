//! The folder in which this user's machines are kept while they do not run: snapshots and warm machines.

use std::env;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::spec::MachineName;

/// Behind the name of what is being deleted, which begins with a dot then.
const DELETED: &str = ".deleted";

/// Where this user's saved machines are kept, unless the environment says nothing of it.
pub(in crate::cli) fn state_folder() -> Option<PathBuf> {
    let absolute = |key: &str| env::var_os(key).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    Some(state?.join("minivmm"))
}

/// Where the snapshots of a machine are.
pub(in crate::cli) fn snapshots_of(machine: &MachineName) -> Option<PathBuf> {
    Some(state_folder()?.join("snapshots").join(machine.as_str()))
}

/// Removes `name` of `folder`, which is gone at once, and what a process that was killed in the midst of this has left. False if there is
/// none.
pub(in crate::cli) fn remove_hidden(folder: &Path, name: &str) -> io::Result<bool> {
    let hidden = folder.join(format!(".{name}.{}{DELETED}", std::process::id()));
    match fs::rename(folder.join(name), hidden) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(false);
        }
        renamed => renamed?,
    }
    // Those too whose deletion was killed.
    for entry in folder.read_dir()?.flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with('.') && name.ends_with(DELETED)) {
            let file = entry.file_type().is_ok_and(|kind| !kind.is_dir());
            let removed = if file { fs::remove_file(entry.path()) } else { fs::remove_dir_all(entry.path()) };
            match removed {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(true)
}
