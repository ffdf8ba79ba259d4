//! Where named machines are found: the runtime directory, a folder with a socket and a lock file for each
//! machine. The folder `switch` in it is the same for virtual switches.
//!
//! The lock says which machine is alive: its process holds the lock from before the socket exists until after
//! it is removed, and the kernel releases it however that process ends. A socket without a held lock is
//! stale; the next process that finds it takes the lock and removes the socket.
//!
//! The folder may vanish while the machine lives: logind removes $XDG_RUNTIME_DIR at logout, and other
//! programs clean /run and /tmp. So the name is also bound in the kernel ([`super::abstract_name`]), and
//! [`Claim::renew`] makes the files again.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::abstract_name::{self, AbstractName, Holder};
use crate::host::connect::connect;
use crate::host::identity::{identity, is_at};
use crate::host::lock::{Kind, is_locked, pid_clause, try_lock, user};
use crate::host::peer::Peer;
pub(crate) use crate::host::runtime_folders::own_folder;
use crate::host::runtime_folders::{SWITCHES, folders, switch_folders};
use crate::host::soon::{MOMENT, patience_for, soon_by};
use crate::shown::path as shown;
use crate::spec::{MachineName, SwitchName};

/// A lock that is held only to remove stale files is free again at once.
const AT_ONCE: Duration = Duration::from_millis(100);
/// Limit for connecting to a listener whose backlog is full.
const CONNECT_LIMIT: Duration = Duration::from_millis(500);
/// Maximum length of a Unix socket's path (`sun_path` of unix(7), less the terminating zero).
const SOCKET_PATH_MAX: usize = 107;

/// Why a machine cannot have its name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// Another machine has the name.
    #[error("a machine called {name} runs already{}; stop it with `minivmm stop {name}`, or choose another name", pid_clause(.pid))]
    Taken {
        /// The name.
        name: MachineName,
        /// Its process, if known.
        pid: Option<u32>,
    },
    /// The folder cannot be made.
    #[error(
        "the folder {path} for control sockets cannot be made: {source}; set XDG_RUNTIME_DIR to a folder of yours, or \
         leave out `--name`", path = shown(path)
    )]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// Other users could replace our sockets.
    #[error(
        "the folder {path} for control sockets is not yours alone; make it so with `chown` and `chmod 700`, or \
         remove it", path = shown(path)
    )]
    Shared {
        /// The folder.
        path: PathBuf,
    },
    /// The path of the socket is too long for the kernel.
    #[error(
        "the control socket {path} of `--name` has a path of {length} bytes, and a Unix socket's has {SOCKET_PATH_MAX} at \
         most; set XDG_RUNTIME_DIR to a folder with a shorter path, or choose a shorter name", path = shown(path)
    )]
    Long {
        /// The socket.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// The host refused a file in the folder.
    #[error("cannot {action} {path}: {source}; it is the control socket of `--name`", path = shown(path))]
    Host {
        /// The operation.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
}

/// A machine that is alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunningMachine {
    pub(crate) name: MachineName,
    pub(crate) socket: PathBuf,
    pub(crate) pid: Option<u32>,
}

impl RunningMachine {
    /// Whether its socket exists; without it the machine receives signals only.
    pub(crate) fn has_socket(&self) -> bool {
        fs::symlink_metadata(&self.socket).is_ok_and(|file| file.file_type().is_socket())
    }
}

/// A machine's name and socket, released on drop.
#[derive(Debug)]
pub struct Claim {
    listener: UnixListener,
    /// The socket's device and inode.
    socket: (u64, u64),
    name: HeldName,
    /// Dropped last. `None` where the kernel has no abstract sockets, or another user has bound the name.
    abstract_name: Option<AbstractName>,
}

impl Claim {
    /// Takes a name for a machine of this user, in the folder that `minivmm ls` lists.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub fn take(name: &MachineName) -> Result<Self, ClaimError> {
        // Also in the folders of this user's other sessions.
        if let Some(RunningMachine { name, pid, .. }) = find_lasting(name) {
            return Err(ClaimError::Taken { name, pid });
        }
        Self::take_in(&own_folder(), name)
    }

    /// Takes a name for a switch of this user.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub(crate) fn take_switch(name: &SwitchName) -> Result<Self, ClaimError> {
        let name = MachineName::from(name);
        if let Some(RunningMachine { name, pid, .. }) = lasting(|| find_in_any(&switch_folders(), &name)) {
            return Err(ClaimError::Taken { name, pid });
        }
        Self::take_in(&own_folder().join(SWITCHES), &name)
    }

    /// The same in this folder.
    pub(super) fn take_in(folder: &Path, name: &MachineName) -> Result<Self, ClaimError> {
        let files = Files::of(folder, name);
        let length = files.socket.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            return Err(ClaimError::Long { path: files.socket, length });
        }
        let abstract_name = bind_abstract_name(folder, name)?;
        prepare(folder)?;
        let held = HeldName::take(folder, name)?;
        let (listener, socket) = held.bind()?;
        Ok(Claim { listener, socket, name: held, abstract_name })
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.name.files.socket
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    pub(super) fn abstract_name(&self) -> Option<&AbstractName> {
        self.abstract_name.as_ref()
    }

    /// Makes the files again that have vanished. True if there is a new listener.
    ///
    /// # Errors
    /// The folder cannot be made or is shared with other users, or another process has taken the name.
    pub(super) fn renew(&mut self) -> Result<bool, ClaimError> {
        let socket = &self.name.files.socket;
        let locked = is_at(&self.name.lock, &self.name.files.lock);
        if locked && fs::symlink_metadata(socket).is_ok_and(|there| identity(&there) == self.socket) {
            return Ok(false);
        }
        let Some(folder) = socket.parent() else { return Ok(false) };
        prepare(folder)?;
        if !locked {
            self.name.lock = open_lock(&self.name.files)?
                .map_err(|pid| ClaimError::Taken { name: self.name.name.clone(), pid })?;
        }
        (self.listener, self.socket) = self.name.bind()?;
        Ok(true)
    }
}

/// What is found, unless it is about to be gone.
fn lasting(find: impl Fn() -> Option<RunningMachine>) -> Option<RunningMachine> {
    soon_by(|| find().map_or(Ok(()), Err), |found| patience_with(found.pid)).err()
}

/// How long to wait for a name that this process has, or one that nobody knows. One that this process itself gave up is in the kernel a little longer if another of its threads
/// starts a program, which has copies of all open sockets until it runs.
fn patience_with(pid: Option<u32>) -> Duration {
    match pid {
        Some(own) if own == std::process::id() => AT_ONCE,
        pid => pid.map_or(MOMENT, patience_for),
    }
}

/// Binds the name in the kernel. Where that is not possible, the lock file alone decides.
fn bind_abstract_name(folder: &Path, name: &MachineName) -> Result<Option<AbstractName>, ClaimError> {
    let attempt = || match AbstractName::take(folder, name) {
        Ok(None) => Err(abstract_name::holder(folder, name)),
        taken => Ok(taken.ok().flatten()),
    };
    let patience = |holder: &Holder| match holder {
        // A machine that has just ended.
        Holder::None => AT_ONCE,
        Holder::OwnUser(pid) => patience_with(*pid),
        Holder::OtherUser => Duration::ZERO,
    };
    soon_by(attempt, patience).or_else(|holder| match holder {
        Holder::OwnUser(pid) => Err(ClaimError::Taken { name: name.clone(), pid }),
        Holder::None | Holder::OtherUser => Ok(None),
    })
}

/// All machines that are alive. Stale files are removed.
pub(crate) fn all() -> Vec<RunningMachine> {
    all_in_any(&folders())
}

/// All switches that are alive. Stale files are removed.
pub(crate) fn all_switches() -> Vec<RunningMachine> {
    all_in_any(&switch_folders())
}

fn all_in_any(folders: &[PathBuf]) -> Vec<RunningMachine> {
    let mut machines: Vec<_> = folders.iter().flat_map(|folder| all_in(folder)).collect();
    machines.sort_by(|one, other| one.name.cmp(&other.name));
    machines
}

fn all_in(folder: &Path) -> Vec<RunningMachine> {
    // Without a readable folder, the kernel's list is the only source.
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<MachineName> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let name = name.to_str()?;
            name.strip_suffix(".sock").or_else(|| name.strip_suffix(".lock"))?.parse().ok()
        })
        .chain(abstract_name::names(folder))
        .collect();
    names.sort();
    names.dedup();
    let mut alive = Vec::new();
    for name in names {
        match find_in(folder, &name) {
            Some(machine) => alive.push(machine),
            // Dropping the lock removes the stale files. A process that takes the name at this moment is not
            // disturbed.
            None => drop(HeldName::try_take(folder, &name)),
        }
    }
    alive
}

/// The machine of this name, if it is alive.
pub(crate) fn find(name: &MachineName) -> Option<RunningMachine> {
    find_in_any(&folders(), name)
}

/// The same, unless it is about to be gone, which is waited for.
pub(crate) fn find_lasting(name: &MachineName) -> Option<RunningMachine> {
    lasting(|| find(name))
}

/// The switch of this name, if it is alive.
pub(crate) fn find_switch(name: &SwitchName) -> Option<RunningMachine> {
    find_in_any(&switch_folders(), &name.into())
}

fn find_in_any(folders: &[PathBuf], name: &MachineName) -> Option<RunningMachine> {
    folders.iter().find_map(|folder| find_in(folder, name))
}

/// The process that listens for this machine, as the kernel reports it.
pub(crate) fn process_of(machine: &RunningMachine) -> Option<u32> {
    let listener = connect(&machine.socket, Instant::now() + CONNECT_LIMIT)
        .ok()
        .and_then(|stream| Peer::of(&stream).ok());
    match (listener, machine.socket.parent()) {
        (Some(peer), _) if [0, user()].contains(&peer.user) => peer.pid,
        (_, Some(folder)) => match abstract_name::holder(folder, &machine.name) {
            Holder::OwnUser(pid) => pid,
            Holder::None | Holder::OtherUser => None,
        },
        _ => None,
    }
}

fn find_in(folder: &Path, name: &MachineName) -> Option<RunningMachine> {
    let files = Files::of(folder, name);
    let lock = File::open(&files.lock).ok().filter(|lock| is_locked(lock).unwrap_or(false));
    let pid = match lock {
        Some(lock) => read_pid(&lock),
        None => match abstract_name::holder(folder, name) {
            Holder::OwnUser(pid) => pid,
            Holder::None | Holder::OtherUser => return None,
        },
    };
    Some(RunningMachine { name: name.clone(), socket: files.socket, pid })
}

/// Makes the folder, or checks that only this user has access.
fn prepare(folder: &Path) -> Result<(), ClaimError> {
    match folder.parent().filter(|_| folder.ends_with(SWITCHES)) {
        Some(above) => prepare_one(above).and_then(|()| prepare_one(folder)),
        None => prepare_one(folder),
    }
}

fn prepare_one(folder: &Path) -> Result<(), ClaimError> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(ClaimError::Folder { path: folder.into(), source: error });
        }
        _ => {}
    }
    let found = fs::symlink_metadata(folder).map_err(host("examine", folder))?;
    // The owner of the parent folder can replace this one.
    let above = folder.parent().map_or(Ok(0), |above| fs::metadata(above).map(|above| above.uid()));
    let above = above.map_err(host("examine", folder))?;
    if found.is_dir() && found.uid() == user() && found.mode() & 0o077 == 0 && [0, user()].contains(&above) {
        return Ok(());
    }
    Err(ClaimError::Shared { path: folder.into() })
}

fn host(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ClaimError {
    move |source| ClaimError::Host { action, path: path.into(), source }
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

/// A name's lock, held. Dropping it removes the files.
#[derive(Debug)]
struct HeldName {
    name: MachineName,
    files: Files,
    lock: File,
}

impl HeldName {
    fn take(folder: &Path, name: &MachineName) -> Result<Self, ClaimError> {
        let attempt =
            || Self::try_take(folder, name)?.map_err(|pid| ClaimError::Taken { name: name.clone(), pid });
        soon_by(attempt, |error| match error {
            ClaimError::Taken { pid, .. } => patience_with(*pid).max(AT_ONCE),
            _ => Duration::ZERO,
        })
    }

    /// One attempt. The inner error is the pid of the process that holds the lock.
    fn try_take(folder: &Path, name: &MachineName) -> Result<Result<Self, Option<u32>>, ClaimError> {
        let files = Files::of(folder, name);
        let lock = open_lock(&files)?;
        Ok(lock.map(|lock| HeldName { name: name.clone(), files, lock }))
    }

    /// Makes the socket: its listener, and its device and inode.
    fn bind(&self) -> Result<(UnixListener, (u64, u64)), ClaimError> {
        let socket = &self.files.socket;
        self.clear_socket()?;
        let listener = UnixListener::bind(socket).map_err(host("make", socket))?;
        // The folder's mode keeps other users out until then.
        fs::set_permissions(socket, Permissions::from_mode(0o600)).map_err(host("protect", socket))?;
        let found = fs::symlink_metadata(socket).map_err(host("examine", socket))?;
        Ok((listener, identity(&found)))
    }

    /// Removes a stale socket, and no other kind of file.
    fn clear_socket(&self) -> Result<(), ClaimError> {
        let path = &self.files.socket;
        match fs::symlink_metadata(path) {
            Ok(file) if file.file_type().is_socket() => fs::remove_file(path).map_err(host("remove", path)),
            Ok(_) => Err(host("replace", path)(io::Error::other("it is no socket"))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(host("examine", path)(error)),
        }
    }
}

impl Drop for HeldName {
    fn drop(&mut self) {
        // The folder may have vanished, and another process may have made its own.
        if !is_at(&self.lock, &self.files.lock) {
            return;
        }
        // If this fails, the next machine of the name or the next `minivmm ls` removes the files.
        let _ = self.clear_socket();
        // Before the lock is released, so that it is not another process's file.
        let _ = fs::remove_file(&self.files.lock);
    }
}

/// Opens and locks the file. The inner error is the pid of the process that holds the lock.
fn open_lock(files: &Files) -> Result<Result<File, Option<u32>>, ClaimError> {
    let path = files.lock.clone();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut lock = options.custom_flags(libc::O_NOFOLLOW).open(&path).map_err(host("make", &path))?;
    if !try_lock(&lock, Kind::Exclusive).map_err(host("lock", &path))? {
        return Ok(Err(read_pid(&lock)));
    }
    // The previous holder may have removed the file since it was opened; the lock would be on a deleted file.
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
