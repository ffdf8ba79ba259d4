//! The files that a command leaves, for `--out`.

use std::fmt::Display;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use devices::console::ByteQueue;
use diskimage::shell_word;
use rustix::fs::Access;

use super::args::RunArgs;
use super::error::RunError;
use super::ports::{RunEvent, spawn};
use super::tar::{LeftOut, TarError, unpack};
use crate::cli::report;
use crate::host::closed::ClosedFolder;
use crate::host::new_folder::NewFolder;
use crate::shown::path as shown;

/// A folder to be, which is there when all is in it.
#[derive(Debug)]
pub(super) struct OutFolder {
    new: NewFolder,
    /// As other new folders of this process have it.
    mode: u32,
}

/// What has come of it.
#[derive(Debug)]
pub(super) struct Unpacked {
    folder: OutFolder,
    left_out: LeftOut,
}

impl OutFolder {
    /// Refuses one that has something in it: what a guest sends mixes with nothing.
    pub(super) fn create(given: &Path) -> Result<Self, RunError> {
        let failed =
            |error: io::Error| RunError::Out { path: given.to_path_buf(), why: reason(given, &error) };
        let target = std::path::absolute(given).map_err(failed)?;
        if target.is_symlink() {
            return Err(failed(io::Error::other("it is a link; name the directory that it leads to")));
        }
        match fs::read_dir(&target).map(|mut entries| entries.next().is_some()) {
            Ok(true) => return Err(RunError::OutNotEmpty(given.into())),
            Err(error) if error.kind() == ErrorKind::NotADirectory && target.is_file() => {
                return Err(RunError::OutIsFile(given.into()));
            }
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let is_missing = |parent: &&Path| {
            parent.symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound)
        };
        let missing = target.parent().filter(is_missing);
        let new = NewFolder::create(&target).map_err(|source| match missing {
            Some(parent) => RunError::OutNowhere { path: given.into(), parent: parent.into() },
            None => failed(source),
        })?;
        let probe = new.path().join("mode");
        let mode =
            fs::create_dir(&probe).and_then(|()| fs::metadata(&probe)).map_err(failed)?.permissions().mode();
        fs::remove_dir(&probe).map_err(failed)?;
        Ok(OutFolder { new, mode })
    }
}

/// Why the host did not let a folder be made there, and what helps.
fn reason(given: &Path, error: &io::Error) -> String {
    let parent = match given.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let on_way = given.ancestors().skip(1).find(|part| part.exists() && !part.is_dir());
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::NotADirectory, _) if on_way.is_some() => {
            format!("{} is no directory; name one that is", shown(on_way.unwrap_or(parent)))
        }
        (ErrorKind::NotFound, _) | (_, Some(libc::EPERM)) => format!(
            "no directory can be made in {0}, which is not for files (`findmnt -T {1}`), or marked as immutable (`lsattr -d {1}`); name one \
             elsewhere",
            shown(parent),
            shell_word(parent)
        ),
        (ErrorKind::PermissionDenied, _) => {
            match ClosedFolder::find(parent, Access::WRITE_OK | Access::EXEC_OK) {
                Some(closed) => format!("{closed}; or name a directory elsewhere"),
                None => {
                    format!("{} may not be written to: {error}; name a directory elsewhere", shown(parent))
                }
            }
        }
        (ErrorKind::ReadOnlyFilesystem, _) => {
            format!("{} is on a file system that is only read; name a directory elsewhere", shown(parent))
        }
        (_, Some(libc::ELOOP)) => {
            format!(
                "symbolic links on the way lead round in a circle (`namei {}`); name another",
                shell_word(given)
            )
        }
        _ => error.to_string(),
    }
}

impl Unpacked {
    /// Gives the folder its name.
    fn keep(self) -> io::Result<()> {
        let Unpacked { folder: OutFolder { new, mode }, left_out } = self;
        if left_out.count > 0 {
            report::message(&format_args!("minivmm: warning: {left_out}\n"));
        }
        new.folder().set_permissions(Permissions::from_mode(mode)).and_then(|()| new.keep())
    }
}

/// Starts the thread that unpacks what the guest sends.
pub(super) fn receive(from: &Arc<ByteQueue>, folder: OutFolder, events: &Sender<RunEvent>) -> io::Result<()> {
    let mut from = Bytes(from.clone());
    spawn("files", events, move |events| {
        let unpacked = unpack(&mut from, folder.new.folder());
        let unpacked = unpacked.map(|left_out| Unpacked { folder, left_out });
        let _ = events.send(RunEvent::Files(Box::new(unpacked)));
        // What fills the archive's last record holds nobody up.
        let _ = io::copy(&mut from, &mut io::sink());
        let _ = events.send(RunEvent::Closed);
    })
}

/// Gives the folder its name, or says why there is none.
pub(super) fn keep(files: Result<Unpacked, TarError>, args: &RunArgs) -> Result<(), String> {
    let folder = args.out.as_deref().unwrap_or(Path::new(""));
    let failed = |error: &dyn Display| {
        format!("the files of the command are not kept: --out {}: {error}", shown(folder))
    };
    files.map_err(|error| failed(&error))?.keep().map_err(|error| failed(&error))
}

/// What is in the port.
struct Bytes(Arc<ByteQueue>);

impl Read for Bytes {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        Ok(self.0.pop(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_is_there_when_all_is_in_it_and_only_if_it_was_empty() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("out");
        drop(OutFolder::create(&target).unwrap());
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
        let folder = OutFolder::create(&target).unwrap();
        fs::write(folder.new.path().join("file"), "content").unwrap();
        assert!(!target.exists());
        Unpacked { folder, left_out: LeftOut::default() }.keep().unwrap();
        assert_eq!(fs::read(target.join("file")).unwrap(), b"content");
        let plain = home.path().join("plain");
        fs::create_dir(&plain).unwrap();
        let modes = [&target, &plain].map(|path| fs::metadata(path).unwrap().permissions().mode());
        assert_eq!(modes[0], modes[1], "as any other folder");
        let error = OutFolder::create(&target).unwrap_err().to_string();
        assert!(error.contains("not empty"), "{error}");
        let error = OutFolder::create(&home.path().join("none/out")).unwrap_err().to_string();
        assert!(error.contains("none; make that first, with `mkdir -p"), "{error}");
        let error = OutFolder::create(&target.join("file")).unwrap_err().to_string();
        assert!(error.contains("is a file; name a new directory"), "{error}");
        let link = home.path().join("link");
        std::os::unix::fs::symlink(&plain, &link).unwrap();
        let error = OutFolder::create(&link).unwrap_err().to_string();
        assert!(error.contains("it is a link; name the directory"), "{error}");
    }

    #[test]
    fn what_the_host_refuses_is_told_with_its_cause_and_cure() {
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name);
        fs::write(path("file"), "").unwrap();
        std::os::unix::fs::symlink("ring", path("ring")).unwrap();
        for (name, words) in [
            ("file/x", "file is no directory; name one that is"),
            ("ring/x", "lead round in a circle (`namei "),
        ] {
            let error = OutFolder::create(&path(name)).unwrap_err().to_string();
            assert!(error.contains(words) && !error.contains("os error"), "{error}");
            assert!(error.starts_with(&format!("--out {}", path(name).display())), "{error}");
        }
        let said = |number| reason(&path("x"), &io::Error::from_raw_os_error(number));
        // As in /proc and in /sys.
        for number in [libc::ENOENT, libc::EPERM] {
            assert!(said(number).contains("is not for files (`findmnt -T "), "{}", said(number));
        }
        assert!(said(libc::EROFS).contains("on a file system that is only read"));
        let denied = said(libc::EACCES);
        assert!(denied.contains("may not be written to") && denied.contains("elsewhere"), "{denied}");
    }

    #[test]
    fn what_somebody_else_puts_in_its_place_meanwhile_stays() {
        let home = tempfile::tempdir().unwrap();
        let (target, elsewhere) = (home.path().join("out"), home.path().join("elsewhere"));
        fs::create_dir(&elsewhere).unwrap();
        let finished = |meanwhile: &dyn Fn()| {
            let folder = OutFolder::create(&target).unwrap();
            fs::write(folder.new.path().join("file"), "content").unwrap();
            meanwhile();
            Unpacked { folder, left_out: LeftOut::default() }.keep().unwrap_err();
        };
        finished(&|| {
            fs::create_dir(&target).unwrap();
            fs::write(target.join("theirs"), "").unwrap();
        });
        assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
        fs::remove_dir_all(&target).unwrap();
        finished(&|| std::os::unix::fs::symlink(&elsewhere, &target).unwrap());
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2, "nothing of its own");
    }
}
