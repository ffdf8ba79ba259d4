//! A request of FUSE, from its bytes to a call of the [`FileSystem`] and to the bytes of its answer.

use super::errno::Errno;
use super::filesystem::{
    Answer, Caching, Caller, Change, FileSystem, Handle, Lock, LockKind, Name, New, Node, OpenMode, Rename,
    Seek, SetTime, SetXattr, Space, Time, Work, WriteAt,
};
use super::listing::Listing;
use super::opcode as op;
use super::session::{MOST_READ, MOST_WRITE, Session};
use super::wire::{self, Fields, Header};
use crate::memory::{Memory, Segment, cut, total};

/// Most bytes of a listing, of an attribute's value (`XATTR_SIZE_MAX`) and of the names of all.
const MOST_ANSWER: usize = 64 << 10;
/// Longest name of an extended attribute (`XATTR_NAME_MAX`).
const MOST_XATTR_NAME: usize = 255;
/// Longest text of a symbolic link: `PATH_MAX` without its zero.
const MOST_LINK: usize = 4095;
/// Bytes of `fuse_write_in` and `fuse_read_in`.
pub(super) const TRANSFER: usize = 40;
/// Of `open(2)` on x86-64.
const O_APPEND: u32 = 0o2000;
/// Most bytes that are copied for one request: the guest goes on from there.
const MOST_COPY: u64 = 64 << 20;

/// What became of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The answer is in the server's buffer.
    Answered,
    /// So many bytes of data lie in guest memory, behind the header's place.
    Data(u64),
    /// There is no answer.
    Silent,
    /// It waits for a lock.
    Waits(Lock),
    /// Another thread is to do this. Its answer is the number that comes of it, or empty.
    Later { work: Work, says_count: bool },
    /// The request of this number is to end its waiting, if it waits.
    Interrupts(u64),
}

/// Where a request's data are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Buffers<'a> {
    pub(super) memory: &'a Memory,
    pub(super) readable: &'a [Segment],
    pub(super) writable: &'a [Segment],
}

impl Buffers<'_> {
    /// Bytes for an answer behind its header.
    fn room(&self) -> usize {
        usize::try_from(total(self.writable)).unwrap_or(usize::MAX).saturating_sub(wire::OUT_HEADER)
    }
}

/// A file system and what its guest has agreed on.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) fs: Box<dyn FileSystem>,
    pub(super) session: Session,
    /// The answer at hand, without its header.
    pub(super) out: Vec<u8>,
    segments: Vec<Segment>,
    /// Bytes that the last request moved: read, written.
    pub(super) moved: (u64, u64),
    /// A lock may have become free.
    pub(super) frees_locks: bool,
}

impl Server {
    pub(super) fn new(fs: Box<dyn FileSystem>) -> Self {
        Server {
            fs,
            session: Session::default(),
            out: Vec::new(),
            segments: Vec::new(),
            moved: (0, 0),
            frees_locks: false,
        }
    }

    /// No guest has mounted it.
    pub(super) fn end_session(&mut self) {
        self.session = Session::default();
        self.fs.begin(false);
        self.frees_locks = true;
    }

    /// Does what `header` and `body` ask for.
    pub(super) fn serve(
        &mut self,
        header: &Header,
        body: Fields<'_>,
        buffers: Buffers<'_>,
    ) -> Answer<Outcome> {
        self.out.clear();
        self.moved = (0, 0);
        if buffers.room() < op::answer_size(header.opcode) {
            return Err(Errno::INVAL);
        }
        match header.opcode {
            op::INIT => {
                self.end_session();
                let (caching, has_locks) = (self.fs.caching(), self.fs.has_locks());
                self.session = Session::init(body, caching, has_locks, &mut self.out)?;
                self.fs.begin(self.session.collects_writes());
                return Ok(Outcome::Answered);
            }
            _ if !self.session.started => return Err(Errno::IO),
            _ => {}
        }
        let node = Node(header.node);
        match header.opcode {
            op::READ => self.read(body, buffers),
            op::WRITE => self.write(body, buffers),
            op::READDIR => self.list(body, buffers, false),
            op::READDIRPLUS => self.list(body, buffers, true),
            op::GETXATTR | op::LISTXATTR => self.xattr(node, header.opcode, body),
            op::FORGET | op::BATCH_FORGET => self.forget(node, header.opcode, body),
            op::INTERRUPT => Ok(Outcome::Interrupts({ body }.u64()?)),
            op::GETLK | op::SETLK | op::SETLKW => self.lock(header.opcode, body),
            op::FSYNC | op::FSYNCDIR | op::SYNCFS | op::FALLOCATE | op::COPY_FILE_RANGE => {
                let work = self.work(header.opcode, body)?;
                Ok(Outcome::Later { work, says_count: header.opcode == op::COPY_FILE_RANGE })
            }
            op::FLUSH => self.flush(body),
            opcode => self.simple(opcode, node, header, body).map(|()| Outcome::Answered),
        }
    }

    /// Requests with a short answer.
    fn simple(&mut self, opcode: u32, node: Node, header: &Header, mut body: Fields<'_>) -> Answer<()> {
        let caching = self.fs.caching();
        let caller = Caller { uid: header.uid, gid: header.gid };
        match opcode {
            op::LOOKUP => {
                let name = body.name()?;
                match self.fs.lookup(node, name) {
                    Ok(entry) => wire::entry(&mut self.out, Some(&entry), caching),
                    // A name that is not there is remembered too.
                    Err(Errno::NOENT) if caching == Caching::Always => {
                        wire::entry(&mut self.out, None, caching);
                    }
                    Err(error) => return Err(error),
                }
            }
            op::GETATTR => {
                let has_handle = body.u32()? & 1 != 0;
                body.skip(4)?;
                let handle = has_handle.then_some(Handle(body.u64()?));
                let attr = self.fs.attr(node, handle)?;
                wire::attr_out(&mut self.out, &attr, caching);
            }
            op::STATX => {
                let has_handle = body.u32()? & 1 != 0;
                body.skip(4)?;
                let handle = has_handle.then_some(Handle(body.u64()?));
                let attr = self.fs.attr(node, handle)?;
                wire::statx(&mut self.out, &attr, caching);
            }
            op::SETATTR => {
                let (handle, change) = change(body)?;
                let attr = self.fs.set_attr(node, handle, &change)?;
                wire::attr_out(&mut self.out, &attr, caching);
            }
            op::READLINK => self.fs.read_link(node, &mut self.out)?,
            op::SYMLINK | op::MKNOD | op::MKDIR => {
                let (name, new) = new(opcode, body)?;
                let entry = self.fs.make(node, name, new, caller)?;
                wire::entry(&mut self.out, Some(&entry), caching);
            }
            op::UNLINK | op::RMDIR => self.fs.remove(node, body.name()?, opcode == op::RMDIR)?,
            op::RENAME | op::RENAME2 => {
                let to = Node(body.u64()?);
                let how = if opcode == op::RENAME { Rename::Replace } else { rename(&mut body)? };
                let (from_name, to_name) = (body.name()?, body.name()?);
                self.fs.rename((node, from_name), (to, to_name), how)?;
            }
            op::LINK => {
                let of = Node(body.u64()?);
                let entry = self.fs.link(of, node, body.name()?)?;
                wire::entry(&mut self.out, Some(&entry), caching);
            }
            op::OPEN => {
                let mode = open_mode(body.u32()?, body.u32()?)?;
                let handle = self.fs.open(node, OpenMode { exclusive: false, ..mode })?;
                self.opened(handle, caching);
            }
            op::CREATE => {
                let (flags, permissions) = (body.u32()?, body.u32()?);
                body.skip(4)?;
                let mode = open_mode(flags, body.u32()?)?;
                let (entry, handle) =
                    self.fs.create(node, body.name()?, permissions & 0o7777, mode, caller)?;
                wire::entry(&mut self.out, Some(&entry), caching);
                self.opened(handle, caching);
            }
            op::OPENDIR => {
                let handle = self.fs.open_folder(node)?;
                wire::u64(&mut self.out, handle.0);
                // FOPEN_KEEP_CACHE and FOPEN_CACHE_DIR.
                wire::u64(&mut self.out, if caching == Caching::Always { 0xa } else { 0 });
            }
            op::RELEASE | op::RELEASEDIR => {
                self.fs.release(Handle(body.u64()?));
                self.frees_locks = true;
            }
            op::STATFS => {
                let usage = self.fs.usage()?;
                wire::usage(&mut self.out, &usage);
            }
            op::SETXATTR => {
                let (size, flags) = (body.u32()?, body.u32()?);
                let name = xattr_name(&mut body)?;
                let value = body.take(usize::try_from(size).unwrap_or(usize::MAX))?;
                let how = match flags {
                    0 => SetXattr::Any,
                    1 => SetXattr::Create,
                    2 => SetXattr::Replace,
                    _ => return Err(Errno::INVAL),
                };
                self.fs.set_xattr(node, name, value, how)?;
            }
            op::REMOVEXATTR => self.fs.remove_xattr(node, xattr_name(&mut body)?)?,
            // Of what the guest has collected the host knows nothing: to it that would be holes. It takes all for data then, and asks no more.
            op::LSEEK if self.session.collects_writes() => return Err(Errno::NOSYS),
            op::LSEEK => {
                let (handle, offset) = (Handle(body.u64()?), body.u64()?);
                // Others the guest does by itself.
                let to = match body.u32()? {
                    3 => Seek::Data,
                    4 => Seek::Hole,
                    _ => return Err(Errno::INVAL),
                };
                let at = self.fs.seek(handle, offset, to)?;
                wire::u64(&mut self.out, at);
            }
            op::DESTROY => self.end_session(),
            _ => return Err(Errno::NOSYS),
        }
        Ok(())
    }

    /// Locks of who closed the file end, whatever else is to be done.
    fn flush(&mut self, mut body: Fields<'_>) -> Answer<Outcome> {
        let handle = Handle(body.u64()?);
        body.skip(8)?;
        let owner = body.u64()?;
        // Also where the rest fails.
        self.frees_locks = true;
        let work = self.fs.closed(handle, owner)?;
        Ok(work.map_or(Outcome::Answered, |work| Outcome::Later { work, says_count: false }))
    }

    /// Requests whose calls may take long.
    fn work(&mut self, opcode: u32, mut body: Fields<'_>) -> Answer<Work> {
        match opcode {
            op::SYNCFS => self.fs.sync_all(),
            op::FALLOCATE => {
                let (handle, offset, len) = (Handle(body.u64()?), body.u64()?, body.u64()?);
                let what = match body.u32()? {
                    0 => Space::Allocate { keep_size: false },
                    1 => Space::Allocate { keep_size: true },
                    3 => Space::Punch,
                    0x10 => Space::Zero { keep_size: false },
                    0x11 => Space::Zero { keep_size: true },
                    _ => return Err(Errno::NOTSUP),
                };
                if offset.checked_add(len).is_none_or(|end| i64::try_from(end).is_err()) {
                    return Err(Errno::new(27));
                }
                self.fs.allocate(handle, offset, len, what)
            }
            op::COPY_FILE_RANGE => {
                let from = (Handle(body.u64()?), body.u64()?);
                body.skip(8)?;
                let to = (Handle(body.u64()?), body.u64()?);
                let (len, flags) = (body.u64()?, body.u64()?);
                if flags != 0 {
                    return Err(Errno::INVAL);
                }
                self.fs.copy(from, to, len.min(MOST_COPY))
            }
            // FSYNC and FSYNCDIR.
            _ => {
                let handle = Handle(body.u64()?);
                self.fs.sync(handle, body.u32()? & 1 != 0)
            }
        }
    }

    /// `fuse_open_out` of a file.
    fn opened(&mut self, handle: Handle, caching: Caching) {
        wire::u64(&mut self.out, handle.0);
        let flags = match caching {
            Caching::Auto => 0,
            // FOPEN_KEEP_CACHE.
            Caching::Always => 2,
            // FOPEN_DIRECT_IO.
            Caching::Never => 1,
        };
        wire::u64(&mut self.out, flags);
    }

    fn read(&mut self, mut body: Fields<'_>, buffers: Buffers<'_>) -> Answer<Outcome> {
        let (handle, offset, size) = (Handle(body.u64()?), body.u64()?, body.u32()?);
        let size = u64::from(size.min(MOST_READ)).min(buffers.room() as u64);
        self.segments.clear();
        cut(buffers.writable, wire::OUT_HEADER as u64, size, &mut self.segments);
        let read = self.fs.read(handle, offset, buffers.memory, &self.segments)?;
        self.moved.0 = read;
        Ok(Outcome::Data(read))
    }

    fn write(&mut self, mut body: Fields<'_>, buffers: Buffers<'_>) -> Answer<Outcome> {
        let (handle, offset, size) = (Handle(body.u64()?), body.u64()?, body.u32()?);
        // FUSE_WRITE_CACHE: pages of a cache, which have their places whoever has the file open how. FUSE_WRITE_KILL_SUIDGID.
        let write_flags = body.u32()?;
        let (from_cache, drops_privileges) = (write_flags & 1 != 0, write_flags & 4 != 0);
        body.skip(8)?;
        let is_append = body.u32()? & O_APPEND != 0;
        body.skip(4)?;
        let data = (wire::IN_HEADER + TRANSFER) as u64;
        if total(buffers.readable).checked_sub(data) != Some(size.into()) || size > MOST_WRITE {
            return Err(Errno::INVAL);
        }
        self.segments.clear();
        cut(buffers.readable, data, size.into(), &mut self.segments);
        let appends = is_append && !from_cache && !self.session.collects_writes();
        let at = if appends { WriteAt::End } else { WriteAt::Offset(offset) };
        let written = self.fs.write(handle, at, buffers.memory, &self.segments, drops_privileges)?;
        self.moved.1 = written;
        wire::u64(&mut self.out, written.min(size.into()));
        Ok(Outcome::Answered)
    }

    fn list(&mut self, mut body: Fields<'_>, buffers: Buffers<'_>, plus: bool) -> Answer<Outcome> {
        let (handle, offset, size) = (Handle(body.u64()?), body.u64()?, body.u32()?);
        let room = usize::try_from(size).unwrap_or(usize::MAX).min(buffers.room()).min(MOST_ANSWER);
        let caching = self.fs.caching();
        self.fs.list(handle, offset, &mut Listing::new(&mut self.out, room, caching, plus))?;
        Ok(Outcome::Answered)
    }

    /// A value or all names. A size of 0 asks how long it is (`fuse_getxattr_out`).
    fn xattr(&mut self, node: Node, opcode: u32, mut body: Fields<'_>) -> Answer<Outcome> {
        let size = usize::try_from(body.u32()?).unwrap_or(usize::MAX);
        body.skip(4)?;
        if opcode == op::GETXATTR {
            self.fs.xattr(node, xattr_name(&mut body)?, &mut self.out)?;
        } else {
            self.fs.xattrs(node, &mut self.out)?;
        }
        let len = self.out.len();
        if len > MOST_ANSWER {
            return Err(Errno::TOO_BIG);
        }
        if size == 0 {
            self.out.clear();
            wire::u64(&mut self.out, len as u64);
        } else if len > size {
            return Err(Errno::RANGE);
        }
        Ok(Outcome::Answered)
    }

    fn forget(&mut self, node: Node, opcode: u32, mut body: Fields<'_>) -> Answer<Outcome> {
        if opcode == op::FORGET {
            self.fs.forget(node, body.u64()?);
            return Ok(Outcome::Silent);
        }
        let count = body.u32()?;
        body.skip(4)?;
        // As many as there are; the count is the guest's word.
        for _ in 0..count {
            let (Ok(node), Ok(lookups)) = (body.u64(), body.u64()) else { break };
            self.fs.forget(Node(node), lookups);
        }
        Ok(Outcome::Silent)
    }

    fn lock(&mut self, opcode: u32, mut body: Fields<'_>) -> Answer<Outcome> {
        let (handle, owner) = (Handle(body.u64()?), body.u64()?);
        let (start, end, kind) = (body.u64()?, body.u64()?, body.u32()?);
        body.skip(4)?;
        let is_flock = body.u32()? & 1 != 0;
        let kind = match kind {
            0 => LockKind::Read,
            1 => LockKind::Write,
            2 => LockKind::None,
            _ => return Err(Errno::INVAL),
        };
        if start > end || i64::try_from(end).is_err() {
            return Err(Errno::INVAL);
        }
        let lock = Lock { handle, owner, is_flock, kind, start, end };
        if opcode == op::GETLK {
            let found = self.fs.conflict(&lock)?;
            let (kind, start, end) = found.unwrap_or((LockKind::None, start, end));
            wire::u64(&mut self.out, start);
            wire::u64(&mut self.out, end);
            let kind = match kind {
                LockKind::Read => 0,
                LockKind::Write => 1,
                LockKind::None => 2,
            };
            wire::u32(&mut self.out, kind);
            // Which process has it is known to the guest's kernel at most.
            wire::u32(&mut self.out, 0);
            return Ok(Outcome::Answered);
        }
        match self.fs.lock(&lock) {
            Err(Errno::AGAIN) if opcode == op::SETLKW => Ok(Outcome::Waits(lock)),
            Err(error) => Err(error),
            Ok(()) => {
                // Also a lock that became a weaker one.
                self.frees_locks = true;
                Ok(Outcome::Answered)
            }
        }
    }
}

/// The name of an extended attribute.
fn xattr_name<'a>(body: &mut Fields<'a>) -> Answer<&'a [u8]> {
    let name = body.text()?;
    match name.len() {
        0 => Err(Errno::INVAL),
        1..=MOST_XATTR_NAME => Ok(name),
        _ => Err(Errno::RANGE),
    }
}

/// Flags of open(2) as Linux has them on x86, and those of FUSE.
fn open_mode(flags: u32, of_fuse: u32) -> Answer<OpenMode> {
    let (read, write) = match flags & 3 {
        0 => (true, false),
        1 => (false, true),
        2 => (true, true),
        _ => return Err(Errno::INVAL),
    };
    Ok(OpenMode {
        read,
        write,
        sync: flags & 0o10000 != 0,
        // Also one that is opened for reading, as on the host.
        truncate: flags & 0o1000 != 0,
        exclusive: flags & 0o200 != 0,
        // FUSE_OPEN_KILL_SUIDGID.
        drops_privileges: of_fuse & 1 != 0,
    })
}

/// `fuse_rename2_in` behind its folder.
fn rename(body: &mut Fields<'_>) -> Answer<Rename> {
    let flags = body.u32()?;
    body.skip(4)?;
    match flags {
        0 => Ok(Rename::Replace),
        1 => Ok(Rename::Keep),
        2 => Ok(Rename::Exchange),
        // RENAME_WHITEOUT would make a device file.
        _ => Err(Errno::INVAL),
    }
}

/// `fuse_mknod_in` or `fuse_mkdir_in` and a name; of a link a name and its text.
fn new(opcode: u32, mut body: Fields<'_>) -> Answer<(Name<'_>, New<'_>)> {
    if opcode == op::SYMLINK {
        let name = body.name()?;
        let text = body.text()?;
        return match text.len() {
            0 => Err(Errno::NOENT),
            1..=MOST_LINK => Ok((name, New::Link(text))),
            _ => Err(Errno::NAMETOOLONG),
        };
    }
    let mode = body.u32()?;
    let permissions = mode & 0o7777;
    if opcode == op::MKDIR {
        body.skip(4)?;
        return Ok((body.name()?, New::Folder(permissions)));
    }
    body.skip(12)?;
    let new = match mode & 0o170_000 {
        0 | 0o100_000 => New::File(permissions),
        0o010_000 => New::Fifo(permissions),
        0o140_000 => New::Socket(permissions),
        // Device files.
        0o020_000 | 0o060_000 => return Err(Errno::PERM),
        _ => return Err(Errno::INVAL),
    };
    Ok((body.name()?, new))
}

/// `fuse_setattr_in`.
fn change(mut body: Fields<'_>) -> Answer<(Option<Handle>, Change)> {
    let valid = body.u32()?;
    body.skip(4)?;
    let (handle, size, _owner) = (body.u64()?, body.u64()?, body.u64()?);
    let (atime, mtime, _ctime) = (body.u64()?, body.u64()?, body.u64()?);
    let (atime_nanos, mtime_nanos, _ctime_nanos) = (body.u32()?, body.u32()?, body.u32()?);
    let mode = body.u32()?;
    body.skip(4)?;
    let (uid, gid) = (body.u32()?, body.u32()?);
    let has = |bit: u32| valid >> bit & 1 != 0;
    let time = |set: u32, now: u32, seconds: u64, nanos: u32| match (has(set), has(now)) {
        (_, true) => Ok(Some(SetTime::Now)),
        (true, false) if nanos < 1_000_000_000 => {
            Ok(Some(SetTime::At(Time { seconds: seconds.cast_signed(), nanos })))
        }
        (true, false) => Err(Errno::INVAL),
        (false, false) => Ok(None),
    };
    let change = Change {
        mode: has(0).then_some(mode & 0o7777),
        uid: has(1).then_some(uid),
        gid: has(2).then_some(gid),
        size: has(3).then_some(size),
        atime: time(4, 7, atime, atime_nanos)?,
        mtime: time(5, 8, mtime, mtime_nanos)?,
        drops_privileges: has(11),
    };
    if change.size.is_some_and(|size| i64::try_from(size).is_err()) {
        return Err(Errno::INVAL);
    }
    Ok((has(6).then_some(Handle(handle)), change))
}
