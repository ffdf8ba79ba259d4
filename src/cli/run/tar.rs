//! Unpacks a tar archive that a guest sends. It may say anything: nothing is written outside of the folder, nothing is opened that was there
//! before, and memory is bounded. Space and time are the host's to limit.
//!
//! The guest, or another program, may also reach the folder in another way, such as a share: whatever it renames, or puts in the place of what
//! was made, is neither followed nor opened.
//!
//! Formats: ustar, GNU's long names, and pax headers for path, link and size.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{File, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, linkat, mkdirat, openat, statat, symlinkat, unlinkat};
use rustix::io::Errno;

use crate::image::printable;
use crate::shown;

const BLOCK: usize = 512;
/// Most members, and most bytes of names that are kept until the end.
const MEMBERS: usize = 1 << 20;
const KEPT: usize = 64 << 20;
/// Longest path (PATH_MAX) and deepest folder; each level costs a descriptor when it is removed.
const PATH: usize = 4096;
const DEPTH: usize = 100;
/// Longest pax header.
const PAX: u64 = 64 << 10;

/// Why the archive is not unpacked.
#[derive(Debug, thiserror::Error)]
pub(super) enum TarError {
    /// It does not follow the format, or ends early.
    #[error("what the guest sent is no tar archive, or has no end")]
    Damaged,
    /// A path that is not one in the folder.
    #[error("the guest sent a file with the name {0:?}, which leads out of the directory, or is too long")]
    Name(PathBuf),
    /// More than is kept in memory.
    #[error("the guest sent more files than are unpacked: {MEMBERS}")]
    TooMany,
    /// The host refused.
    #[error("cannot write {path}: {source}", path = shown::path(path))]
    Write {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

/// Members that were left out: devices, sockets, and links that lead out of the folder.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    pub(super) count: usize,
    /// Those of the first, as they are shown.
    names: Vec<String>,
}

/// Most names that are told.
const TOLD: usize = 5;

impl LeftOut {
    fn add(&mut self, path: &Path) {
        self.count += 1;
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        if self.names.len() < TOLD {
            self.names.push(printable(&shown::path(path)));
        }
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LeftOut { count, names } = self;
        write!(f, "{count} of the files for --out were left out: {}", names.join(", "))?;
        if *count > names.len() {
            write!(f, " and {} more", count - names.len())?;
        }
        f.write_str(" (devices, sockets, and links that lead out of the directory are)")
    }
}

/// Unpacks all of an archive beneath `folder`, an open one which is empty. Returns what was left out.
pub(super) fn unpack(from: &mut impl Read, folder: &File) -> Result<LeftOut, TarError> {
    let rooms = Rooms { top: folder, last: None };
    let mut unpacker = Unpacker {
        rooms,
        kept: 0,
        members: 0,
        folders: Vec::new(),
        links: Vec::new(),
        left_out: LeftOut::default(),
    };
    let mut extended = Extended::default();
    loop {
        let mut header = [0; BLOCK];
        from.read_exact(&mut header).map_err(|_| TarError::Damaged)?;
        if header == [0; BLOCK] {
            return unpacker.finish();
        }
        let header = Header::read(&header).ok_or(TarError::Damaged)?;
        match header.kind {
            b'L' => extended.path = Some(long(from, header.size)?),
            b'K' => extended.link = Some(long(from, header.size)?),
            b'x' => extended.pax(&content(from, header.size, PAX)?).ok_or(TarError::Damaged)?,
            b'g' => skip(from, header.size)?,
            _ => {
                let Extended { path, link, size } = std::mem::take(&mut extended);
                let path = path.unwrap_or(header.path);
                let (link, size) = (link.unwrap_or(header.link), size.unwrap_or(header.size));
                unpacker.add(from, &Member { path, link, size, ..header })?;
            }
        }
    }
}

/// Unpacks these bytes; else the sentence that is said of them. For the fuzzer.
#[doc(hidden)]
pub fn unpack_bytes(archive: &[u8], folder: &Path) -> Result<usize, String> {
    let folder = File::open(folder).map_err(|error| error.to_string())?;
    unpack(&mut &*archive, &folder).map(|left_out| left_out.count).map_err(|error| error.to_string())
}

/// What a header says.
#[derive(Debug)]
struct Member {
    path: Vec<u8>,
    link: Vec<u8>,
    kind: u8,
    size: u64,
    mode: u32,
    mtime: u64,
}

struct Header;

impl Header {
    fn read(block: &[u8; BLOCK]) -> Option<Member> {
        let field = |from: usize, len: usize| block.get(from..from + len).unwrap_or_default();
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        let own: u64 = field(148, 8).iter().map(|byte| u64::from(*byte)).sum();
        if number(field(148, 8))? != sum - own + 8 * u64::from(b' ') {
            return None;
        }
        let mut path = text(field(0, 100)).to_vec();
        // GNU's own format has other things in that place.
        let prefix = text(field(345, 155));
        if field(257, 6) == b"ustar\0" && !prefix.is_empty() {
            path = [prefix, &path].join(&b'/');
        }
        Some(Member {
            path,
            link: text(field(157, 100)).to_vec(),
            kind: field(156, 1).first().copied()?,
            size: number(field(124, 12))?,
            mode: u32::try_from(number(field(100, 8))?).ok()?,
            // Before 1970 is as good as then.
            mtime: number(field(136, 12)).unwrap_or(0),
        })
    }
}

/// What headers in front of a member's say of it.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Extended {
    /// Records of the form `LENGTH KEY=VALUE\n`.
    fn pax(&mut self, mut records: &[u8]) -> Option<()> {
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ')?;
            let length: usize = std::str::from_utf8(records.get(..space)?).ok()?.parse().ok()?;
            let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|byte| *byte == b'=')?;
            let (key, value) = (record.get(..equals)?, record.get(equals + 1..)?.to_vec());
            match key {
                b"path" => self.path = Some(value),
                b"linkpath" => self.link = Some(value),
                b"size" => self.size = Some(std::str::from_utf8(&value).ok()?.parse().ok()?),
                _ => {}
            }
            records = records.get(length..)?;
        }
        Some(())
    }
}

/// Up to the first zero.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits, or GNU's binary form.
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if *first == 0x80 {
        let (high, low) = rest.split_at_checked(rest.len().checked_sub(8)?)?;
        return high.iter().all(|byte| *byte == 0).then(|| low.try_into().ok().map(u64::from_be_bytes))?;
    }
    let digits = std::str::from_utf8(text(field)).ok()?.trim_matches(' ');
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

fn content(from: &mut impl Read, size: u64, most: u64) -> Result<Vec<u8>, TarError> {
    if size > most {
        return Err(TarError::Damaged);
    }
    let mut bytes = Vec::new();
    copy(from, size, &mut bytes).map_err(|_| TarError::Damaged)?;
    Ok(bytes)
}

fn long(from: &mut impl Read, size: u64) -> Result<Vec<u8>, TarError> {
    let bytes = content(from, size, PATH as u64 + 1)?;
    Ok(text(&bytes).to_vec())
}

fn skip(from: &mut impl Read, size: u64) -> Result<(), TarError> {
    copy(from, size, &mut io::sink()).map_err(|_| TarError::Damaged)
}

/// Why a copy has ended early.
enum CopyError {
    Read,
    Write(io::Error),
}

/// Copies the content of a member, and reads what fills its last block.
fn copy(from: &mut impl Read, size: u64, to: &mut impl Write) -> Result<(), CopyError> {
    let mut bytes = [0; 32 << 10];
    let mut left = size;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let count = from.read(bytes.get_mut(..most).unwrap_or_default()).map_err(|_| CopyError::Read)?;
        if count == 0 {
            return Err(CopyError::Read);
        }
        to.write_all(bytes.get(..count).unwrap_or_default()).map_err(CopyError::Write)?;
        left -= count as u64;
    }
    let filler = (BLOCK - usize::try_from(size % BLOCK as u64).unwrap_or(0)) % BLOCK;
    from.read_exact(bytes.get_mut(..filler).unwrap_or_default()).map_err(|_| CopyError::Read)
}

/// The folder, and the one in it that the last member was in.
///
/// Each folder is opened by a single name in an open one, and no link is: nobody leads this out by renaming things meanwhile.
struct Rooms<'a> {
    top: &'a File,
    last: Option<(PathBuf, OwnedFd)>,
}

impl Rooms<'_> {
    /// The folder that a member is in, which is made if it is missing, and the member's name there.
    fn of<'b>(&mut self, path: &'b Path) -> io::Result<(&OwnedFd, &'b OsStr)> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(ErrorKind::InvalidInput.into());
        };
        let last = match self.last.take().filter(|(last, _)| last == parent) {
            Some(last) => last,
            None => (parent.to_path_buf(), self.walk(parent, true)?),
        };
        Ok((&self.last.insert(last).1, name))
    }

    fn walk(&self, path: &Path, makes: bool) -> io::Result<OwnedFd> {
        let mut at = self.top.as_fd().try_clone_to_owned()?;
        for name in path {
            at = match open_folder(&at, name) {
                Err(Errno::NOENT) if makes => {
                    make_folder(&at, name)?;
                    open_folder(&at, name)?
                }
                opened => opened?,
            };
        }
        Ok(at)
    }
}

fn open_folder(at: impl AsFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

/// Makes a folder, if it is not there.
fn make_folder(at: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    match mkdirat(at, name, Mode::from_raw_mode(0o777)) {
        Err(Errno::EXIST) => open_folder(at, name).map(drop),
        made => made,
    }
}

/// A file that was not there before.
fn new_file(at: &OwnedFd, name: &OsStr) -> rustix::io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::from_raw_mode(0o600)).map(File::from)
}

struct Unpacker<'a> {
    rooms: Rooms<'a>,
    /// Bytes of names that are in memory.
    kept: usize,
    members: usize,
    /// With their modes, which they get at the end.
    folders: Vec<(PathBuf, u32)>,
    /// Symbolic links, which are made at the end: no path through one of them is ever used.
    links: Vec<(PathBuf, Vec<u8>)>,
    left_out: LeftOut,
}

impl Unpacker<'_> {
    fn add(&mut self, from: &mut impl Read, member: &Member) -> Result<(), TarError> {
        self.members += 1;
        if self.members > MEMBERS {
            return Err(TarError::TooMany);
        }
        let path = inside(&member.path)?;
        // Programs of old mark a folder so.
        let kind = match member.kind {
            b'0' | 0 | b'7' if member.path.ends_with(b"/") => b'5',
            kind => kind,
        };
        let is_top = path.as_os_str().is_empty();
        match kind {
            b'0' | 0 | b'7' if !is_top => return self.file(from, &path, member),
            // Its mode is not the guest's to say.
            b'5' if is_top => {}
            b'5' => {
                let made = self.rooms.of(&path).and_then(|(room, name)| Ok(make_folder(room, name)?));
                made.map_err(failed(&path))?;
                self.keep(&path, 0)?;
                self.folders.push((path, member.mode));
            }
            b'2' if !is_top && stays_inside(&path, &member.link) => {
                self.rooms.of(&path).map_err(failed(&path))?;
                self.keep(&path, member.link.len())?;
                self.links.push((path, member.link.clone()));
            }
            b'1' if !is_top => {
                let target = inside(&member.link)?;
                self.rooms.of(&path).map_err(failed(&path))?;
                // Of a file that is no member, such as a link, there is nothing to link to.
                if self.hard_link(&target, &path).is_err() {
                    self.left_out.add(&path);
                }
            }
            _ => self.left_out.add(&path),
        }
        skip(from, member.size)
    }

    fn file(&mut self, from: &mut impl Read, path: &Path, member: &Member) -> Result<(), TarError> {
        let (room, name) = self.rooms.of(path).map_err(failed(path))?;
        let opened = match new_file(room, name) {
            // A later member of a name takes the place of an earlier one, which may have other names.
            Err(Errno::EXIST) => unlinkat(room, name, AtFlags::empty()).and_then(|()| new_file(room, name)),
            opened => opened,
        };
        let mut file = opened.map_err(|error| failed(path)(error.into()))?;
        copy(from, member.size, &mut file).map_err(|error| match error {
            CopyError::Read => TarError::Damaged,
            CopyError::Write(source) => failed(path)(source),
        })?;
        // Not every file system has them all.
        let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(member.mtime));
        let _ = time.map(|time| file.set_modified(time));
        file.set_permissions(Permissions::from_mode(member.mode & 0o777)).map_err(failed(path))
    }

    fn hard_link(&mut self, target: &Path, path: &Path) -> io::Result<()> {
        let old = target.file_name().ok_or(ErrorKind::InvalidInput)?;
        let from = self.rooms.walk(target.parent().unwrap_or(Path::new("")), false)?;
        let stat = statat(&from, old, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(ErrorKind::InvalidInput.into());
        }
        let (room, name) = self.rooms.of(path)?;
        Ok(linkat(from, old, room, name, AtFlags::empty())?)
    }

    fn keep(&mut self, path: &Path, more: usize) -> Result<(), TarError> {
        self.kept += path.as_os_str().len() + more;
        if self.kept > KEPT { Err(TarError::TooMany) } else { Ok(()) }
    }

    fn finish(mut self) -> Result<LeftOut, TarError> {
        for (path, target) in &self.links {
            let (room, name) = self.rooms.of(path).map_err(failed(path))?;
            match symlinkat(OsStr::from_bytes(target), room, name) {
                Err(Errno::EXIST) => self.left_out.add(path),
                made => made.map_err(|error| failed(path)(error.into()))?,
            }
        }
        for (path, mode) in self.folders.iter().rev() {
            // Its owner can always remove it.
            let mode = Permissions::from_mode(mode & 0o777 | 0o700);
            let folder = self.rooms.walk(path, false).map(File::from);
            folder.and_then(|folder| folder.set_permissions(mode)).map_err(failed(path))?;
        }
        Ok(self.left_out)
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> TarError + use<> {
    let path = path.to_path_buf();
    move |source| TarError::Write { path, source }
}

/// A name as a path in the folder; an empty one is the folder itself.
fn inside(name: &[u8]) -> Result<PathBuf, TarError> {
    let parts = name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    let is_wrong = |part: &&[u8]| *part == b".." || part.contains(&0);
    let wrong = || TarError::Name(OsStr::from_bytes(name.get(..100).unwrap_or(name)).into());
    if name.len() > PATH || parts.clone().count() > DEPTH || parts.clone().any(|part| is_wrong(&part)) {
        return Err(wrong());
    }
    Ok(parts.map(OsStr::from_bytes).collect())
}

/// Whether a symbolic link at `path` leads to a place in the folder, whatever other links there are: up no further than to the folder, and
/// only at its beginning, where what it goes up from is a folder and no link.
fn stays_inside(path: &Path, target: &[u8]) -> bool {
    if target.is_empty() || target.starts_with(b"/") || target.len() > PATH || target.contains(&0) {
        return false;
    }
    let mut up = path.components().count().saturating_sub(1);
    let mut down = false;
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if down || up == 0 => return false,
            b".." => up -= 1,
            _ => down = true,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::process::Command;

    use super::*;

    /// As a run does.
    fn unpack_in(from: &mut impl Read, folder: &Path) -> Result<usize, TarError> {
        unpack(from, &File::open(folder).unwrap()).map(|left_out| left_out.count)
    }

    /// A member with its content.
    fn member(kind: u8, name: &str, link: &str, content: &[u8]) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, b"0000751\0");
        put(124, format!("{:011o}\0", content.len()).as_bytes());
        put(136, b"00000000017\0");
        put(156, &[kind]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000");
        put(148, b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block.extend(content);
        block.resize(block.len().next_multiple_of(BLOCK), 0);
        block
    }

    /// A member with these bytes in its header, and the sum that it has then.
    fn patched(mut member: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
        member[at..at + bytes.len()].copy_from_slice(bytes);
        member[148..156].fill(b' ');
        let sum: u32 = member[..BLOCK].iter().map(|byte| u32::from(*byte)).sum();
        member[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        member
    }

    fn unpacked(members: &[Vec<u8>]) -> (tempfile::TempDir, Result<usize, TarError>) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("to")).unwrap();
        let archive = [&members.concat()[..], &[0; 2 * BLOCK]].concat();
        let result = unpack_in(&mut &archive[..], &folder.path().join("to"));
        // Whatever it said, the folder is all that there is.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        (folder, result)
    }

    #[test]
    fn archives_of_real_programs_are_unpacked() {
        let source = tempfile::tempdir().unwrap();
        let (long, deep) = ("n".repeat(200), format!("{0}/{0}/{0}", "d".repeat(90)));
        fs::create_dir_all(source.path().join(&deep)).unwrap();
        fs::write(source.path().join(&deep).join("file"), "deep").unwrap();
        fs::write(source.path().join(&long), vec![7; 100_000]).unwrap();
        fs::write(source.path().join("it's\n\u{e9}"), "").unwrap();
        fs::hard_link(source.path().join(&long), source.path().join("second")).unwrap();
        symlink(&long, source.path().join("link")).unwrap();
        let mut tried = 0;
        for program in [&["tar", "--format=gnu"][..], &["tar", "--format=pax"], &["busybox", "tar"]] {
            let mut command = Command::new(program[0]);
            command.args(&program[1..]).args(["-c", "-f", "-", "-C"]).arg(source.path()).arg(".");
            let Ok(out) = command.output() else { continue };
            tried += 1;
            let folder = tempfile::tempdir().unwrap();
            assert_eq!(unpack_in(&mut &out.stdout[..], folder.path()).unwrap(), 0, "{program:?}");
            let same = Command::new("diff").arg("-r").args([source.path(), folder.path()]).output().unwrap();
            assert!(same.status.success(), "{program:?}: {same:?}");
            assert_eq!(fs::metadata(folder.path().join("second")).unwrap().nlink(), 2);
            assert!(fs::symlink_metadata(folder.path().join("link")).unwrap().is_symlink());
        }
        assert!(tried > 0);
    }

    #[test]
    fn modes_and_times_are_kept_and_no_set_user_id() {
        let set_id = patched(member(b'0', "tool", "", b"x"), 100, b"0004751\0");
        let (folder, result) =
            unpacked(&[member(b'5', "./", "", b""), member(b'5', "sub/", "", b""), set_id]);
        assert_eq!(result.unwrap(), 0);
        let file = fs::metadata(folder.path().join("to/tool")).unwrap();
        assert_eq!((file.mode() & 0o7777, file.mtime()), (0o751, 0o17));
        assert_eq!(fs::metadata(folder.path().join("to/sub")).unwrap().mode() & 0o7777, 0o751);
        assert_ne!(
            fs::metadata(folder.path().join("to")).unwrap().mode() & 0o7777,
            0o751,
            "not the guest's to say"
        );
        // Whoever has them can remove them, and no time is too far away.
        let closed = patched(member(b'5', "closed/", "", b""), 100, b"0000000\0");
        let far = [&[0x80, 0, 0, 0][..], &[0xff; 8]].concat();
        let file = patched(member(b'0', "closed/file", "", b"x"), 136, &far);
        let (folder, result) = unpacked(&[closed, file]);
        assert_eq!(result.unwrap(), 0);
        assert_eq!(fs::metadata(folder.path().join("to/closed")).unwrap().mode() & 0o7777, 0o700);
    }

    #[test]
    fn later_member_of_a_name_changes_nothing_of_the_other_names_of_an_earlier_one() {
        let (folder, result) = unpacked(&[
            member(b'0', "a", "", b"first"),
            member(b'1', "b", "a", b""),
            member(b'0', "a", "", b"second"),
        ]);
        assert_eq!(result.unwrap(), 0);
        let read = |name: &str| fs::read(folder.path().join("to").join(name)).unwrap();
        assert_eq!((read("a"), read("b")), (b"second".to_vec(), b"first".to_vec()));
    }

    #[test]
    fn members_names_and_levels_have_their_limits() {
        let home = tempfile::tempdir().unwrap();
        let top = File::open(home.path()).unwrap();
        let add = |(members, kept): (usize, usize), kind: u8, path: &str, link: &str| {
            let rooms = Rooms { top: &top, last: None };
            let mut unpacker = Unpacker {
                rooms,
                kept,
                members,
                folders: Vec::new(),
                links: Vec::new(),
                left_out: LeftOut::default(),
            };
            let (path, link) = (path.into(), link.into());
            unpacker.add(&mut io::empty(), &Member { path, link, kind, size: 0, mode: 0o755, mtime: 0 })
        };
        let is_too_many = |result| matches!(result, Err(TarError::TooMany));
        add((MEMBERS - 1, 0), b'3', "device", "").unwrap();
        assert!(is_too_many(add((MEMBERS, 0), b'3', "device", "")));
        add((0, KEPT - 3), b'5', "sub", "").unwrap();
        assert!(is_too_many(add((0, KEPT - 3), b'5', "more", "")));
        add((0, KEPT - 3), b'2', "a", "bc").unwrap();
        assert!(is_too_many(add((0, KEPT - 3), b'2', "a", "bcd")));
        let is_name = |result| matches!(result, Err(TarError::Name(_)));
        add((0, 0), b'5', &"d/".repeat(DEPTH), "").unwrap();
        assert!(is_name(add((0, 0), b'5', &"d/".repeat(DEPTH + 1), "")));
        assert!(is_name(add((0, 0), b'5', &"n".repeat(PATH + 1), "")));
        assert!(is_name(add((0, 0), b'1', "hard", &"d/".repeat(DEPTH + 1))));
        add((0, 0), b'2', "far", &"n".repeat(PATH + 1)).unwrap();
        assert!(!home.path().join("far").exists());
        // Headers that are kept in memory, which say nothing wrong.
        let most = usize::try_from(PAX).unwrap();
        let long = format!("{} comment={}\n", most + 1, "x".repeat(most - 14));
        assert_eq!(long.len(), most + 1);
        for (kind, content) in [(b'x', long.into_bytes()), (b'L', vec![b'x'; 2 * PATH])] {
            let (_folder, result) =
                unpacked(&[member(kind, "more", "", &content), member(b'0', "file", "", b"")]);
            assert!(matches!(result, Err(TarError::Damaged)), "{result:?}");
        }
        // What is said to be larger than all that comes.
        let endless =
            patched(member(b'0', "file", "", b""), 124, &[&[0x80, 0, 0, 0][..], &[0xff; 8]].concat());
        let (_folder, result) = unpacked(&[endless]);
        assert!(matches!(result, Err(TarError::Damaged)), "{result:?}");
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        for name in ["../x", "a/../../x", "..", "a/.."] {
            for kind in [b'0', b'5', b'2', b'1'] {
                let (_folder, result) = unpacked(&[member(kind, name, "a", b"")]);
                assert!(matches!(result, Err(TarError::Name(_))), "{name}: {result:?}");
            }
        }
        // An absolute one is one in the folder.
        let (folder, result) = unpacked(&[member(b'0', "//etc/./x", "", b"inside")]);
        assert_eq!(result.unwrap(), 0);
        assert_eq!(fs::read(folder.path().join("to/etc/x")).unwrap(), b"inside");
        let deep = "d/".repeat(49);
        let (_folder, result) = unpacked(&[member(b'0', &deep, "", b""), member(b'0', &deep, "", b"")]);
        assert!(result.is_ok(), "{result:?}");
    }

    #[test]
    fn no_file_is_written_through_a_link_and_no_link_leads_out() {
        let (folder, result) = unpacked(&[
            member(b'2', "out", "..", b""),
            member(b'2', "root", "/", b""),
            member(b'5', "sub", "", b""),
            member(b'2', "sub/up", "..", b""),
            member(b'2', "sub/far", "../..", b""),
            member(b'2', "trick", "sub/up/..", b""),
            member(b'0', "out/evil", "", b"written"),
            member(b'1', "hard", "../../etc/passwd", b""),
        ]);
        assert!(matches!(result, Err(TarError::Name(_))), "{result:?}");
        assert!(folder.path().join("to/out/evil").is_file(), "a folder of its own");
        let members = [
            ("out", ".."),
            ("root", "/"),
            ("sub/up", ".."),
            ("sub/far", "../.."),
            ("trick", "sub/up/.."),
            ("sub/trick", "up/.."),
            ("empty", ""),
        ];
        let members: Vec<_> = members.iter().map(|(name, to)| member(b'2', name, to, b"")).collect();
        let more = [
            member(b'0', "file", "", b"1"),
            member(b'1', "hard", "sub/up", b""),
            member(b'3', "dev", "", b""),
        ];
        let (folder, result) = unpacked(&[&members[..], &more].concat());
        assert_eq!(result.unwrap(), 8);
        assert_eq!(fs::read_link(folder.path().join("to/sub/up")).unwrap(), Path::new(".."));
        assert_eq!(fs::read_dir(folder.path().join("to")).unwrap().count(), 2);
        // No path of a member is through a link of another.
        let (folder, result) =
            unpacked(&[member(b'2', "sub/up", "..", b""), member(b'0', "sub/up/x", "", b"")]);
        assert_eq!(result.unwrap(), 1);
        assert!(folder.path().join("to/sub/up/x").is_file() && !folder.path().join("to/x").exists());
    }

    /// An archive between whose pieces somebody else does something.
    struct Meanwhile<F>(Vec<Vec<u8>>, F);

    impl<F: FnMut(usize)> Read for Meanwhile<F> {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            while self.0.first().is_some_and(Vec::is_empty) {
                self.0.remove(0);
                (self.1)(self.0.len());
            }
            let Some(piece) = self.0.first_mut() else { return Ok(0) };
            let count = piece.len().min(bytes.len());
            bytes[..count].copy_from_slice(&piece[..count]);
            piece.drain(..count);
            Ok(count)
        }
    }

    #[test]
    fn folder_that_somebody_else_replaces_by_a_link_leads_nowhere() {
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name);
        fs::create_dir(path("victim")).unwrap();
        fs::write(path("victim/keys"), "mine").unwrap();
        fs::write(path("victim/file"), "mine").unwrap();
        let end = vec![0; 2 * BLOCK];
        // The whole folder: what comes goes on to be in that, wherever it is.
        fs::create_dir(path("to")).unwrap();
        let members = vec![member(b'0', "first", "", b"1"), member(b'0', "keys", "", b"evil"), end.clone()];
        let swap = |name: &str| {
            fs::rename(path(name), path("moved")).unwrap();
            symlink(path("victim"), path(name)).unwrap();
        };
        let mut from = Meanwhile(members, |left| {
            if left == 2 {
                swap("to")
            }
        });
        assert_eq!(unpack_in(&mut from, &path("to")).unwrap(), 0);
        assert_eq!(fs::read(path("moved/keys")).unwrap(), b"evil");
        // One in it, for a file, a link to what is there, a folder, a link, and a mode.
        fs::remove_file(path("to")).unwrap();
        fs::create_dir(path("to")).unwrap();
        for last in [
            member(b'0', "sub/keys", "", b"evil"),
            member(b'1', "stolen", "sub/keys", b""),
            member(b'5', "sub/new", "", b""),
            member(b'2', "sub/new", "keys", b""),
            member(b'5', "sub", "", b""),
        ] {
            let _ = fs::remove_dir_all(path("moved"));
            let members =
                vec![member(b'5', "sub", "", b""), member(b'0', "other/x", "", b""), last, end.clone()];
            let mut from = Meanwhile(members, |left| {
                if left == 2 {
                    swap("to/sub")
                }
            });
            let error = unpack_in(&mut from, &path("to")).unwrap_err();
            assert!(matches!(error, TarError::Write { .. }), "{error}");
            assert!(!path("to/stolen").exists());
            fs::remove_dir_all(path("to")).unwrap();
            fs::create_dir(path("to")).unwrap();
        }
        // A file that it has made a link to of that name is replaced, not written.
        let link = |left| {
            if left == 2 {
                symlink(path("victim/file"), path("to/file")).unwrap();
            }
        };
        // And has no second name.
        let members = vec![member(b'0', "a", "", b"1"), member(b'1', "stolen", "file", b""), end.clone()];
        assert_eq!(unpack_in(&mut Meanwhile(members, link), &path("to")).unwrap(), 1);
        assert!(fs::symlink_metadata(path("to/stolen")).is_err());
        fs::remove_file(path("to/file")).unwrap();
        let members = vec![member(b'0', "a", "", b"1"), member(b'0', "file", "", b"2"), end];
        assert_eq!(unpack_in(&mut Meanwhile(members, link), &path("to")).unwrap(), 0);
        assert_eq!(fs::read(path("to/file")).unwrap(), b"2");
        assert_eq!(fs::read_dir(path("victim")).unwrap().count(), 2);
        for name in ["victim/keys", "victim/file"] {
            assert_eq!(fs::read(path(name)).unwrap(), b"mine", "{name}");
        }
        assert_eq!(fs::metadata(path("victim")).unwrap().mode(), fs::metadata(path("moved")).unwrap().mode());
    }

    #[test]
    fn what_is_no_archive_or_ends_early_is_an_error() {
        let whole = [member(b'0', "file", "", &[1; 700]), vec![0; BLOCK]].concat();
        let folder = tempfile::tempdir().unwrap();
        for cut in [0, 1, BLOCK, BLOCK + 600, whole.len() - 1] {
            assert!(matches!(unpack_in(&mut &whole[..cut], folder.path()), Err(TarError::Damaged)), "{cut}");
        }
        assert_eq!(unpack_in(&mut &whole[..], folder.path()).unwrap(), 0);
        // Any byte of the header that differs is found by its sum.
        for at in (0..BLOCK).step_by(7) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x11;
            assert!(unpack_in(&mut &damaged[..], folder.path()).is_err(), "{at}");
        }
        for records in [
            &b"9999 path=x\n"[..],
            b"x path=y\n",
            b"5 a\n",
            b"0 \n",
            b"18446744073709551615 a=b\n",
            b"11 path=xx",
        ] {
            let archive = [member(b'x', "pax", "", records), whole.clone()].concat();
            assert!(
                matches!(unpack_in(&mut &archive[..], folder.path()), Err(TarError::Damaged)),
                "{records:?}"
            );
        }
        let endless = member(b'L', "long", "", &[b'x'; 8192]);
        assert!(matches!(unpack_in(&mut &endless[..], folder.path()), Err(TarError::Damaged)));
    }

    #[test]
    fn a_name_that_moves_the_cursor_is_shown_without_doing_so() {
        let name = "a\u{1b}[2J\n";
        let (_folder, result) = unpacked(&[member(b'5', name, "", b""), member(b'0', name, "", b"")]);
        let sentence = result.unwrap_err().to_string();
        assert!(
            sentence.starts_with("cannot write ") && !sentence.contains(char::is_control),
            "{sentence:?}"
        );
    }

    #[test]
    fn what_is_left_out_is_named_and_then_counted() {
        let home = tempfile::tempdir().unwrap();
        let left_out = |names: &[&str]| {
            let members: Vec<_> = names.iter().map(|name| member(b'3', name, "", b"")).collect();
            let archive = [&members.concat()[..], &[0; 2 * BLOCK]].concat();
            unpack(&mut &archive[..], &File::open(home.path()).unwrap()).unwrap().to_string()
        };
        assert_eq!(
            left_out(&["dev/null", "a\u{1b}[2J\n"]),
            "2 of the files for --out were left out: dev/null, a\\u{1b}[2J\\n (devices, sockets, and links that lead out of the \
             directory are)"
        );
        assert!(left_out(&["1", "2", "3", "4", "5", "6", "7"]).contains(": 1, 2, 3, 4, 5 and 2 more ("));
    }

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b" 17 \0\0"), Some(15));
        assert_eq!(number(b"\x80\0\0\0\0\0\0\x02\0\0\0\x01"), Some(0x2_0000_0001));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), None);
        assert_eq!(number(b"9\0"), None);
    }
}
