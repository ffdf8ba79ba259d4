//! A file that is there as a whole or not at all: it has no name until it is finished, and what was not finished leaves nothing
//! behind.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, RenameFlags};

use super::lock::{Kind, is_locked, try_lock};
use super::open_now::open_now;
use super::proc_path::proc_path;

/// Names that are tried for a file without a name of its own.
const ATTEMPTS: u32 = 100;

/// A file to be written. Dropped before [`NewFile::keep`] it is gone.
#[derive(Debug)]
pub(crate) struct NewFile {
    file: File,
    target: PathBuf,
    /// Its name for now, removed on drop. The kernel removes a file without a name by itself, even after SIGKILL.
    temporary: Option<PathBuf>,
}

impl NewFile {
    /// Makes a file that is to be `target`, in the same folder.
    pub(crate) fn create(target: &Path) -> io::Result<Self> {
        if target.file_name().is_none() {
            return Err(ErrorKind::IsADirectory.into());
        }
        match options().custom_flags(libc::O_TMPFILE).open(folder(target)) {
            Ok(file) if has_path(&file) => Ok(NewFile { file, target: target.into(), temporary: None }),
            // A file system without files that have no name, or no /proc to give it one.
            _ => Self::named(target),
        }
    }

    /// The same, which only its owner may read and write.
    pub(crate) fn create_private(target: &Path) -> io::Result<Self> {
        let new = Self::create(target)?;
        new.file.set_permissions(Permissions::from_mode(0o600))?;
        Ok(new)
    }

    /// As [`NewFile::create`], with a temporary name.
    fn named(target: &Path) -> io::Result<Self> {
        let (file, temporary) = try_names(target, |path| options().create_new(true).open(path))?;
        // For those that do not see this process; see [`sweep`]. A file system without locks has none of these.
        let _ = try_lock(&file, Kind::Exclusive);
        Ok(NewFile { file, target: target.into(), temporary: Some(temporary) })
    }

    /// The file, to be read and written.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// The bytes that it takes on the host.
    pub(crate) fn used(&self) -> io::Result<u64> {
        // st_blocks counts units of 512 bytes, whatever the file system's block size.
        Ok(self.file.metadata()?.blocks().saturating_mul(512))
    }

    /// Writes everything to the medium and gives the file its name. A file that has the name is replaced by one with its mode and
    /// owner, or is an error ([`ErrorKind::AlreadyExists`]).
    pub(crate) fn keep(mut self, replace: bool) -> io::Result<()> {
        if replace {
            self.take_mode()?;
        }
        self.file.sync_all()?;
        match (self.temporary.clone(), replace) {
            (None, false) => link(&self.file, &self.target)?,
            (None, true) => {
                let ((), named) = try_names(&self.target, |path| link(&self.file, path))?;
                self.temporary = Some(named.clone());
                fs::rename(named, &self.target)?;
            }
            (Some(temporary), true) => fs::rename(temporary, &self.target)?,
            (Some(temporary), false) => match fs::hard_link(&temporary, &self.target) {
                Ok(()) => fs::remove_file(temporary)?,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(error),
                // A file system without links, such as FAT.
                Err(_) if fs::symlink_metadata(&self.target).is_ok() => {
                    return Err(ErrorKind::AlreadyExists.into());
                }
                Err(_) => fs::rename(temporary, &self.target)?,
            },
        }
        self.temporary = None;
        sync_folder(&self.target);
        Ok(())
    }

    /// Writes everything to the medium and exchanges the file with the one that has the name, whose mode and owner it gets. That one is
    /// put back unless what this returns is kept.
    pub(crate) fn exchange(mut self) -> io::Result<Exchanged> {
        self.take_mode()?;
        self.file.sync_all()?;
        let temporary = match self.temporary.take() {
            Some(temporary) => temporary,
            None => try_names(&self.target, |path| link(&self.file, path))?.1,
        };
        // Removed with `self` if what follows fails.
        self.temporary = Some(temporary.clone());
        let target = self.target.clone();
        let old = match exchange(&temporary, &target) {
            Ok(()) => Some(temporary),
            // A file system that cannot, such as some network ones, loses the old file at once.
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::ENOTSUP)) =>
            {
                fs::rename(&temporary, &target)?;
                None
            }
            Err(error) => return Err(error),
        };
        self.temporary = None;
        Ok(Exchanged { target, old: old.map_or(Before::Lost, Before::At) })
    }

    /// The same where no file has the name: it is gone again unless what this returns is kept. [`ErrorKind::AlreadyExists`] if there is one by now.
    pub(crate) fn appear(self) -> io::Result<Exchanged> {
        let (target, file) = (self.target.clone(), self.file.try_clone()?);
        self.keep(false)?;
        Ok(Exchanged { target, old: Before::Nothing(file) })
    }

    /// Gives it mode and owner of the regular file that it is to replace.
    fn take_mode(&self) -> io::Result<()> {
        let Ok(old) = fs::symlink_metadata(&self.target).and_then(regular) else { return Ok(()) };
        // Another user's file becomes this user's, where that user may not give files away: then without rights for others.
        let given = fchown(&self.file, Some(old.uid()), Some(old.gid())).is_ok();
        let mode = if given { old.mode() & 0o777 } else { old.mode() & 0o700 };
        self.file.set_permissions(Permissions::from_mode(mode))
    }
}

/// A file that has another one's name. Dropped, that one has it again, and the file is gone.
#[derive(Debug)]
pub(crate) struct Exchanged {
    target: PathBuf,
    old: Before,
}

/// What had the name before.
#[derive(Debug)]
enum Before {
    /// A file that is here now.
    At(PathBuf),
    /// One that is not any more.
    Lost,
    /// Nothing; this is the file that has it now.
    Nothing(File),
}

impl Exchanged {
    /// The name.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// The file that has the name again if this is dropped, if there is one.
    pub(crate) fn before(&self) -> Option<&Path> {
        match &self.old {
            Before::At(path) => Some(path),
            Before::Lost | Before::Nothing(_) => None,
        }
    }

    /// The other one is not needed any more.
    pub(crate) fn keep(mut self) {
        if let Before::At(old) = std::mem::replace(&mut self.old, Before::Lost) {
            // A file that stays behind is not worth an error.
            let _ = fs::remove_file(old);
        }
        sync_folder(&self.target);
    }
}

impl Drop for Exchanged {
    fn drop(&mut self) {
        match &self.old {
            Before::At(old) if exchange(old, &self.target).is_ok() => drop(fs::remove_file(old)),
            // Unless it is another one by now, or somebody uses it already.
            Before::Nothing(file)
                if is_same(file, &self.target) && matches!(try_lock(file, Kind::Exclusive), Ok(true)) =>
            {
                drop(fs::remove_file(&self.target));
            }
            Before::At(_) | Before::Lost | Before::Nothing(_) => {}
        }
    }
}

/// Whether `path` still is that file.
pub(super) fn is_same(file: &File, path: &Path) -> bool {
    let own = file.metadata().map(|found| (found.dev(), found.ino()));
    let named = fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()));
    matches!((own, named), (Ok(own), Ok(named)) if own == named)
}

/// Brings names to the medium as well, where the file system can: some network ones cannot.
fn sync_folder(target: &Path) {
    let _ = File::open(folder(target)).and_then(|folder| folder.sync_all());
}

/// Has two files of one folder exchange their names.
fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_file(temporary);
        }
    }
}

fn regular(found: fs::Metadata) -> io::Result<fs::Metadata> {
    if found.is_file() { Ok(found) } else { Err(ErrorKind::InvalidInput.into()) }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o666);
    options
}

/// The folder that a file or folder of this path is in.
pub(crate) fn folder(target: &Path) -> &Path {
    target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removes what processes that were killed have left beside `target`: files on their way to its name, or those that had it before.
fn sweep(target: &Path) {
    target.file_name().into_iter().for_each(|name| sweep_names(folder(target), &[name]));
}

/// The same for several names in one folder.
pub(crate) fn sweep_names(folder: &Path, names: &[&OsStr]) {
    let beginnings: Vec<_> = names.iter().map(|name| beginning(name)).collect();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let pid = beginnings.iter().find_map(|beginning| pid_of(beginning, entry.file_name().as_bytes()));
        if pid.is_some_and(is_gone) && !is_in_use(&entry.path()) {
            // The next one tries again.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The process whose temporary file this is.
fn pid_of(beginning: &OsStr, name: &[u8]) -> Option<u32> {
    let number = name.strip_prefix(beginning.as_bytes())?.strip_suffix(b".part")?;
    let (pid, attempt) = std::str::from_utf8(number).ok()?.split_once('-')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(pid) && is_number(attempt)).then(|| pid.parse().ok())?
}

/// Whether there is no such process here.
fn is_gone(pid: u32) -> bool {
    let gone = |path: &Path| fs::metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound);
    fs::metadata("/proc/self").is_ok() && gone(&Path::new("/proc").join(pid.to_string()))
}

/// Whether a process that is not seen from here has it, or it is no file.
fn is_in_use(path: &Path) -> bool {
    open_now(path, File::options().read(true), libc::O_NOFOLLOW)
        .and_then(|file| is_locked(&file))
        .unwrap_or(true)
}

/// How the temporary names of a file begin.
fn beginning(name: &OsStr) -> OsString {
    let mut temporary = OsString::from(".");
    // Room for the rest in a name of 255 bytes.
    temporary.push(OsStr::from_bytes(name.as_bytes().get(..200).unwrap_or(name.as_bytes())));
    temporary.push(".");
    temporary
}

/// Calls `make` with names beside `target` until one is free.
fn try_names<T>(target: &Path, make: impl Fn(&Path) -> io::Result<T>) -> io::Result<(T, PathBuf)> {
    sweep(target);
    let name = target.file_name().unwrap_or(OsStr::new("file"));
    for attempt in 0..ATTEMPTS {
        let mut temporary = beginning(name);
        temporary.push(format!("{}-{attempt}.part", std::process::id()));
        let path = folder(target).join(temporary);
        match make(&path) {
            Ok(made) => return Ok((made, path)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(ErrorKind::AlreadyExists.into())
}

fn has_path(file: &File) -> bool {
    fs::symlink_metadata(proc_path(file)).is_ok()
}

/// Gives a file without a name this one.
fn link(file: &File, path: &Path) -> io::Result<()> {
    Ok(rustix::fs::linkat(CWD, proc_path(file), CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Both ways to make one.
    const WAYS: [fn(&Path) -> io::Result<NewFile>; 2] = [NewFile::create, NewFile::named];

    fn names(folder: &Path) -> Vec<OsString> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn file_is_there_as_a_whole_or_not_at_all() {
        for create in WAYS {
            let folder = tempfile::tempdir().unwrap();
            let target = folder.path().join("new");
            let new = create(&target).unwrap();
            new.file().write_all(b"half").unwrap();
            assert!(!target.exists());
            drop(new);
            assert!(names(folder.path()).is_empty());
            let new = create(&target).unwrap();
            new.file().write_all(b"whole").unwrap();
            new.keep(false).unwrap();
            assert_eq!(fs::read(&target).unwrap(), b"whole");
            assert_eq!(names(folder.path()), ["new"]);
        }
    }

    #[test]
    fn file_that_appeared_is_gone_again_unless_it_is_used_or_another_ones() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("new");
        let appear = || NewFile::create(&target).unwrap().appear().unwrap();
        drop(appear());
        assert!(names(folder.path()).is_empty());
        appear().keep();
        assert_eq!(names(folder.path()), ["new"]);
        fs::remove_file(&target).unwrap();
        // A machine has started on it.
        let appeared = appear();
        let user = File::open(&target).unwrap();
        assert!(try_lock(&user, Kind::Shared).unwrap());
        drop(appeared);
        assert_eq!(names(folder.path()), ["new"]);
        fs::remove_file(&target).unwrap();
        let appeared = appear();
        fs::rename(&target, folder.path().join("moved")).unwrap();
        fs::write(&target, "another's").unwrap();
        drop(appeared);
        assert_eq!(names(folder.path()), ["moved", "new"]);
    }

    #[test]
    fn file_that_came_meanwhile_is_kept_unless_it_is_to_be_replaced() {
        for create in WAYS {
            let folder = tempfile::tempdir().unwrap();
            let target = folder.path().join("new");
            let new = create(&target).unwrap();
            fs::write(&target, "another's").unwrap();
            assert_eq!(new.keep(false).unwrap_err().kind(), ErrorKind::AlreadyExists);
            assert_eq!(fs::read(&target).unwrap(), b"another's");
            let new = create(&target).unwrap();
            new.file().write_all(b"mine").unwrap();
            new.keep(true).unwrap();
            assert_eq!(fs::read(&target).unwrap(), b"mine");
            assert_eq!(names(folder.path()), ["new"]);
        }
    }

    #[test]
    fn file_that_was_exchanged_comes_back_unless_the_new_one_is_kept() {
        for create in WAYS {
            let folder = tempfile::tempdir().unwrap();
            let target = folder.path().join("image");
            fs::write(&target, "old").unwrap();
            fs::set_permissions(&target, Permissions::from_mode(0o640)).unwrap();
            for (keep, left) in [(false, "old"), (true, "new")] {
                let new = create(&target).unwrap();
                new.file().write_all(b"new").unwrap();
                let exchanged = new.exchange().unwrap();
                assert_eq!(fs::read(&target).unwrap(), b"new");
                assert_eq!(fs::metadata(&target).unwrap().mode() & 0o777, 0o640);
                if keep {
                    exchanged.keep()
                } else {
                    drop(exchanged)
                }
                assert_eq!(fs::read_to_string(&target).unwrap(), left);
                assert_eq!(names(folder.path()), ["image"]);
            }
            // There is nothing to exchange it with.
            let new = create(&folder.path().join("none")).unwrap();
            assert_eq!(new.exchange().unwrap_err().kind(), ErrorKind::NotFound);
            assert_eq!(names(folder.path()), ["image"]);
            // It appears, and is gone again unless it is kept.
            assert_eq!(create(&target).unwrap().appear().unwrap_err().kind(), ErrorKind::AlreadyExists);
            let none = folder.path().join("none");
            let appeared = create(&none).unwrap().appear().unwrap();
            assert!(none.exists());
            drop(appeared);
            assert_eq!(names(folder.path()), ["image"]);
            create(&none).unwrap().appear().unwrap().keep();
            assert_eq!(names(folder.path()), ["image", "none"]);
        }
    }

    #[test]
    fn what_killed_processes_have_left_goes_with_the_next_file_of_that_name() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("image");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let gone = child.id();
        child.wait().unwrap();
        let own = std::process::id();
        let stays = [
            format!(".image.{own}-99.part"),
            ".image.1-0.part".into(),
            format!(".image.{gone}-x.part"),
            format!(".image.{gone}.part"),
            format!(".other.{gone}-0.part"),
            format!("image.{gone}-0.part"),
        ];
        let goes = [format!(".image.{gone}-0.part"), format!(".image.{gone}-17.part")];
        let path = |name: &String| folder.path().join(name);
        stays.iter().chain(&goes).for_each(|name| fs::write(path(name), "").unwrap());
        // Somebody whom this process does not see has it.
        let held = File::options().write(true).open(path(&goes[0])).unwrap();
        assert!(try_lock(&held, Kind::Exclusive).unwrap());
        NewFile::named(&target).unwrap().keep(false).unwrap();
        assert!(path(&goes[0]).exists() && !path(&goes[1]).exists());
        drop(held);
        let wait = std::time::Instant::now();
        while path(&goes[0]).exists() {
            // A program that another test starts has the lock until it runs.
            assert!(wait.elapsed() < std::time::Duration::from_secs(60));
            NewFile::create(&target).unwrap().keep(true).unwrap();
        }
        assert!(stays.iter().all(|name| path(name).exists()));
        assert_eq!(names(folder.path()).len(), stays.len() + 1);
    }

    #[test]
    fn name_of_any_length_has_a_temporary_one() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("x".repeat(255));
        NewFile::named(&target).unwrap().keep(false).unwrap();
        assert!(target.exists());
        for place in ["/", "nowhere/file", ""] {
            assert!(NewFile::create(Path::new(place)).is_err(), "{place}");
        }
    }
}
