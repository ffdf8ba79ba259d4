//! What the device asks of a file system. All arguments are copies that the guest cannot change any more, and checked as far
//! as the protocol goes; nodes and handles are numbers that the guest may have made up.

use std::fmt;
use std::fmt::Debug;
use std::sync::atomic::AtomicBool;

use devices::component::StateError;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::errno::Errno;
use super::listing::Listing;
use crate::memory::{Memory, Segment};

/// The result of an operation.
pub type Answer<T> = Result<T, Errno>;

/// A file, folder or link that the guest knows, by the number that the file system gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Node(pub u64);

impl Node {
    /// The folder that is mounted.
    pub const ROOT: Self = Node(1);
}

/// An open file or folder, by the number that the file system gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Handle(pub u64);

/// A name in a folder: 1 to 255 bytes of any kind but `/` and zero, and neither `.` nor `..`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    /// `NAME_MAX`.
    pub const MAX: usize = 255;

    /// `bytes` as a name.
    ///
    /// # Errors
    /// [`Errno::NAMETOOLONG`], or [`Errno::INVAL`] for what is no name.
    pub fn new(bytes: &'a [u8]) -> Answer<Self> {
        if bytes.len() > Self::MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let is_name = !matches!(bytes, b"" | b"." | b"..") && !bytes.contains(&b'/') && !bytes.contains(&0);
        if is_name { Ok(Name(bytes)) } else { Err(Errno::INVAL) }
    }

    /// Its bytes.
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }
}

/// A moment, as seconds since 1970 and nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Time {
    /// Seconds, of either sign.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

/// What stat(2) tells of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attr {
    /// Its number on the file system.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes that are allocated.
    pub blocks: u64,
    /// Last read.
    pub atime: Time,
    /// Last write.
    pub mtime: Time,
    /// Last change of its attributes.
    pub ctime: Time,
    /// When it was made, if that is known.
    pub born: Option<Time>,
    /// Kind and permissions, as `st_mode`.
    pub mode: u32,
    /// Names that it has.
    pub nlink: u32,
    /// Owner in the guest.
    pub uid: u32,
    /// Group in the guest.
    pub gid: u32,
    /// Number of a device file.
    pub rdev: u32,
    /// Preferred size of a transfer.
    pub block_size: u32,
}

/// What a name stands for. The guest counts how many of these it was given for a node, and gives them back by
/// [`FileSystem::forget`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The node.
    pub node: Node,
    /// Tells apart nodes that have had the same number.
    pub generation: u64,
    /// Its attributes.
    pub attr: Attr,
}

/// Who asks, in the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum New<'a> {
    /// An empty file with these permissions.
    File(u32),
    /// A FIFO, likewise.
    Fifo(u32),
    /// A socket, likewise.
    Socket(u32),
    /// A folder, likewise.
    Folder(u32),
    /// A symbolic link with this text, which nobody here follows.
    Link(&'a [u8]),
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The host's present time.
    Now,
    /// This.
    At(Time),
}

/// What to change of a file's attributes: what is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// Permissions.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes.
    pub size: Option<u64>,
    /// Last read.
    pub atime: Option<SetTime>,
    /// Last write.
    pub mtime: Option<SetTime>,
    /// The set-user-id and set-group-id bits go.
    pub drops_privileges: bool,
}

/// How to open a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools, reason = "flags of open(2)")]
pub struct OpenMode {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// Each write is on stable storage when it ends.
    pub sync: bool,
    /// Empties it.
    #[serde(skip)]
    pub truncate: bool,
    /// It must not be there yet.
    #[serde(skip)]
    pub exclusive: bool,
    /// If it is emptied, its set-user-id and set-group-id bits go.
    #[serde(skip)]
    pub drops_privileges: bool,
}

/// Where to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteAt {
    /// At this byte.
    Offset(u64),
    /// Behind the last byte, wherever that is at this moment.
    End,
}

/// What to do when a rename's target is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Rename {
    /// Replace it.
    #[default]
    Replace,
    /// Fail.
    Keep,
    /// Swap both.
    Exchange,
}

/// Where lseek(2) goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// The next data.
    Data,
    /// The next hole.
    Hole,
}

/// What fallocate(2) does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// Gives room; the file grows if need be, or not.
    Allocate {
        /// The size stays.
        keep_size: bool,
    },
    /// Makes a hole.
    Punch,
    /// Makes zeros.
    Zero {
        /// The size stays.
        keep_size: bool,
    },
}

/// How much a file system holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Blocks of `block_size` bytes.
    pub blocks: u64,
    /// Of them free.
    pub free: u64,
    /// Of them free for this user.
    pub available: u64,
    /// Files that fit.
    pub files: u64,
    /// Of them free.
    pub files_free: u64,
    /// Bytes.
    pub block_size: u32,
}

/// How to set an extended attribute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SetXattr {
    /// Whether it is there or not.
    #[default]
    Any,
    /// It must not be there.
    Create,
    /// It must be there.
    Replace,
}

/// How long a guest may use what it knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Caching {
    /// Names and attributes for a second; data while size and time of change stay. Writes are passed on at once.
    #[default]
    Auto,
    /// For a day, and writes are collected: nobody else changes the files.
    Always,
    /// Not at all.
    Never,
}

/// Kind of a lock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockKind {
    /// Others may read-lock too.
    Read,
    /// Exclusive.
    Write,
    /// No lock.
    #[default]
    None,
}

/// A lock that somebody in the guest asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lock {
    /// The open file.
    pub handle: Handle,
    /// Who has it, as the guest's kernel numbers owners.
    pub owner: u64,
    /// Whether it is one of flock(2), on the whole file, else one of fcntl(2).
    pub is_flock: bool,
    /// What kind.
    pub kind: LockKind,
    /// First byte.
    pub start: u64,
    /// Last byte; `i64::MAX` is the end of the file, wherever it is.
    pub end: u64,
}

type Call = dyn FnOnce(&AtomicBool) -> Answer<u64> + Send;

/// What is left of a request: a call that may take long, with all that it needs, for another thread.
pub struct Work {
    call: Box<Call>,
    can_be_left: bool,
}

impl Work {
    /// One that changes nothing that anybody sees: it may go on when nobody waits for it any more, and be done again.
    pub fn sync(call: impl FnOnce() -> Answer<()> + Send + 'static) -> Self {
        Work { call: Box::new(|_| call().map(|()| 0)), can_be_left: true }
    }

    /// One that changes files, and returns a number. Once its argument is set it ends soon: with what there is so far, or with
    /// [`Errno::INTR`] to be done again from its beginning.
    pub fn change(call: impl FnOnce(&AtomicBool) -> Answer<u64> + Send + 'static) -> Self {
        Work { call: Box::new(call), can_be_left: false }
    }

    /// Does it.
    ///
    /// # Errors
    /// As all.
    pub fn run(self, stops: &AtomicBool) -> Answer<u64> {
        (self.call)(stops)
    }

    /// Whether nothing is to wait for it where it is not wanted any more.
    pub(super) fn can_be_left(&self) -> bool {
        self.can_be_left
    }
}

impl Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work").field("can_be_left", &self.can_be_left).finish_non_exhaustive()
    }
}

/// A file system. Calls do not wait for anything but the host's files, and what may take long they return as [`Work`].
pub trait FileSystem: Debug + Send {
    /// How long the guest may use what it knows.
    fn caching(&self) -> Caching;

    /// Whether locks of the guest are to come here; they stay in the guest otherwise.
    fn has_locks(&self) -> bool {
        false
    }

    /// A guest mounts it: nothing of an earlier one is left. `collects_writes`: it reads pages to change parts of them, and
    /// appends by itself.
    fn begin(&mut self, collects_writes: bool);

    /// What `name` in `parent` is.
    ///
    /// # Errors
    /// An [`Errno`], as all calls.
    fn lookup(&mut self, parent: Node, name: Name<'_>) -> Answer<Entry>;

    /// The guest gives back `count` entries of `node`; more than it has are all of them.
    fn forget(&mut self, node: Node, count: u64);

    /// Its attributes.
    ///
    /// # Errors
    /// As all.
    fn attr(&mut self, node: Node, handle: Option<Handle>) -> Answer<Attr>;

    /// Changes attributes; how they are then.
    ///
    /// # Errors
    /// As all.
    fn set_attr(&mut self, node: Node, handle: Option<Handle>, change: &Change) -> Answer<Attr>;

    /// Appends the text of a symbolic link.
    ///
    /// # Errors
    /// As all.
    fn read_link(&mut self, node: Node, text: &mut Vec<u8>) -> Answer<()>;

    /// Makes something new.
    ///
    /// # Errors
    /// As all.
    fn make(&mut self, parent: Node, name: Name<'_>, new: New<'_>, caller: Caller) -> Answer<Entry>;

    /// Removes a name: of an empty folder, or of anything else.
    ///
    /// # Errors
    /// As all.
    fn remove(&mut self, parent: Node, name: Name<'_>, is_folder: bool) -> Answer<()>;

    /// Moves a name.
    ///
    /// # Errors
    /// As all.
    fn rename(&mut self, from: (Node, Name<'_>), to: (Node, Name<'_>), how: Rename) -> Answer<()>;

    /// Gives a file another name.
    ///
    /// # Errors
    /// As all.
    fn link(&mut self, node: Node, parent: Node, name: Name<'_>) -> Answer<Entry>;

    /// Opens a file.
    ///
    /// # Errors
    /// As all.
    fn open(&mut self, node: Node, mode: OpenMode) -> Answer<Handle>;

    /// Makes a file with `permissions` unless it is there, and opens it.
    ///
    /// # Errors
    /// As all.
    fn create(
        &mut self,
        parent: Node,
        name: Name<'_>,
        permissions: u32,
        mode: OpenMode,
        caller: Caller,
    ) -> Answer<(Entry, Handle)>;

    /// Opens a folder.
    ///
    /// # Errors
    /// As all.
    fn open_folder(&mut self, node: Node) -> Answer<Handle>;

    /// Lists an open folder from `offset` on, which is 0 or what an earlier listing gave, until `into` is full.
    ///
    /// # Errors
    /// As all.
    fn list(&mut self, handle: Handle, offset: u64, into: &mut Listing<'_>) -> Answer<()>;

    /// Closes a file or folder.
    fn release(&mut self, handle: Handle);

    /// Reads at `offset` into guest memory; how many bytes there were.
    ///
    /// # Errors
    /// As all.
    fn read(&mut self, handle: Handle, offset: u64, memory: &Memory, into: &[Segment]) -> Answer<u64>;

    /// Writes guest memory; how many bytes it took. `drops_privileges` as [`Change::drops_privileges`].
    ///
    /// # Errors
    /// As all.
    fn write(
        &mut self,
        handle: Handle,
        at: WriteAt,
        memory: &Memory,
        from: &[Segment],
        drops_privileges: bool,
    ) -> Answer<u64>;

    /// Puts an open file or folder on stable storage, or only its data.
    ///
    /// # Errors
    /// As all.
    fn sync(&mut self, handle: Handle, data_only: bool) -> Answer<Work>;

    /// Puts everything on stable storage.
    ///
    /// # Errors
    /// As all.
    fn sync_all(&mut self) -> Answer<Work>;

    /// How much it holds.
    ///
    /// # Errors
    /// As all.
    fn usage(&mut self) -> Answer<Usage>;

    /// Where the next data or hole is.
    ///
    /// # Errors
    /// As all.
    fn seek(&mut self, handle: Handle, offset: u64, to: Seek) -> Answer<u64>;

    /// Changes which parts of a file have room.
    ///
    /// # Errors
    /// As all.
    fn allocate(&mut self, handle: Handle, offset: u64, len: u64, what: Space) -> Answer<Work>;

    /// Copies from file to file; how many bytes.
    ///
    /// # Errors
    /// As all.
    fn copy(&mut self, from: (Handle, u64), to: (Handle, u64), len: u64) -> Answer<Work>;

    /// Appends an extended attribute's value.
    ///
    /// # Errors
    /// As all.
    fn xattr(&mut self, node: Node, name: &[u8], value: &mut Vec<u8>) -> Answer<()>;

    /// Appends the names of all, each with a zero behind it.
    ///
    /// # Errors
    /// As all.
    fn xattrs(&mut self, node: Node, names: &mut Vec<u8>) -> Answer<()>;

    /// Sets one.
    ///
    /// # Errors
    /// As all.
    fn set_xattr(&mut self, node: Node, name: &[u8], value: &[u8], how: SetXattr) -> Answer<()>;

    /// Removes one.
    ///
    /// # Errors
    /// As all.
    fn remove_xattr(&mut self, node: Node, name: &[u8]) -> Answer<()>;

    /// Takes or gives up a lock. [`Errno::AGAIN`]: somebody else has it.
    ///
    /// # Errors
    /// As all.
    fn lock(&mut self, lock: &Lock) -> Answer<()> {
        let _ = lock;
        Err(Errno::NOSYS)
    }

    /// Whose locks in the guest are in the way of `lock`, none of which is its owner's.
    fn blockers(&self, lock: &Lock) -> Vec<u64> {
        let _ = lock;
        Vec::new()
    }

    /// A lock that is in the way of `lock`, if any: its kind, first and last byte.
    ///
    /// # Errors
    /// As all.
    fn conflict(&mut self, lock: &Lock) -> Answer<Option<(LockKind, u64, u64)>> {
        let _ = lock;
        Err(Errno::NOSYS)
    }

    /// A file was closed by `owner`, whose fcntl(2) locks end. What is left to do of it, which may take long.
    ///
    /// # Errors
    /// As all.
    fn closed(&mut self, handle: Handle, owner: u64) -> Answer<Option<Work>> {
        let _ = (handle, owner);
        Err(Errno::NOSYS)
    }

    /// Asks again for locks that others had when the state was loaded: the machine that it was saved of has them until it ends. How
    /// many could not be had; as `is_last` these are lost.
    fn reacquire_locks(&mut self, is_last: bool) -> usize {
        let _ = is_last;
        0
    }

    /// What the guest knows of it: nodes and open files.
    ///
    /// # Errors
    /// [`StateError::Refused`].
    fn save(&self) -> Result<Value, StateError>;

    /// Takes over what [`FileSystem::save`] gave, from a hostile hand. Changes nothing on an error.
    ///
    /// # Errors
    /// [`StateError`].
    fn load(&mut self, state: &Value) -> Result<(), StateError>;
}
