//! What the bodies of requests ask for.

use super::errno::Errno;
use super::filesystem::{
    Answer, Change, Handle, Lock, LockKind, Name, New, OpenMode, Rename, Seek, SetTime, SetXattr, Space, Time,
};
use super::opcode as op;
use super::wire::Fields;

/// Longest name of an extended attribute (`XATTR_NAME_MAX`).
const MOST_XATTR_NAME: usize = 255;
/// Longest text of a symbolic link: `PATH_MAX` without its zero.
const MOST_LINK: usize = 4095;

/// The name of an extended attribute.
pub(super) fn xattr_name<'a>(body: &mut Fields<'a>) -> Answer<&'a [u8]> {
    let name = body.text()?;
    match name.len() {
        0 => Err(Errno::INVAL),
        1..=MOST_XATTR_NAME => Ok(name),
        _ => Err(Errno::RANGE),
    }
}

/// Flags of open(2) as Linux has them on x86, and those of FUSE.
pub(super) fn open_mode(flags: u32, of_fuse: u32) -> Answer<OpenMode> {
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
pub(super) fn rename(body: &mut Fields<'_>) -> Answer<Rename> {
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
pub(super) fn new(opcode: u32, mut body: Fields<'_>) -> Answer<(Name<'_>, New<'_>)> {
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
pub(super) fn change(mut body: Fields<'_>) -> Answer<(Option<Handle>, Change)> {
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

/// `fuse_setxattr_in` of the first version: a name, its value and how it is set.
pub(super) fn xattr<'a>(body: &mut Fields<'a>) -> Answer<(&'a [u8], &'a [u8], SetXattr)> {
    let (size, flags) = (body.u32()?, body.u32()?);
    let name = xattr_name(body)?;
    let value = body.take(usize::try_from(size).unwrap_or(usize::MAX))?;
    let how = match flags {
        0 => SetXattr::Any,
        1 => SetXattr::Create,
        2 => SetXattr::Replace,
        _ => return Err(Errno::INVAL),
    };
    Ok((name, value, how))
}

/// `fuse_lseek_in`; where else a file can stand the guest knows by itself.
pub(super) fn seek(body: &mut Fields<'_>) -> Answer<(Handle, u64, Seek)> {
    let (handle, offset) = (Handle(body.u64()?), body.u64()?);
    match body.u32()? {
        3 => Ok((handle, offset, Seek::Data)),
        4 => Ok((handle, offset, Seek::Hole)),
        _ => Err(Errno::INVAL),
    }
}

/// `fuse_fallocate_in`: where, how much and what is made of it.
pub(super) fn allocation(body: &mut Fields<'_>) -> Answer<(Handle, u64, u64, Space)> {
    let (handle, offset, len) = (Handle(body.u64()?), body.u64()?, body.u64()?);
    // `FALLOC_FL_KEEP_SIZE`, `_PUNCH_HOLE`, `_ZERO_RANGE`.
    let what = match body.u32()? {
        0 => Space::Allocate { keep_size: false },
        1 => Space::Allocate { keep_size: true },
        3 => Space::Punch,
        0x10 => Space::Zero { keep_size: false },
        0x11 => Space::Zero { keep_size: true },
        _ => return Err(Errno::NOTSUP),
    };
    if offset.checked_add(len).is_none_or(|end| i64::try_from(end).is_err()) {
        return Err(Errno::FBIG);
    }
    Ok((handle, offset, len, what))
}

/// `fuse_lk_in`.
pub(super) fn lock(body: &mut Fields<'_>) -> Answer<Lock> {
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
    Ok(Lock { handle, owner, is_flock, kind, start, end })
}
