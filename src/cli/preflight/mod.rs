//! What can be known to fail before a machine is started, each thing with its own sentence: what, on which path, and
//! how to mend it. Reads a few KiB and starts nothing; whoever starts the machine checks again what it relies on.

mod words;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use boot::initrd::InitrdError;
use boot::kernel::{Format, KernelError};
use boot::layout::RamLayout;
use boot::plan::{PlanError, PlanRequest};

use super::advice::{self, MemoryVerdict, Trouble};
use super::drivers::{self, Driver};
use super::exit::Status;
use crate::host::facts::Host;
use crate::machine::StartError;
use crate::machine::deadline::{Progress, within};
use crate::machine::files::{BootFiles, OpenFiles, Prepared};
use crate::spec::Spec;

/// A machine that may be started.
#[derive(Debug)]
pub(super) struct Cleared {
    /// Its files, open, and what it boots from. The machine gets these, so that it boots what was checked.
    pub prepared: Prepared,
    /// What may surprise later.
    pub warnings: Vec<Trouble>,
}

/// A machine that cannot be started as it stands.
#[derive(Debug, thiserror::Error)]
pub(super) enum PreflightError {
    /// The spec is not complete, or its first disk gives nothing to boot.
    #[error(transparent)]
    Files(StartError),
    /// A file that cannot be had.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that is no kernel for this machine.
    #[error("{path} cannot be booted", path = path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// Why, and what to give instead.
        source: KernelError,
    },
    /// A file that is no initrd.
    #[error("{path} cannot serve as the initial RAM disk", path = path.display())]
    Initrd {
        /// The file.
        path: PathBuf,
        /// Why, and what to give instead.
        source: InitrdError,
    },
    /// Too little memory, a command line that is too long.
    #[error("{error}{}", plan_cure(error))]
    Plan {
        /// What the plan of the boot found.
        error: PlanError,
    },
    /// An initrd that is missing, memory that no host like this has, KVM that is not to be had.
    #[error(transparent)]
    Trouble(#[from] Trouble),
}

/// A file that was named and cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// There is none.
    #[error("the {what} {path} does not exist; {hint}", path = path.display())]
    Missing {
        /// What it should have been.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Where to look instead.
        hint: String,
    },
    /// It is a folder, a device, a pipe.
    #[error("the {what} {path} is {kind}; name a file{hint}", path = path.display())]
    Kind {
        /// What it should have been.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
        /// What was perhaps meant.
        hint: String,
    },
    /// The user may not read it.
    #[error("the {what} {path} may not be read by this user; `sudo chmod a+r {path}` lets everybody", path = path.display())]
    Denied {
        /// What it should have been.
        what: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// Something else.
    #[error("the {what} {path} cannot be read", path = path.display())]
    Unreadable {
        /// What it should have been.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
}

impl From<StartError> for PreflightError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Kernel { path, source } => PreflightError::Kernel { path, source },
            StartError::Initrd { path, source } => PreflightError::Initrd { path, source },
            other => PreflightError::Files(other),
        }
    }
}

impl PreflightError {
    /// How the command ends then: only what is wrong whatever the host has is the command line's fault.
    pub(super) fn status(&self) -> Status {
        match self {
            PreflightError::Files(StartError::Spec(_)) => Status::Usage,
            _ => Status::Failed,
        }
    }
}

/// Opens and looks at everything.
pub(super) fn check(spec: &Spec, host: &Host) -> Result<Cleared, PreflightError> {
    let prepared = prepare(spec, InitrdOrigin::Spec)?;
    let warnings = judge(spec, host, &prepared.boot)?;
    Ok(Cleared { prepared, warnings })
}

/// Where a machine's initrd comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InitrdOrigin {
    /// What the spec says.
    Spec,
    /// It is made for the kernel that is found.
    ToBeMade,
}

/// Opens the files that `spec` names and finds what they boot. The machine gets what is opened here.
pub(super) fn prepare(spec: &Spec, initrd: InitrdOrigin) -> Result<Prepared, PreflightError> {
    let spec = spec.clone();
    within(&Progress::default(), move |progress| {
        let files = OpenFiles::open_by(&spec, progress, |what, path| {
            let what = if what == "initrd" { "initial RAM disk" } else { what };
            open(what, path).map_err(PreflightError::File)
        })?;
        let files = if initrd == InitrdOrigin::ToBeMade { files.without_initrd() } else { files };
        Ok(Prepared::find(&spec, files, progress)?)
    })
}

/// What may surprise of a machine that boots `files`.
pub(super) fn judge(spec: &Spec, host: &Host, files: &BootFiles) -> Result<Vec<Trouble>, PreflightError> {
    let mut warnings: Vec<_> =
        files.warnings.iter().map(|what| Trouble { what: what.clone(), cure: None }).collect();
    warnings.extend(words::warning(&files.cmdline, spec.mem(), spec.cpus()));
    if let (Some(path), None, None) = (&spec.kernel, &spec.initrd, &files.initrd) {
        if let Some(trouble) = no_initrd(host, path, files.headers.version()) {
            return Err(looked_too(trouble, spec, files).into());
        }
    }
    // A kernel from the disk may well have its drivers built in: what is known of it is its name.
    if let (None, None, None) = (&spec.kernel, &spec.initrd, &files.initrd) {
        warnings.extend(no_initrd_on_disk(files));
    }
    let ram = RamLayout::new(spec.mem().bytes());
    let initrd = files.initrd.as_ref().map(|(_, initrd)| *initrd);
    boot::plan(
        &files.headers,
        &PlanRequest { cmdline: &files.cmdline, initrd, ram: &ram, preferred_entry: None },
    )
    .map_err(|error| PreflightError::Plan { error })?;
    warnings.extend(little_memory(spec, files));
    if let Some(memory) = host.memory() {
        match advice::memory(spec.mem(), memory) {
            MemoryVerdict::Fits => {}
            MemoryVerdict::Overcommitted(trouble) => warnings.push(trouble),
            MemoryVerdict::Absurd(trouble) => return Err(trouble.into()),
        }
    }
    if let Some(trouble) = advice::kvm(host, &host.access(advice::KVM)) {
        return Err(trouble.into());
    }
    if files.headers.format() == Format::BzImage && host.is_pvm() {
        warnings.push(advice::no_linux_on_pvm());
    }
    Ok(warnings)
}

/// What to say of memory that may do, and may not.
fn little_memory(spec: &Spec, files: &BootFiles) -> Option<Trouble> {
    let initrd = files.initrd.as_ref().map(|(_, initrd)| initrd);
    let needed = boot::plan::memory_estimate(&files.headers, initrd).ok()?;
    (spec.mem().bytes() < needed).then(|| Trouble {
        what: format!(
            "{} of memory may be too little for this kernel{}",
            spec.mem(),
            if initrd.is_some() { " with this initial RAM disk" } else { "" }
        ),
        cure: Some(format!("`--mem {}` is expected to be enough", needed >> 20)),
    })
}

/// What to say of a kernel from the disk that comes without an initrd.
fn no_initrd_on_disk(files: &BootFiles) -> Option<Trouble> {
    let release = files.release()?;
    drivers::is_distribution(&release, files.headers.version()).then(|| Trouble {
        what: format!(
            "no initial RAM disk was found for the kernel {}, which is a distribution's and has its drivers as modules",
            files.kernel
        ),
        cure: Some("give the one made for it with `--initrd FILE`".to_owned()),
    })
}

/// Adds what the first disk was found to have, where an initrd was looked for there in vain.
fn looked_too(trouble: Trouble, spec: &Spec, files: &BootFiles) -> Trouble {
    match (spec.disk.first(), &files.looked) {
        (Some(disk), Some(looked)) => Trouble {
            what: format!("{}; on the disk {}, {looked}", trouble.what, disk.path.display()),
            ..trouble
        },
        _ => trouble,
    }
}

/// What is wrong with a kernel that comes without an initrd: its drivers may be modules.
pub(super) fn no_initrd(host: &Host, path: &Path, version: Option<&str>) -> Option<Trouble> {
    let release = drivers::release(path, version)?;
    let because = match drivers::find(host, path, release) {
        Some(drivers) if drivers.modular() => {
            let modules = drivers.all().into_iter().filter(|(_, how)| *how == Driver::Module);
            let modules: Vec<_> = modules.map(|(name, _)| name).collect();
            format!("{} says that {} are modules", drivers.source.display(), modules.join(", "))
        }
        None if drivers::is_distribution(release, version) => {
            "it is a distribution's, whose drivers are modules".to_owned()
        }
        Some(_) | None => return None,
    };
    let add = match drivers::initrd_of(host, path, release) {
        Some(initrd) => format!("add `--initrd {}`", initrd.display()),
        None => format!("add `--initrd FILE` with the one made for it (Debian: /boot/initrd.img-{release})"),
    };
    Some(Trouble {
        what: format!("the kernel {} needs an initial RAM disk, because {because}", path.display()),
        cure: Some(format!("{add}, or `--initrd none` to try without")),
    })
}

fn plan_cure(error: &PlanError) -> String {
    match error {
        PlanError::NotEnoughMemory { needed, .. } => format!(" Use `--mem {}` or more.", needed >> 20),
        _ => String::new(),
    }
}

/// Opens a file that is one: opening a pipe would wait for its other end.
pub(super) fn open(what: &'static str, path: &Path) -> Result<File, FileError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            FileError::Missing { what, path: path.to_path_buf(), hint: missing_hint(path) }
        }
        io::ErrorKind::PermissionDenied => FileError::Denied { what, path: path.to_path_buf() },
        _ => FileError::Unreadable { what, path: path.to_path_buf(), source },
    };
    let meta = fs::metadata(path).map_err(failed)?;
    if !meta.is_file() {
        let (kind, hint) = if meta.is_dir() {
            ("a folder", newest_in(what, path).map(|file| format!(" in it, such as {}", file.display())))
        } else {
            ("no regular file", None)
        };
        return Err(FileError::Kind { what, path: path.to_path_buf(), kind, hint: hint.unwrap_or_default() });
    }
    File::open(path).map_err(failed)
}

fn missing_hint(path: &Path) -> String {
    match path.ancestors().skip(1).find(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) if !folder.is_dir() => format!("neither does the folder {}", folder.display()),
        Some(folder) => format!("`ls {}` shows what is there", folder.display()),
        None => "`ls` shows what is in this folder".to_owned(),
    }
}

/// The last of the files in a folder that are called as such files are.
fn newest_in(what: &str, folder: &Path) -> Option<PathBuf> {
    let prefix = if what == "kernel" { "vmlinu" } else { "init" };
    let names = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.file_name());
    names
        .filter(|name| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
        .max()
        .map(|name| folder.join(name))
}

#[cfg(test)]
mod tests;
