//! Checks before a machine is started, each with its own sentence: what is wrong, on which path, and how to
//! mend it. Opens kernel, initrd, disks and /dev/kvm, and starts nothing; the machine goes on with what is open.

mod cmdline_words;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use boot::initrd::InitrdError;
use boot::kernel::{Format, KernelError};
use boot::layout::RamLayout;
use boot::plan::PlanError;
use diskimage::shell_word;

use super::advice::{self, MemoryVerdict, Problem};
use super::drivers::{self, Driver};
use super::exit::Status;
use super::state_folder::snapshots_of;
use crate::host::closed::ClosedFolder;
use crate::host::facts::{Host, Memory};
use crate::host::open_now::open_now;
use crate::host::signals::Signals;
use crate::kvm::KvmDevice;
use crate::machine::StartError;
use crate::machine::blocking::BlockingThread;
use crate::machine::deadline::{Progress, within_and};
use crate::machine::files::{BootFiles, OpenFiles, Prepared, Restore};
use crate::saved::{self, SavedMachineError};
use crate::shown::path as shown;
use crate::spec::Spec;

/// A machine that may be started.
#[derive(Debug)]
pub(super) struct Checked {
    /// The open files of the spec, and the boot files. The machine gets these, so that it boots what was checked.
    pub prepared: Prepared,
    /// Warnings.
    pub warnings: Vec<Problem>,
}

/// Why a machine cannot be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum PreflightError {
    /// The spec is incomplete, or its first disk has nothing to boot.
    #[error(transparent)]
    Files(StartError),
    /// A file cannot be opened.
    #[error(transparent)]
    File(#[from] FileError),
    /// The kernel is not bootable here.
    #[error("{path} cannot be booted", path = shown(path))]
    Kernel {
        /// The file.
        path: PathBuf,
        /// The reason, and what to give instead.
        source: KernelError,
    },
    /// The initrd is not one.
    #[error("{path} cannot serve as the initial RAM disk", path = shown(path))]
    Initrd {
        /// The file.
        path: PathBuf,
        /// The reason, and what to give instead.
        source: InitrdError,
    },
    /// Too little memory, or too long a command line.
    #[error("{error}{}", plan_cure(error, entry.as_deref()))]
    Plan {
        /// The error of the boot plan.
        error: PlanError,
        /// The boot loader's entry whose options are on the command line.
        entry: Option<String>,
    },
    /// The way back to a snapshot was cut off, and is not finished.
    #[error("the disks were about to become those of a snapshot, which was cut off and cannot be finished")]
    Exchange(#[source] SavedMachineError),
    /// An initrd is missing, the memory is excessive, or KVM is not available.
    #[error(transparent)]
    Problem(#[from] Problem),
}

/// A file that was named cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It does not exist.
    #[error("the {what} {path} does not exist; {hint}", path = shown(path))]
    Missing {
        /// Its role.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// Where to look instead.
        hint: String,
    },
    /// It is a folder, a device or a FIFO.
    #[error("the {what} {path} is {kind}; name a file{hint}", path = shown(path))]
    Kind {
        /// Its role.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// Its kind.
        kind: &'static str,
        /// A suggestion.
        hint: String,
    },
    /// A folder on the way is closed.
    #[error("the {what} {path} cannot be opened: {closed}", path = shown(path))]
    Closed {
        /// Its role.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// The folder.
        closed: Box<ClosedFolder>,
    },
    /// The user may not read it.
    #[error("the {what} {path} may not be read by this user; `sudo chmod a+r {word}` lets everybody", path = shown(path), word = shell_word(path))]
    Denied {
        /// Its role.
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// Any other error.
    #[error("the {what} {path} cannot be read", path = shown(path))]
    Unreadable {
        /// Its role.
        what: &'static str,
        /// The path.
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
    /// The exit status: `Usage` only for what is wrong on every host.
    pub(super) fn status(&self) -> Status {
        match self {
            PreflightError::Files(StartError::Spec(_)) => Status::Usage,
            _ => Status::Failed,
        }
    }
}

/// Opens and looks at everything.
pub(super) fn check(spec: &Spec, host: &Host) -> Result<Checked, PreflightError> {
    check_start(spec, Start::Files, host)
}

/// The same for a saved machine.
pub(super) fn check_saved(spec: &Spec, saved: Restore, host: &Host) -> Result<Checked, PreflightError> {
    check_start(spec, Start::Saved(saved), host)
}

fn check_start(spec: &Spec, start: Start, host: &Host) -> Result<Checked, PreflightError> {
    let (mut prepared, memory) = prepare_beside(spec, start, || host.memory())?;
    let warnings = judge_with(spec, host, memory, &mut prepared)?;
    Ok(Checked { prepared, warnings })
}

/// What a machine begins with.
#[derive(Debug)]
pub(super) enum Start {
    /// Kernel and initrd of the spec or of the first disk.
    Files,
    /// The same kernel, with an initrd that is to be made for it.
    Kernel,
    /// A saved machine, which has all it needs in its memory.
    Saved(Restore),
}

/// Opens the files that `spec` names and finds the boot files. The machine gets the files that are opened here.
pub(super) fn prepare(spec: &Spec, start: Start) -> Result<Prepared, PreflightError> {
    prepare_beside(spec, start, || ()).map(|(prepared, ())| prepared)
}

/// The same; `beside` is done meanwhile, on this thread.
fn prepare_beside<B>(
    spec: &Spec,
    start: Start,
    beside: impl FnOnce() -> B,
) -> Result<(Prepared, B), PreflightError> {
    let spec = spec.clone();
    let progress = Progress::default();
    let begins = !matches!(start, Start::Kernel) && !is_mistake(&spec);
    // One that cannot be opened is found later, and said.
    let kvm = begins.then(KvmDevice::open).and_then(Result::ok).map(Arc::new);
    let begun_with = kvm.clone();
    let work = move |progress: &Progress| {
        // The machine goes on with this thread, and all its threads descend from it; the others block the signals later.
        let _ = Signals::block_terminal();
        let finished = match start {
            Start::Saved(_) => None,
            Start::Files | Start::Kernel => finish_exchange(&spec, progress)?,
        };
        let files = OpenFiles::open_by(&spec, progress, |what, path| {
            let what = if what == "initrd" { "initial RAM disk" } else { what };
            open(what, path).map_err(PreflightError::File)
        })?;
        let mut prepared = match start {
            Start::Files => Prepared::find(&spec, files, progress)?,
            Start::Kernel => Prepared::find(&spec, files.without_initrd(), progress)?,
            Start::Saved(saved) => Prepared::saved(files, saved, progress),
        };
        finished.into_iter().for_each(|finished| prepared.warn(finished));
        // Most starts are not refused below. Loading takes longer than all the rest, so it begins here.
        if let Some(kvm) = begun_with {
            prepared.begin(&spec, kvm);
        }
        Ok::<_, PreflightError>(prepared)
    };
    let beside = || {
        kvm.iter().for_each(|kvm| kvm.ask_ahead());
        beside()
    };
    let (result, beside) = within_and(BlockingThread::spawn()?, &progress, work, beside);
    let (mut prepared, thread) = result?;
    prepared.thread = Some(thread);
    Ok((prepared, beside))
}

/// Memory that no machine on this host can have: it is refused later, and is not taken before.
fn is_mistake(spec: &Spec) -> bool {
    let memory = Host::physical_memory().map(|memory| advice::memory(spec.mem(), memory));
    matches!(memory, Some(MemoryVerdict::Excessive(_)))
}

/// Brings to its end what was cut off when the machine went back to a snapshot, and says so.
fn finish_exchange(spec: &Spec, progress: &Progress) -> Result<Option<String>, PreflightError> {
    progress.begin("looking for an exchange of the disks that was cut off");
    // Each piece has the whole limit, however large the disks are.
    let wanted = || {
        progress.begin("copying the machine's disks back from a snapshot, as was begun before");
        !progress.is_stopped()
    };
    // Beside its snapshots: of one during which its process was killed.
    if let Some(folder) = spec.name.as_ref().and_then(snapshots_of) {
        saved::sweep_unfinished(&folder);
    }
    let Some(finished) = saved::finish_exchange(&spec.disk, &wanted) else { return Ok(None) };
    let folder = finished.map_err(PreflightError::Exchange)?;
    Ok(Some(format!(
        "the machine was about to go back to {} when its process ended: its disks are those of there now, and it boots from them; \
         `minivmm restore --put-back` goes on with its memory as well",
        shown(&folder)
    )))
}

/// What may surprise of a machine that boots what was prepared, and /dev/kvm for it.
pub(super) fn judge(
    spec: &Spec,
    host: &Host,
    prepared: &mut Prepared,
) -> Result<Vec<Problem>, PreflightError> {
    judge_with(spec, host, host.memory(), prepared)
}

fn judge_with(
    spec: &Spec,
    host: &Host,
    memory: Option<Memory>,
    prepared: &mut Prepared,
) -> Result<Vec<Problem>, PreflightError> {
    let mut warnings = match prepared.files() {
        Some(files) => judge_files(spec, host, files, prepared.beginning.is_none())?,
        None => Vec::new(),
    };
    if let Some(memory) = memory {
        match advice::memory(spec.mem(), memory) {
            MemoryVerdict::Fits => {}
            MemoryVerdict::Overcommitted(problem) => warnings.push(problem),
            MemoryVerdict::Excessive(problem) => return Err(problem.into()),
        }
    }
    match host.open(advice::KVM) {
        Ok(kvm) => prepared.kvm = Some(kvm),
        Err(access) => {
            if let Some(problem) = advice::kvm(host, &access) {
                return Err(problem.into());
            }
        }
    }
    let is_linux = prepared.files().is_some_and(|files| files.headers.format() == Format::BzImage);
    if is_linux && host.is_pvm() {
        warnings.push(advice::no_linux_on_pvm());
    }
    Ok(warnings)
}

/// What may surprise of the files that a machine boots; with `plan` also whether they can be booted.
fn judge_files(
    spec: &Spec,
    host: &Host,
    files: &BootFiles,
    plan: bool,
) -> Result<Vec<Problem>, PreflightError> {
    let mut warnings: Vec<_> =
        files.warnings.iter().map(|what| Problem { what: what.clone(), cure: None }).collect();
    warnings.extend(cmdline_words::warning(&files.cmdline, spec.mem(), spec.cpus()));
    if let (Some(path), None, None) = (&spec.kernel, &spec.initrd, &files.initrd)
        && let Some(problem) = no_initrd(host, path, files.headers.version())
    {
        return Err(add_disk_findings(problem, spec, files).into());
    }
    // A kernel from the disk may have its drivers built in: only its name is known.
    if let (None, None, None) = (&spec.kernel, &spec.initrd, &files.initrd) {
        warnings.extend(no_initrd_on_disk(files));
    }
    if plan {
        files
            .plan(&RamLayout::new(spec.mem().bytes()))
            .map_err(|error| PreflightError::Plan { error, entry: files.entry.clone() })?;
    }
    warnings.extend(little_memory(spec, files));
    Ok(warnings)
}

/// A warning about memory that may not be enough.
fn little_memory(spec: &Spec, files: &BootFiles) -> Option<Problem> {
    let initrd = files.initrd.as_ref().map(|(_, initrd)| initrd);
    let needed = boot::plan::memory_estimate(&files.headers, initrd).ok()?;
    (spec.mem().bytes() < needed).then(|| Problem {
        what: format!(
            "{} of memory may be too little for this kernel{}",
            spec.mem(),
            if initrd.is_some() { " with this initial RAM disk" } else { "" }
        ),
        cure: Some(format!("`--mem {}` is expected to be enough", needed >> 20)),
    })
}

/// A warning about a kernel from the disk without an initrd.
fn no_initrd_on_disk(files: &BootFiles) -> Option<Problem> {
    let release = files.release()?;
    drivers::is_distribution(&release, files.headers.version()).then(|| Problem {
        what: format!(
            "no initial RAM disk was found for the kernel {}, which is a distribution's and has its drivers as modules",
            files.kernel
        ),
        cure: Some("give the one made for it with `--initrd FILE`".to_owned()),
    })
}

/// Adds the result of searching the first disk for an initrd.
fn add_disk_findings(problem: Problem, spec: &Spec, files: &BootFiles) -> Problem {
    match (spec.disk.first(), &files.looked) {
        (Some(disk), Some(looked)) => Problem {
            what: format!("{}; on the disk {}, {looked}", problem.what, shown(disk.image())),
            ..problem
        },
        _ => problem,
    }
}

/// The problem of a kernel without an initrd: its drivers may be modules.
pub(super) fn no_initrd(host: &Host, path: &Path, version: Option<&str>) -> Option<Problem> {
    let release = drivers::release(path, version)?;
    let because = match drivers::find(host, path, release) {
        Some(drivers) if drivers.modular() => {
            let modules = drivers.all().into_iter().filter(|(_, how)| *how == Driver::Module);
            let modules: Vec<_> = modules.map(|(name, _)| name).collect();
            format!("{} says that {} are modules", shown(&drivers.source), modules.join(", "))
        }
        None if drivers::is_distribution(release, version) => {
            "it is a distribution's, whose drivers are modules".to_owned()
        }
        Some(_) | None => return None,
    };
    let add = match drivers::initrd_of(host, path, release) {
        Some(initrd) => format!("add `--initrd {}`", shell_word(&initrd)),
        None => format!("add `--initrd FILE` with the one made for it (Debian: /boot/initrd.img-{release})"),
    };
    Some(Problem {
        what: format!("the kernel {} needs an initial RAM disk, because {because}", shown(path)),
        cure: Some(format!("{add}, or `--initrd none` to try without")),
    })
}

fn plan_cure(error: &PlanError, entry: Option<&str>) -> String {
    match (error, entry) {
        (PlanError::NotEnoughMemory { needed, .. }, _) => format!(" Use `--mem {}` or more.", needed >> 20),
        (PlanError::CmdlineTooLong { .. }, Some(entry)) => {
            format!(
                " Its options come from {entry} on the first disk: shorten them there, or give `--cmdline`."
            )
        }
        _ => String::new(),
    }
}

/// Opens a regular file; opening a FIFO would block.
pub(super) fn open(what: &'static str, path: &Path) -> Result<File, FileError> {
    let error = |source| FileError::of(what, path, source);
    let meta = fs::metadata(path).map_err(error)?;
    if !meta.is_file() {
        let (kind, hint) = if meta.is_dir() {
            ("a folder", newest_in(what, path).map(|file| format!(" in it, such as {}", shown(&file))))
        } else {
            ("no regular file", None)
        };
        return Err(FileError::Kind { what, path: path.to_path_buf(), kind, hint: hint.unwrap_or_default() });
    }
    open_now(path, File::options().read(true), 0).map_err(error)
}

impl FileError {
    /// What the host's error says of the file `path`, which is this to the machine.
    pub(super) fn of(what: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                FileError::Missing { what, hint: missing_hint(&path), path }
            }
            io::ErrorKind::PermissionDenied => match ClosedFolder::before(&path) {
                Some(closed) => FileError::Closed { what, path, closed: Box::new(closed) },
                None => FileError::Denied { what, path },
            },
            _ => FileError::Unreadable { what, path, source },
        }
    }
}

fn missing_hint(path: &Path) -> String {
    match path.ancestors().skip(1).find(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) if !folder.is_dir() => format!("neither does the folder {}", shown(folder)),
        Some(folder) => format!("`ls {}` shows what is there", shell_word(folder)),
        None => "`ls` shows what is in this folder".to_owned(),
    }
}

/// The last file of a folder whose name is usual for its role.
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
