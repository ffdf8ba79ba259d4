//! The file of `--pidfile`: present while the machine runs, and complete whenever it is visible.
//!
//! The machine's process holds a lock on the file for its whole life. A file without a lock is stale; only a
//! process that has taken the lock itself may replace it.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::host::identity::is_at;
use crate::host::lock::{Kind, pid_clause, try_lock};
use crate::host::lock_soon::lock_soon;
use crate::shown::path as shown;

/// Another process may take the name at the same moment, and die at once.
const ATTEMPTS: u32 = 10;
/// Maximum length of a pidfile's content; a pid has at most seven digits.
const MAX_LENGTH: usize = 16;

/// Why there is no pidfile.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum PidfileError {
    /// A running machine has it.
    #[error("the pidfile {path} is that of a machine that runs{}; name another one with `--pidfile`", pid_clause(.pid), path = shown(path))]
    InUse {
        /// The file.
        path: PathBuf,
        /// Its process.
        pid: Option<u32>,
    },
    /// The path is another kind of file.
    #[error("{path} is there and is no pidfile; it is left alone: name another one with `--pidfile`", path = shown(path))]
    NotPidfile {
        /// The file.
        path: PathBuf,
    },
    /// The host refused.
    #[error("the pidfile {path} cannot be written: {source}; name one in a folder of yours with `--pidfile`", path = shown(path))]
    Host {
        /// The file.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
}

/// A pidfile, removed on drop.
#[derive(Debug)]
pub(in crate::cli) struct Pidfile {
    path: PathBuf,
    /// The file, locked, once it is published.
    file: Option<File>,
}

impl Pidfile {
    /// Checks that the file can be made, and removes a stale one.
    pub(in crate::cli) fn prepare(path: &Path) -> Result<Self, PidfileError> {
        remove_stale(path)?;
        // Everything that the host may refuse later: a new file, its lock, space for the pid, and a hard
        // link.
        let mut temporary = TempFile::new(path)?;
        try_lock(&temporary.file, Kind::Exclusive).map_err(host(path))?;
        temporary.write_pid().map_err(host(path))?;
        let mut second = temporary.path.clone().into_os_string();
        second.push(".link");
        let _ = fs::remove_file(&second);
        let linked = fs::hard_link(&temporary.path, &second);
        let _ = fs::remove_file(&second);
        linked.map_err(host(path))?;
        Ok(Pidfile { path: path.into(), file: None })
    }

    /// Moves the file to its path, where it is not there yet.
    pub(in crate::cli) fn publish(&mut self) -> Result<(), PidfileError> {
        if self.file.is_some() {
            return Ok(());
        }
        let mut temporary = TempFile::new(&self.path)?;
        let error = || host(&self.path);
        if !try_lock(&temporary.file, Kind::Exclusive).map_err(error())? {
            return Err(error()(ErrorKind::WouldBlock.into()));
        }
        temporary.write_pid().map_err(error())?;
        let file = temporary.file.try_clone().map_err(error())?;
        let mut attempt = 1;
        loop {
            // link(2) never replaces a file.
            match fs::hard_link(&temporary.path, &self.path) {
                Ok(()) => break,
                Err(error) if error.kind() == ErrorKind::AlreadyExists && attempt < ATTEMPTS => {
                    remove_stale(&self.path)?
                }
                Err(source) => return Err(error()(source)),
            }
            attempt += 1;
        }
        self.file = Some(file);
        Ok(())
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        // Before the lock is released, so that it is not another process's file.
        if self.file.as_ref().is_some_and(|file| is_at(file, &self.path)) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A new file beside its destination. Its temporary name is removed on drop.
#[derive(Debug)]
struct TempFile {
    path: PathBuf,
    file: File,
}

impl TempFile {
    fn new(place: &Path) -> Result<Self, PidfileError> {
        let Some(name) = place.file_name() else {
            return Err(host(place)(ErrorKind::InvalidInput.into()));
        };
        let mut first = OsString::from(".");
        first.push(name);
        first.push(format!(".{}", std::process::id()));
        let path = place.with_file_name(first);
        // The name contains our pid: a file of that name is stale.
        let _ = fs::remove_file(&path);
        let file =
            File::options().write(true).create_new(true).mode(0o644).open(&path).map_err(host(place))?;
        Ok(TempFile { path, file })
    }

    fn write_pid(&mut self) -> io::Result<()> {
        self.file.write_all(format!("{}\n", std::process::id()).as_bytes())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes a stale pidfile, and no other file.
fn remove_stale(path: &Path) -> Result<(), PidfileError> {
    let not_pidfile = || PidfileError::NotPidfile { path: path.into() };
    let mut options = OpenOptions::new();
    // O_NOFOLLOW: a symbolic link may lead to another user's file. O_NONBLOCK: a FIFO would block.
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
    let mut file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::EISDIR | libc::ENXIO)) => {
            return Err(not_pidfile());
        }
        Err(error) => return Err(host(path)(error)),
    };
    if !file.metadata().map_err(host(path))?.is_file() {
        return Err(not_pidfile());
    }
    let free = lock_soon(&file, Kind::Exclusive).map_err(host(path))?;
    let pid = read_pid(&mut file);
    if !free {
        return Err(PidfileError::InUse { path: path.into(), pid: pid.flatten() });
    }
    if pid.is_none() {
        return Err(not_pidfile());
    }
    if is_at(&file, path) {
        fs::remove_file(path).map_err(host(path))?;
    }
    Ok(())
}

/// The content of a pidfile: a number, or nothing yet as `mktemp` leaves it. `None` for any other file.
fn read_pid(file: &mut File) -> Option<Option<u32>> {
    let mut text = String::new();
    file.take(MAX_LENGTH as u64 + 1).read_to_string(&mut text).ok()?;
    match text.trim() {
        "" => Some(None),
        number if text.len() <= MAX_LENGTH => number.parse().ok().map(Some),
        _ => None,
    }
}

fn host(path: &Path) -> impl FnOnce(io::Error) -> PidfileError {
    move |source| PidfileError::Host { path: path.into(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn files(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn pidfile_comes_whole_and_goes_and_is_one_machines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        let mut pidfile = Pidfile::prepare(&path).unwrap();
        assert!(files(folder.path()).is_empty(), "nothing until it runs");
        pidfile.publish().unwrap();
        let own = std::process::id();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{own}\n"));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777 & !0o022, 0o644);
        assert_eq!(files(folder.path()), ["pid"]);
        let error = Pidfile::prepare(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("that of a machine that runs, as process {own};")), "{error}");
        drop(pidfile);
        assert!(files(folder.path()).is_empty());
    }

    #[test]
    fn what_a_dead_machine_left_is_replaced_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        for left in ["4194304\n", "1", ""] {
            fs::write(&path, left).unwrap();
            let mut pidfile = Pidfile::prepare(&path).unwrap();
            pidfile.publish().unwrap();
            drop(pidfile);
            assert!(files(folder.path()).is_empty());
        }
        for precious in ["QFI\u{fb}", "12 34", "-5", "1\n2\n", "00000000000000000001"] {
            fs::write(&path, precious).unwrap();
            assert!(matches!(Pidfile::prepare(&path), Err(PidfileError::NotPidfile { .. })), "{precious}");
            assert_eq!(fs::read_to_string(&path).unwrap(), precious);
        }
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for other in [&link, folder.path(), Path::new("/dev/null")] {
            assert!(matches!(Pidfile::prepare(other), Err(PidfileError::NotPidfile { .. })), "{other:?}");
        }
        let error = Pidfile::prepare(&folder.path().join("no/pid")).unwrap_err();
        assert!(matches!(error, PidfileError::Host { .. }), "{error}");
    }

    #[test]
    fn a_pidfile_that_somebody_put_in_our_place_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        let mut pidfile = Pidfile::prepare(&path).unwrap();
        pidfile.publish().unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "1\n").unwrap();
        drop(pidfile);
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
    }

    #[test]
    fn of_two_that_start_at_once_one_gets_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        fs::write(&path, "1\n").unwrap();
        let mut first = Pidfile::prepare(&path).unwrap();
        let mut second = Pidfile::prepare(&path).unwrap();
        first.publish().unwrap();
        assert!(matches!(second.publish(), Err(PidfileError::InUse { pid: Some(_), .. })));
        drop(second);
        assert!(path.exists());
        drop(first);
        assert!(files(folder.path()).is_empty());
    }
}
