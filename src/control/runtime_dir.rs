//! Where machines with a name are found: a folder with a socket and a lock file each.
//!
//! The lock says which machine lives: its process holds it from before the socket is there until after it has gone, and
//! the kernel releases it however that process ends. A socket whose lock nobody holds is a dead machine's; the next process
//! that finds it removes it, with the lock held.
//!
//! The folder may vanish while the machine lives: logind removes $XDG_RUNTIME_DIR at logout, and other programs clean
//! /run and /tmp. So the name is also bound in the kernel ([`super::guard`]), and [`Claim::renew`] makes the files again.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::guard::{self, Guard, Holder};
use crate::host::connect::connect;
use crate::host::identity::{identity, is_at};
use crate::host::lock::{Kind, by, is_locked, try_lock, user};
use crate::host::peer::Peer;
use crate::spec::MachineName;

/// Where root's machines are, and those of users without a place of their own whom root has let there.
const SYSTEM: &str = "/run/minivmm";
/// A lock that is held for removing what a dead machine left is free again at once.
const ATTEMPTS: u32 = 10;
const ATTEMPT: Duration = Duration::from_millis(10);
/// How long a listener without room is waited for that only has to be there.
const PATIENCE: Duration = Duration::from_millis(500);
/// Bytes of the longest path that a Unix socket can have (`sun_path` of unix(7), less the zero that ends it).
const SOCKET_PATH_MAX: usize = 107;

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
    /// The name of the socket is longer than the kernel takes.
    #[error(
        "the control socket {path} of `--name` has a path of {length} bytes, and a Unix socket's has {SOCKET_PATH_MAX} at \
         most; set XDG_RUNTIME_DIR to a folder with a shorter path, or choose a shorter name", path = path.display()
    )]
    Long {
        /// The socket.
        path: PathBuf,
        /// Its bytes.
        length: usize,
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
pub(crate) struct RunningMachine {
    pub(crate) name: MachineName,
    pub(crate) socket: PathBuf,
    pub(crate) pid: Option<u32>,
}

impl RunningMachine {
    /// Whether its socket is there; without it the machine hears signals only.
    pub(crate) fn has_socket(&self) -> bool {
        fs::symlink_metadata(&self.socket).is_ok_and(|file| file.file_type().is_socket())
    }
}

/// A machine's name and socket, for as long as this lives.
#[derive(Debug)]
pub struct Claim {
    listener: UnixListener,
    /// The socket's device and inode.
    socket: (u64, u64),
    name: Held,
    /// Dropped last. `None` where the kernel gives none, or another user has bound it.
    guard: Option<Guard>,
}

impl Claim {
    /// Takes a name for a machine of this user's, where `minivmm ls` looks.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub fn take(name: &MachineName) -> Result<Self, PlaceError> {
        // Also where this user's other sessions put theirs.
        if let Some(RunningMachine { name, pid, .. }) = find(name) {
            return Err(PlaceError::Taken { name, pid });
        }
        Self::take_in(&own_folder(), name)
    }

    /// The same in this folder.
    pub(super) fn take_in(folder: &Path, name: &MachineName) -> Result<Self, PlaceError> {
        let files = Files::of(folder, name);
        let length = files.socket.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            return Err(PlaceError::Long { path: files.socket, length });
        }
        let guard = take_guard(folder, name)?;
        prepare(folder)?;
        let held = Held::take(folder, name)?;
        let (listener, socket) = held.bind()?;
        Ok(Claim { listener, socket, name: held, guard })
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.name.files.socket
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    pub(super) fn guard(&self) -> Option<&Guard> {
        self.guard.as_ref()
    }

    /// Makes the files again that have vanished. True if there is a new listener.
    ///
    /// # Errors
    /// The folder cannot be made, or is not this user's alone, or another process has the name there now.
    pub(super) fn renew(&mut self) -> Result<bool, PlaceError> {
        let socket = &self.name.files.socket;
        let locked = is_at(&self.name.lock, &self.name.files.lock);
        if locked && fs::symlink_metadata(socket).is_ok_and(|there| identity(&there) == self.socket) {
            return Ok(false);
        }
        let Some(folder) = socket.parent() else { return Ok(false) };
        prepare(folder)?;
        if !locked {
            self.name.lock = open_lock(&self.name.files)?
                .map_err(|pid| PlaceError::Taken { name: self.name.name.clone(), pid })?;
        }
        (self.listener, self.socket) = self.name.bind()?;
        Ok(true)
    }
}

/// Binds the name in the kernel. Where that is not to be had, the lock file alone decides.
fn take_guard(folder: &Path, name: &MachineName) -> Result<Option<Guard>, PlaceError> {
    for _ in 0..ATTEMPTS {
        match Guard::take(folder, name) {
            Ok(Some(guard)) => return Ok(Some(guard)),
            Ok(None) => {}
            Err(_) => return Ok(None),
        }
        match guard::holder(folder, name) {
            // A machine that has just ended.
            Holder::None => thread::sleep(ATTEMPT),
            Holder::Ours(pid) => return Err(PlaceError::Taken { name: name.clone(), pid }),
            Holder::Stranger => return Ok(None),
        }
    }
    Ok(None)
}

/// Every machine that lives. What dead ones have left is removed.
pub(crate) fn all() -> Vec<RunningMachine> {
    let mut places: Vec<_> = folders().iter().flat_map(|folder| all_in(folder)).collect();
    places.sort_by(|one, other| one.name.cmp(&other.name));
    places
}

fn all_in(folder: &Path) -> Vec<RunningMachine> {
    // Where the folder is not there, or of others, the kernel's list is all there is.
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<MachineName> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let name = name.to_str()?;
            name.strip_suffix(".sock").or_else(|| name.strip_suffix(".lock"))?.parse().ok()
        })
        .chain(guard::names(folder))
        .collect();
    names.sort();
    names.dedup();
    let mut living = Vec::new();
    for name in names {
        match look(folder, &name) {
            Some(place) => living.push(place),
            // Removes what is there as it is dropped. A process that takes the name at this moment is not disturbed.
            None => drop(Held::once(folder, &name)),
        }
    }
    living
}

/// The machine of this name, if it lives.
pub(crate) fn find(name: &MachineName) -> Option<RunningMachine> {
    folders().iter().find_map(|folder| look(folder, name))
}

/// The process that listens for this machine, in the kernel's words.
pub(crate) fn process_of(place: &RunningMachine) -> Option<u32> {
    let listener =
        connect(&place.socket, Instant::now() + PATIENCE).ok().and_then(|stream| Peer::of(&stream).ok());
    match (listener, place.socket.parent()) {
        (Some(peer), _) if [0, user()].contains(&peer.user) => peer.pid,
        (_, Some(folder)) => match guard::holder(folder, &place.name) {
            Holder::Ours(pid) => pid,
            Holder::None | Holder::Stranger => None,
        },
        _ => None,
    }
}

fn look(folder: &Path, name: &MachineName) -> Option<RunningMachine> {
    let files = Files::of(folder, name);
    let lock = File::open(&files.lock).ok().filter(|lock| is_locked(lock).unwrap_or(false));
    let pid = match lock {
        Some(lock) => read_pid(&lock),
        None => match guard::holder(folder, name) {
            Holder::Ours(pid) => pid,
            Holder::None | Holder::Stranger => return None,
        },
    };
    Some(RunningMachine { name: name.clone(), socket: files.socket, pid })
}

/// Where this user's machines go.
pub(crate) fn own_folder() -> PathBuf {
    let own = |path: &PathBuf| {
        // That of another user, as `sudo` may hand it on, is not ours to use.
        fs::metadata(path).is_ok_and(|folder| folder.uid() == user())
    };
    runtime_folder().filter(own).map_or_else(|| SYSTEM.into(), |folder| folder.join("minivmm"))
}

/// What the session calls its folder for sockets, there or not.
fn runtime_folder() -> Option<PathBuf> {
    std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Where to look for machines: root's own session is not where a service started by systemd goes; `su` and cron say no
/// folder, and logind's is meant; and a folder that has vanished still names machines in the kernel.
fn folders() -> Vec<PathBuf> {
    let logind = || PathBuf::from(format!("/run/user/{}", user()));
    let session = runtime_folder().unwrap_or_else(logind).join("minivmm");
    each_once([own_folder(), session, SYSTEM.into()])
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

/// Makes the folder, or sees that it is ours alone.
fn prepare(folder: &Path) -> Result<(), PlaceError> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(PlaceError::Folder { path: folder.into(), source: error });
        }
        _ => {}
    }
    let found = fs::symlink_metadata(folder).map_err(host("look at", folder))?;
    // Whoever owns the folder above can put another one in its place.
    let above = folder.parent().map_or(Ok(0), |above| fs::metadata(above).map(|above| above.uid()));
    let above = above.map_err(host("look at", folder))?;
    if found.is_dir() && found.uid() == user() && found.mode() & 0o077 == 0 && [0, user()].contains(&above) {
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
    name: MachineName,
    files: Files,
    lock: File,
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

    /// Tries it once; the process that holds it if another one does.
    fn once(folder: &Path, name: &MachineName) -> Result<Result<Self, Option<u32>>, PlaceError> {
        let files = Files::of(folder, name);
        let lock = open_lock(&files)?;
        Ok(lock.map(|lock| Held { name: name.clone(), files, lock }))
    }

    /// Makes the socket: its listener, and what no other file has.
    fn bind(&self) -> Result<(UnixListener, (u64, u64)), PlaceError> {
        let socket = &self.files.socket;
        self.clear_socket()?;
        let listener = UnixListener::bind(socket).map_err(host("make", socket))?;
        // The folder lets nobody else in meanwhile.
        fs::set_permissions(socket, Permissions::from_mode(0o600)).map_err(host("protect", socket))?;
        let found = fs::symlink_metadata(socket).map_err(host("look at", socket))?;
        Ok((listener, identity(&found)))
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
        // The folder may have vanished, and another process may have made its own.
        if !is_at(&self.lock, &self.files.lock) {
            return;
        }
        // What cannot be removed is removed by the next machine of the name, or by the next `minivmm ls`.
        let _ = self.clear_socket();
        // Before the lock itself is let go, so that it is nobody else's.
        let _ = fs::remove_file(&self.files.lock);
    }
}

/// Opens and locks; the process that has the lock if another one does.
fn open_lock(files: &Files) -> Result<Result<File, Option<u32>>, PlaceError> {
    let path = files.lock.clone();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut lock = options.custom_flags(libc::O_NOFOLLOW).open(&path).map_err(host("make", &path))?;
    if !try_lock(&lock, Kind::Exclusive).map_err(host("lock", &path))? {
        return Ok(Err(read_pid(&lock)));
    }
    // The process that held it before may have removed it since we opened it; then it is a lock on nothing.
    if !is_at(&lock, &path) {
        return Ok(Err(None));
    }
    let pid = format!("{}\n", std::process::id());
    lock.set_len(0).and_then(|()| lock.write_all(pid.as_bytes())).map_err(host("write", &path))?;
    Ok(Ok(lock))
}

fn read_pid(mut lock: &File) -> Option<u32> {
    let mut text = [0; 16];
    let n = lock.read(&mut text).ok()?;
    std::str::from_utf8(text.get(..n)?).ok()?.trim_end().parse().ok()
}

#[cfg(test)]
mod tests;
