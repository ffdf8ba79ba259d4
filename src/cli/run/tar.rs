//! Unpacks a tar archive that a guest sends. It may say anything: nothing is written outside of the folder, nothing is opened that was there
//! before, and memory is bounded. Space and time are the host's to limit.
//!
//! Formats: ustar, GNU's long names, and pax headers for path, link and size.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::image::printable;

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
    #[error("cannot write {path}: {source}", path = printable(&path.to_string_lossy()))]
    Write {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

/// Unpacks all of an archive beneath `folder`, which is empty and nobody else's. Returns how many members were left out: devices, sockets, and
/// links that lead out of it.
pub(super) fn unpack(from: &mut impl Read, folder: &Path) -> Result<usize, TarError> {
    let mut unpacker =
        Unpacker { folder, kept: 0, members: 0, folders: Vec::new(), links: Vec::new(), skipped: 0 };
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
    unpack(&mut &*archive, folder).map_err(|error| error.to_string())
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

struct Unpacker<'a> {
    folder: &'a Path,
    /// Bytes of names that are in memory.
    kept: usize,
    members: usize,
    /// With their modes, which they get at the end.
    folders: Vec<(PathBuf, u32)>,
    /// Symbolic links, which are made at the end: no path through one of them is ever used.
    links: Vec<(PathBuf, Vec<u8>)>,
    skipped: usize,
}

impl Unpacker<'_> {
    fn add(&mut self, from: &mut impl Read, member: &Member) -> Result<(), TarError> {
        self.members += 1;
        if self.members > MEMBERS {
            return Err(TarError::TooMany);
        }
        let inside = inside(&member.path)?;
        let path = self.folder.join(&inside);
        // Programs of old mark a folder so.
        let kind = match member.kind {
            b'0' | 0 | b'7' if member.path.ends_with(b"/") => b'5',
            kind => kind,
        };
        let is_top = inside.as_os_str().is_empty();
        match kind {
            b'0' | 0 | b'7' if !is_top => return self.file(from, &path, member),
            b'5' => {
                self.make_room(&path)?;
                match fs::create_dir(&path) {
                    Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => {}
                    made => made.map_err(failed(&path))?,
                }
                if !is_top {
                    self.keep(&path, 0)?;
                    self.folders.push((path, member.mode));
                }
            }
            b'2' if !is_top && stays_inside(&inside, &member.link) => {
                self.make_room(&path)?;
                self.keep(&path, member.link.len())?;
                self.links.push((path, member.link.clone()));
            }
            b'1' if !is_top => {
                let target = self.folder.join(self::inside(&member.link)?);
                self.make_room(&path)?;
                // Of a file that is no member, such as a link, there is nothing to link to.
                if !target.is_file() || fs::hard_link(&target, &path).is_err() {
                    self.skipped += 1;
                }
            }
            _ => self.skipped += 1,
        }
        skip(from, member.size)
    }

    fn file(&mut self, from: &mut impl Read, path: &Path, member: &Member) -> Result<(), TarError> {
        self.make_room(path)?;
        let options = File::options().write(true).create_new(true).mode(0o600).clone();
        let mut file = match options.open(path) {
            // A later member of a name takes the place of an earlier one, which may have other names.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                fs::remove_file(path).and_then(|()| options.open(path)).map_err(failed(path))?
            }
            opened => opened.map_err(failed(path))?,
        };
        copy(from, member.size, &mut file).map_err(|error| match error {
            CopyError::Read => TarError::Damaged,
            CopyError::Write(source) => failed(path)(source),
        })?;
        // Not every file system has them all.
        let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(member.mtime));
        let _ = time.map(|time| file.set_modified(time));
        file.set_permissions(fs::Permissions::from_mode(member.mode & 0o777)).map_err(failed(path))
    }

    /// Makes the folders that a path is in.
    fn make_room(&self, path: &Path) -> Result<(), TarError> {
        let parent = path.parent().filter(|parent| parent.starts_with(self.folder));
        parent.map_or(Ok(()), |parent| fs::create_dir_all(parent).map_err(failed(path)))
    }

    fn keep(&mut self, path: &Path, more: usize) -> Result<(), TarError> {
        self.kept += path.as_os_str().len() + more;
        if self.kept > KEPT { Err(TarError::TooMany) } else { Ok(()) }
    }

    fn finish(mut self) -> Result<usize, TarError> {
        for (path, target) in &self.links {
            match symlink(std::ffi::OsStr::from_bytes(target), path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => self.skipped += 1,
                made => made.map_err(failed(path))?,
            }
        }
        for (path, mode) in self.folders.iter().rev() {
            // Its owner can always remove it.
            let mode = fs::Permissions::from_mode(mode & 0o777 | 0o700);
            fs::set_permissions(path, mode).map_err(failed(path))?;
        }
        Ok(self.skipped)
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
    let wrong = || TarError::Name(std::ffi::OsStr::from_bytes(name.get(..100).unwrap_or(name)).into());
    if name.len() > PATH || parts.clone().count() > DEPTH || parts.clone().any(|part| is_wrong(&part)) {
        return Err(wrong());
    }
    Ok(parts.map(std::ffi::OsStr::from_bytes).collect())
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
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    use super::*;

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

    fn unpacked(members: &[Vec<u8>]) -> (tempfile::TempDir, Result<usize, TarError>) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("to")).unwrap();
        let archive = [&members.concat()[..], &[0; 2 * BLOCK]].concat();
        let result = unpack(&mut &archive[..], &folder.path().join("to"));
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
            assert_eq!(unpack(&mut &out.stdout[..], folder.path()).unwrap(), 0, "{program:?}");
            let same = Command::new("diff").arg("-r").args([source.path(), folder.path()]).output().unwrap();
            assert!(same.status.success(), "{program:?}: {same:?}");
            assert_eq!(fs::metadata(folder.path().join("second")).unwrap().nlink(), 2);
            assert!(fs::symlink_metadata(folder.path().join("link")).unwrap().is_symlink());
        }
        assert!(tried > 0);
    }

    #[test]
    fn modes_and_times_are_kept_and_no_set_user_id() {
        let mut set_id = member(b'0', "tool", "", b"x");
        set_id[100..108].copy_from_slice(b"0004751\0");
        // 4 more in the mode's first digit.
        let sum: u32 = set_id[..BLOCK]
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        set_id[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let (folder, result) = unpacked(&[member(b'5', "sub/", "", b""), set_id]);
        assert_eq!(result.unwrap(), 0);
        let file = fs::metadata(folder.path().join("to/tool")).unwrap();
        assert_eq!((file.mode() & 0o7777, file.mtime()), (0o751, 0o17));
        assert_eq!(fs::metadata(folder.path().join("to/sub")).unwrap().mode() & 0o7777, 0o751);
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
            ("empty", ""),
        ];
        let members: Vec<_> = members.iter().map(|(name, to)| member(b'2', name, to, b"")).collect();
        let more = [
            member(b'0', "file", "", b"1"),
            member(b'1', "hard", "sub/up", b""),
            member(b'3', "dev", "", b""),
        ];
        let (folder, result) = unpacked(&[&members[..], &more].concat());
        assert_eq!(result.unwrap(), 7);
        assert_eq!(fs::read_link(folder.path().join("to/sub/up")).unwrap(), Path::new(".."));
        assert_eq!(fs::read_dir(folder.path().join("to")).unwrap().count(), 2);
    }

    #[test]
    fn what_is_no_archive_or_ends_early_is_an_error() {
        let whole = [member(b'0', "file", "", &[1; 700]), vec![0; BLOCK]].concat();
        let folder = tempfile::tempdir().unwrap();
        for cut in [0, 1, BLOCK, BLOCK + 600, whole.len() - 1] {
            assert!(matches!(unpack(&mut &whole[..cut], folder.path()), Err(TarError::Damaged)), "{cut}");
        }
        assert_eq!(unpack(&mut &whole[..], folder.path()).unwrap(), 0);
        // Any byte of the header that differs is found by its sum.
        for at in (0..BLOCK).step_by(7) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x11;
            assert!(unpack(&mut &damaged[..], folder.path()).is_err(), "{at}");
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
                matches!(unpack(&mut &archive[..], folder.path()), Err(TarError::Damaged)),
                "{records:?}"
            );
        }
        let endless = member(b'L', "long", "", &[b'x'; 8192]);
        assert!(matches!(unpack(&mut &endless[..], folder.path()), Err(TarError::Damaged)));
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
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b" 17 \0\0"), Some(15));
        assert_eq!(number(b"\x80\0\0\0\0\0\0\x02\0\0\0\x01"), Some(0x2_0000_0001));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), None);
        assert_eq!(number(b"9\0"), None);
    }
}
