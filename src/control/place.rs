//! Where machines with a name are found: a folder with a socket and a lock file each.
//!
//! The lock says who lives: the machine's process holds it from before the socket is there until after it has gone, and
//! the host lets go of it however that process ends. What lies there without its lock held is of the dead, and is removed
//! by whoever finds it, with the lock in hand.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::host::identity::is_at;
use crate::host::lock::{Kind, by, is_locked, try_lock, user};
use crate::spec::MachineName;

/// Where root's machines are, and those of users without a place of their own whom root has let there.
const SYSTEM: &str = "/run/minivmm";
/// A lock that is held for removing what a dead machine left is free again at once.
const ATTEMPTS: u32 = 10;
const ATTEMPT: Duration = Duration::from_millis(10);

/// Why a machine cannot have its name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// Another one has it.
    #[error("a machine called {name} runs already{}; stop it with `minivmm stop {name}`, or choose another name", by(.pid))]
    Taken {
        /// The name.
        name: MachineName,
        /// Its process, if that can be read.
        pid: Option<u32>,
    },
    /// The folder cannot be made.
    #[error(
        "the folder {path} for control sockets cannot be made: {source}; set XDG_RUNTIME_DIR to a folder of yours, or \
         leave out `--name`", path = path.display()
    )]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Others could put their sockets in the place of ours.
    #[error(
        "the folder {path} for control sockets is not yours alone; make it so with `chown` and `chmod 700`, or \
         remove it", path = path.display()
    )]
    Shared {
        /// The folder.
        path: PathBuf,
    },
    /// The host refused a file in it.
    #[error("cannot {action} {path}: {source}; it is the control socket of `--name`", path = path.display())]
    Host {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// A machine that lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) name: MachineName,
    pub(crate) socket: PathBuf,
    pub(crate) pid: Option<u32>,
}

/// A machine's name and socket, for as long as this lives.
#[derive(Debug)]
pub struct Claim {
    listener: UnixListener,
    name: Held,
}

impl Claim {
    /// Takes a name for a machine of this user's, where `minivmm ls` looks.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub fn take(name: &MachineName) -> Result<Self, PlaceError> {
        Self::take_in(&own_folder(), name)
    }

    /// The same in this folder.
    pub(super) fn take_in(folder: &Path, name: &MachineName) -> Result<Self, PlaceError> {
        prepare(folder)?;
        let held = Held::take(folder, name)?;
        let socket = &held.files.socket;
        held.clear_socket()?;
        let listener = UnixListener::bind(socket).map_err(host("make", socket))?;
        // The folder lets nobody else in meanwhile.
        fs::set_permissions(socket, Permissions::from_mode(0o600)).map_err(host("protect", socket))?;
        Ok(Claim { listener, name: held })
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.name.files.socket
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

/// Every machine that lives. What dead ones have left is removed.
pub(crate) fn all() -> Vec<Place> {
    let mut places: Vec<_> = folders().iter().flat_map(|folder| all_in(folder)).collect();
    places.sort_by(|one, other| one.name.cmp(&other.name));
    places
}

fn all_in(folder: &Path) -> Vec<Place> {
    // Not there, or of others.
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<MachineName> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let name = name.to_str()?;
            name.strip_suffix(".sock").or_else(|| name.strip_suffix(".lock"))?.parse().ok()
        })
        .collect();
    names.sort();
    names.dedup();
    let mut living = Vec::new();
    for name in names {
        match look(folder, &name) {
            Some(place) => living.push(place),
            // Removes what is there as it is dropped. Who takes the name at this moment is not disturbed.
            None => drop(Held::once(folder, &name)),
        }
    }
    living
}

/// The machine of this name, if it lives.
pub(crate) fn find(name: &MachineName) -> Option<Place> {
    folders().iter().find_map(|folder| look(folder, name))
}

fn look(folder: &Path, name: &MachineName) -> Option<Place> {
    let files = Files::of(folder, name);
    let lock = File::open(&files.lock).ok()?;
    let lives = is_locked(&lock).unwrap_or(false);
    lives.then(|| Place { name: name.clone(), socket: files.socket, pid: read_pid(&lock) })
}

/// Where this user's machines go.
fn own_folder() -> PathBuf {
    let folder = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| {
        // That of another user, as `sudo` may hand it on, is not ours to use.
        path.is_absolute() && fs::metadata(path).is_ok_and(|folder| folder.uid() == user())
    });
    folder.map_or_else(|| SYSTEM.into(), |folder| folder.join("minivmm"))
}

/// Where to look for machines: root's own session is not where a service started by systemd goes.
fn folders() -> Vec<PathBuf> {
    let mut folders = vec![own_folder(), SYSTEM.into()];
    folders.dedup();
    folders
}

/// Makes the folder, or sees that it is ours alone.
fn prepare(folder: &Path) -> Result<(), PlaceError> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(PlaceError::Folder { path: folder.into(), source: error });
        }
        _ => {}
    }
    let found = fs::symlink_metadata(folder).map_err(host("look at", folder))?;
    if found.is_dir() && found.uid() == user() && found.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(PlaceError::Shared { path: folder.into() })
}

fn host(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PlaceError {
    move |source| PlaceError::Host { action, path: path.into(), source }
}

/// The two files of a name.
#[derive(Debug)]
struct Files {
    socket: PathBuf,
    lock: PathBuf,
}

impl Files {
    fn of(folder: &Path, name: &MachineName) -> Self {
        let file = |suffix| folder.join(format!("{name}.{suffix}"));
        Files { socket: file("sock"), lock: file("lock") }
    }
}

/// A name's lock, held. With it go the files.
#[derive(Debug)]
struct Held {
    files: Files,
    /// Its file.
    _lock: File,
}

impl Held {
    fn take(folder: &Path, name: &MachineName) -> Result<Self, PlaceError> {
        for _ in 1..ATTEMPTS {
            if let Ok(held) = Self::once(folder, name)? {
                return Ok(held);
            }
            thread::sleep(ATTEMPT);
        }
        Self::once(folder, name)?.map_err(|pid| PlaceError::Taken { name: name.clone(), pid })
    }

    /// Tries it once; who holds it if another one does.
    fn once(folder: &Path, name: &MachineName) -> Result<Result<Self, Option<u32>>, PlaceError> {
        let files = Files::of(folder, name);
        let path = files.lock.clone();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut lock = options.custom_flags(libc::O_NOFOLLOW).open(&path).map_err(host("make", &path))?;
        if !try_lock(&lock, Kind::Exclusive).map_err(host("lock", &path))? {
            return Ok(Err(read_pid(&lock)));
        }
        // Who held it before may have removed it since we opened it; then it is a lock on nothing.
        if !is_at(&lock, &path) {
            return Ok(Err(None));
        }
        let pid = format!("{}\n", std::process::id());
        lock.set_len(0).and_then(|()| lock.write_all(pid.as_bytes())).map_err(host("write", &path))?;
        Ok(Ok(Held { files, _lock: lock }))
    }

    /// Removes a dead machine's socket, and nothing that is none.
    fn clear_socket(&self) -> Result<(), PlaceError> {
        let path = &self.files.socket;
        match fs::symlink_metadata(path) {
            Ok(file) if file.file_type().is_socket() => fs::remove_file(path).map_err(host("remove", path)),
            Ok(_) => Err(host("replace", path)(io::Error::other("it is no socket"))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(host("look at", path)(error)),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // What cannot be removed is removed by the next machine of the name, or by the next `minivmm ls`.
        let _ = self.clear_socket();
        // Before the lock itself is let go, so that it is nobody else's.
        let _ = fs::remove_file(&self.files.lock);
    }
}

fn read_pid(mut lock: &File) -> Option<u32> {
    let mut text = [0; 16];
    let n = lock.read(&mut text).ok()?;
    std::str::from_utf8(text.get(..n)?).ok()?.trim_end().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn name(text: &str) -> MachineName {
        text.parse().unwrap()
    }

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("minivmm");
        (outer, folder)
    }

    fn names(folder: &Path) -> Vec<String> {
        all_in(folder).iter().map(|place| place.name.to_string()).collect()
    }

    #[test]
    fn a_name_is_one_machines_and_its_files_are_its_users_alone() {
        let (_outer, folder) = folder();
        let claim = Claim::take_in(&folder, &name("vm0")).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(claim.path()).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(folder.join("vm0.lock")).unwrap().mode() & 0o777, 0o600);
        let error = Claim::take_in(&folder, &name("vm0")).unwrap_err();
        let own = std::process::id();
        assert!(error.to_string().contains(&format!("vm0 runs already, as process {own};")), "{error}");
        UnixStream::connect(claim.path()).unwrap();
        let other = Claim::take_in(&folder, &name("vm1")).unwrap();
        assert_eq!(names(&folder), ["vm0", "vm1"]);
        assert_eq!(look(&folder, &name("vm1")).unwrap().pid, Some(own));
        drop((claim, other));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        assert!(look(&folder, &name("vm0")).is_none());
    }

    #[test]
    fn what_a_dead_machine_left_is_removed_by_the_next_and_by_a_look_around() {
        let (_outer, folder) = folder();
        prepare(&folder).unwrap();
        let leave = |lock: bool| {
            drop(UnixListener::bind(folder.join("vm0.sock")).unwrap());
            if lock {
                fs::write(folder.join("vm0.lock"), "1\n").unwrap();
            }
        };
        for lock in [true, false] {
            leave(lock);
            assert!(look(&folder, &name("vm0")).is_none());
            assert!(names(&folder).is_empty());
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
            leave(lock);
            let claim = Claim::take_in(&folder, &name("vm0")).unwrap();
            UnixStream::connect(claim.path()).unwrap();
        }
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let (_outer, folder) = folder();
        prepare(&folder).unwrap();
        fs::write(folder.join("vm0.sock"), "precious").unwrap();
        fs::write(folder.join("notes.txt"), "precious").unwrap();
        assert!(matches!(Claim::take_in(&folder, &name("vm0")), Err(PlaceError::Host { .. })));
        assert!(names(&folder).is_empty());
        assert!(folder.join("vm0.sock").exists() && folder.join("notes.txt").exists());
    }

    #[test]
    fn a_folder_that_others_can_enter_is_refused() {
        let (outer, folder) = folder();
        prepare(&folder).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        let error = Claim::take_in(&folder, &name("vm0")).unwrap_err();
        assert!(matches!(error, PlaceError::Shared { .. }) && error.to_string().contains("chmod 700"));
        let link = outer.path().join("link");
        std::os::unix::fs::symlink(outer.path(), &link).unwrap();
        assert!(matches!(Claim::take_in(&link, &name("vm0")), Err(PlaceError::Shared { .. })));
        let nowhere = outer.path().join("no/such");
        assert!(matches!(Claim::take_in(&nowhere, &name("vm0")), Err(PlaceError::Folder { .. })));
    }

    #[test]
    fn of_many_who_want_a_name_at_once_one_has_it_at_a_time() {
        let (_outer, folder) = folder();
        let living = std::sync::atomic::AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        if let Ok(_claim) = Claim::take_in(&folder, &name("vm0")) {
                            use std::sync::atomic::Ordering::SeqCst;
                            assert_eq!(living.fetch_add(1, SeqCst), 0);
                            living.fetch_sub(1, SeqCst);
                        }
                        all_in(&folder);
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }
}
