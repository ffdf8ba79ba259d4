//! What a machine boots from: the kernel and the initrd that the spec names, or those on its first disk, and the command
//! line that goes with them. The disk is searched anew at each boot, so that a guest that has upgraded its kernel boots the
//! new one; files of the host are opened once.

mod open;

pub(crate) use open::OpenFiles;
use open::OpenInitrd;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use boot::initrd::Initrd;
use boot::inspect::inspect_kernel;
use boot::kernel::{Format, Kernel};
use boot::layout::RamLayout;
use boot::plan::{BootPlan, Load, PlanError, PlanRequest};
use boot::read::ReadAt;

use super::StartError;
use super::blocking::BlockingThread;
use super::boot_once::{Beginning, Origin};
use super::cmdline::{self, Line, Said};
use super::deadline::Progress;
use super::loader::ByteSource;
use super::run_resources::Image;
pub(crate) use super::saved::Restore;
use crate::image::{
    Budget, DiskBytes, DiskFile, Explored, INITRD_MAX, ImageError, ImageFile, KERNEL_MAX, ReadError, Root,
    Run, Survey, Wanted, explore,
};
use crate::kvm::KvmDevice;
use crate::shown::path as shown_path;
pub(crate) use crate::shown::text as shown;
use crate::spec::{Spec, SpecError};

/// A file to boot from.
#[derive(Debug, Clone)]
pub(crate) struct BootFile {
    /// The file, or the disk it is on.
    path: PathBuf,
    origin: ByteSource,
    /// Where on the disk.
    inside: Option<ImageFile>,
}

/// Everything that one boot is made from.
#[derive(Debug)]
pub(crate) struct BootFiles {
    pub(crate) kernel: BootFile,
    /// Its headers.
    pub(crate) headers: Kernel,
    pub(crate) initrd: Option<(BootFile, Initrd)>,
    /// The whole kernel command line.
    pub(crate) cmdline: String,
    /// The root file system that was put on it: what it is called there, and where it was found.
    pub(crate) root: Option<(String, String)>,
    /// The boot loader's file on the disk whose options are on it.
    pub(crate) entry: Option<String>,
    /// What the first disk has, if that was looked at.
    pub(crate) looked: Option<String>,
    /// What may surprise: a root that is not known, two disks that are copies of one.
    pub(crate) warnings: Vec<String>,
}

/// What a machine begins with.
#[derive(Debug)]
pub(crate) enum PreparedStart {
    Files(Box<BootFiles>),
    Saved(Restore),
}

/// What a start needs of the host's files, as it was checked.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) open: OpenFiles,
    pub(crate) start: PreparedStart,
    /// /dev/kvm, if it was opened to see whether it can be.
    pub(crate) kvm: Option<File>,
    /// The thread that has made these, if the machine shall go on with it.
    pub(crate) thread: Option<BlockingThread>,
    /// What that thread does.
    pub(crate) progress: Progress,
    /// All that may wait for the host is done: whoever starts the machine does the rest, and no thread is asked for it.
    pub(crate) in_place: bool,
    /// The first boot, if it has begun.
    pub(crate) beginning: Option<(Arc<KvmDevice>, Beginning)>,
}

impl Prepared {
    /// Finds what a machine boots that has these files open.
    pub(crate) fn find(spec: &Spec, open: OpenFiles, progress: &Progress) -> Result<Self, StartError> {
        let boot = BootFiles::find(spec, &open, progress)?;
        Ok(Self::new(open, PreparedStart::Files(Box::new(boot)), progress))
    }

    /// For a machine that was saved and has these files open. No kernel is searched for.
    pub(crate) fn saved(open: OpenFiles, saved: Restore, progress: &Progress) -> Self {
        let open = if saved.initrd_is_gone { open.with_initrd_gone() } else { open };
        Self::new(open, PreparedStart::Saved(saved), progress)
    }

    fn new(open: OpenFiles, start: PreparedStart, progress: &Progress) -> Self {
        let progress = progress.clone();
        Prepared { open, start, kvm: None, thread: None, progress, in_place: false, beginning: None }
    }

    /// What the first boot is made from, unless it is a saved machine.
    pub(crate) fn files(&self) -> Option<&BootFiles> {
        if let PreparedStart::Files(files) = &self.start { Some(files) } else { None }
    }

    /// Has `warning` said before the machine starts.
    #[cfg(feature = "cli")]
    pub(crate) fn warn(&mut self, warning: String) {
        if let PreparedStart::Files(files) = &mut self.start {
            files.warnings.push(warning);
        }
    }

    /// Begins the first boot already. An error comes again when the machine is started.
    pub(crate) fn begin(&mut self, spec: &Spec, kvm: Arc<KvmDevice>) {
        let origin = match &self.start {
            PreparedStart::Files(boot) => Origin::Files(boot),
            PreparedStart::Saved(saved) => Origin::State(saved.clone()),
        };
        let begun = Beginning::new(&kvm, spec, origin, &self.progress);
        self.beginning = begun.ok().map(|begun| (kvm, begun));
    }

    /// Gives it the initrd that was made for its kernel.
    pub(crate) fn give_initrd(&mut self, image: &Arc<dyn Image>) -> Result<(), StartError> {
        let initrd = parse_initrd(self.open.make_initrd(image))?;
        if let PreparedStart::Files(boot) = &mut self.start {
            boot.initrd = Some(initrd);
        }
        Ok(())
    }
}

#[cfg(test)]
impl Prepared {
    /// Opens the files of `spec` and finds what they boot.
    pub(crate) fn of(spec: &Spec) -> Result<Self, StartError> {
        let progress = Progress::default();
        Self::find(spec, OpenFiles::open(spec, &progress)?, &progress)
    }
}

#[cfg(test)]
impl BootFiles {
    pub(crate) fn of(spec: &Spec) -> Result<Self, StartError> {
        match Prepared::of(spec)?.start {
            PreparedStart::Files(files) => Ok(*files),
            PreparedStart::Saved(_) => Err(StartError::Internal("the boot files")),
        }
    }
}

impl BootFiles {
    /// Finds them in the open files of a machine, and on its disks what it does not name.
    pub(crate) fn find(spec: &Spec, open: &OpenFiles, progress: &Progress) -> Result<Self, StartError> {
        if !open.can_boot() {
            return Err(StartError::InitrdGone);
        }
        let made = open.initrd_is_made();
        let kernel = open.kernel.clone().inspect(|file| progress.begin(format!("reading {file}")));
        let given = kernel.map(parse).transpose()?;
        let release = match &given {
            Some((file, kernel)) if !made && spec.initrd.is_none() && !spec.disk.is_empty() => {
                release_of(file, kernel)
            }
            _ => None,
        };
        let wanted = match (&given, &release) {
            (None, _) => Wanted::Kernel,
            (Some(_), Some(release)) => Wanted::Initrd(release),
            (Some(_), None) => Wanted::Nothing,
        };
        let mut disk = DiskBoot::over(spec, open.readers()?, wanted, progress)?;
        let (kernel, headers) = match (given, disk.take(|found| found.kernel.take(), KERNEL)?) {
            (Some(given), _) => given,
            (None, Some(kernel)) => parse(kernel)?,
            (None, None) => return Err(disk.nothing().into()),
        };
        let initrd = match (&open.initrd, &spec.initrd) {
            (OpenInitrd::Named(file) | OpenInitrd::Made(file), _) => Some(file.clone()),
            (OpenInitrd::ToBeMade | OpenInitrd::Gone, _) | (OpenInitrd::Unnamed, Some(_)) => None,
            (OpenInitrd::Unnamed, None) => disk.take(|found| found.initrd.take(), INITRD)?,
        };
        let initrd = initrd.map(parse_initrd).transpose()?;
        let twins = disk.has_twin();
        let (root, unknown) = disk.root(spec, twins);
        let Explored { entry, looked, notes, .. } = disk.found;
        let looked = shown(&looked);
        let line = cmdline::compose(&Said {
            spec,
            options: entry.as_ref().and_then(|(_, options)| options.as_deref()),
            root: root.as_ref().map(|(root, _)| root.as_str()),
            initrd: initrd.is_some() || made,
            twins,
        });
        let mut warnings = warnings(spec, &line, &disk.survey, twins, unknown);
        warnings.extend(notes);
        // A kernel from here may have its root anywhere; one from the disk shall not start to find none.
        if !made && spec.kernel.is_none() && line.root.is_none() {
            return Err(ImageError::NoRoot { path: disk.path, looked }.into());
        }
        Ok(BootFiles {
            kernel,
            headers,
            initrd,
            root: root.filter(|_| line.added_root),
            entry: entry.filter(|_| line.took_options).map(|(name, _)| shown(&name)),
            cmdline: line.text,
            looked: Some(looked).filter(|looked| !looked.is_empty()),
            warnings,
        })
    }
}

/// A kind of file on a disk: what it is called, in words and as an option, and the longest that is taken.
type FileLimit = (&'static str, u64);
const KERNEL: FileLimit = ("kernel", KERNEL_MAX);
const INITRD: FileLimit = ("initrd", INITRD_MAX);

/// The first disk, looked over.
#[derive(Debug, Default)]
struct DiskBoot {
    path: PathBuf,
    file: Option<Arc<DiskFile>>,
    /// The others.
    others: Vec<DiskFile>,
    found: Explored,
    survey: Survey,
    /// What may still be done on the machine's disks.
    budget: Budget,
}

/// What may surprise of a root file system.
fn warnings(spec: &Spec, line: &Line, survey: &Survey, twins: bool, unknown: Option<String>) -> Vec<String> {
    let mut warnings = Vec::new();
    if let (Some(why), None) = (unknown, &line.root) {
        warnings.push(format!(
            "the root file system is not known, since on the first disk {why}; say which it is with \
             `--append root=DEVICE`"
        ));
    }
    if twins {
        warnings.push(
            "two disks have a UUID, PARTUUID or label in common, as copies have: such a name means both, so the root is named by its \
             device"
                .to_owned(),
        );
    }
    let root = line.root.as_deref().unwrap_or_default();
    if spec.disk.len() == 1 && survey.lacks(root) {
        warnings.push(format!(
            "the kernel is told `root={}`, and the disk has nothing of that name; say which it is with `--append root=DEVICE`",
            shown(root)
        ));
    }
    let skips = ["noload", "norecovery", "nologreplay"].iter().any(|flag| line.text.contains(flag));
    let read_only = spec.disk.first().is_some_and(|disk| disk.read_only);
    if let Some(words) = survey.replay_words(root).filter(|_| read_only && !skips) {
        warnings.push(format!(
            "the root file system was not unmounted, and the disk is read-only: the guest cannot replay its journal; \
             add `--append '{words}'`, or leave out `,ro` once"
        ));
    }
    warnings
}

impl DiskBoot {
    /// The root file system, and why it is not known. Where the disk's own files show none, a kernel that was given takes
    /// whatever Linux could mount.
    fn root(&mut self, spec: &Spec, twins: bool) -> (Option<(String, String)>, Option<String>) {
        let found = self.found.root.take();
        let (root, unknown) = match (found, spec.kernel.is_some()) {
            (Some(root), _) => (Some(root), None),
            (None, false) => (None, None),
            (None, true) => match self.survey.root() {
                Root::Is(root, place) => (Some((root, place)), None),
                Root::Unknown(why) => (None, Some(why)),
                Root::No => (None, None),
            },
        };
        let device = |root: String| self.survey.device(&root).filter(|_| twins).unwrap_or(root);
        (root.map(|(root, place)| (device(root), place)), unknown)
    }

    /// Whether another disk of the machine is a copy of the first.
    fn has_twin(&self) -> bool {
        self.others.iter().any(|disk| {
            let other = Survey::of(&disk.disk(&self.budget)).ok();
            other.is_some_and(|other| self.survey.is_twin(&other))
        })
    }

    /// Looks over the first disk, if there is one. Where the kernel is given, the disk may hold anything.
    fn over(
        spec: &Spec,
        opened: Vec<DiskFile>,
        wanted: Wanted<'_>,
        progress: &Progress,
    ) -> Result<Self, StartError> {
        let mut opened = opened.into_iter();
        let (Some(first), Some(disk)) = (spec.disk.first(), opened.next()) else {
            return match wanted {
                Wanted::Kernel => Err(SpecError::NoKernel.into()),
                Wanted::Initrd(_) | Wanted::Nothing => Ok(DiskBoot::default()),
            };
        };
        let path = first.image().to_owned();
        progress.begin(format!("reading the disk {}", shown_path(&path)));
        let budget = Budget::new().until(progress.stop().clone());
        // What cannot be read says so when the guest reads it. It costs little, so that it comes first.
        let survey = Survey::of(&disk.disk(&budget)).unwrap_or_default();
        let found = match explore(&disk.disk(&budget), wanted) {
            Ok(found) => found,
            Err(source)
                if wanted == Wanted::Kernel
                    || wanted != Wanted::Nothing && matches!(source, ReadError::Io(_)) =>
            {
                return Err(ImageError::Read { path, source }.into());
            }
            Err(error) => Explored { looked: error.to_string(), ..Explored::default() },
        };
        let (file, others) = (Some(Arc::new(disk)), opened.collect());
        Ok(DiskBoot { path, file, others, found, survey, budget })
    }

    /// Takes a file out of what was found.
    fn take(
        &mut self,
        which: impl FnOnce(&mut Explored) -> Option<ImageFile>,
        (what, max): FileLimit,
    ) -> Result<Option<BootFile>, ImageError> {
        match (which(&mut self.found), &self.file) {
            (Some(inside), _) if inside.size > max => {
                let (path, mib) = (self.path.clone(), inside.size >> 20);
                Err(ImageError::TooLong { path, file: shown(&inside.path), mib, what })
            }
            (Some(inside), Some(file)) => {
                let origin = match &file.bytes {
                    DiskBytes::File(file) => ByteSource::File(file.clone()),
                    DiskBytes::Mapped { .. } => ByteSource::Made(file.clone()),
                };
                Ok(Some(BootFile { path: self.path.clone(), origin, inside: Some(inside) }))
            }
            _ => Ok(None),
        }
    }

    /// What to say of a disk that has no kernel.
    fn nothing(self) -> ImageError {
        let DiskBoot { path, found: Explored { readable, looked, notes, .. }, .. } = self;
        // What was passed over is the reason as often as what is not there.
        let looked = shown(&std::iter::once(looked).chain(notes).collect::<Vec<_>>().join("; "));
        if readable {
            ImageError::NoKernel { path, looked }
        } else {
            ImageError::NoFileSystem { path, looked }
        }
    }
}

fn parse_initrd(file: BootFile) -> Result<(BootFile, Initrd), StartError> {
    let initrd = Initrd::parse(&file).map_err(|source| StartError::Initrd { path: file.name(), source })?;
    Ok((file, initrd))
}

fn parse(file: BootFile) -> Result<(BootFile, Kernel), StartError> {
    let kernel = Kernel::parse(&file).map_err(|source| StartError::Kernel { path: file.name(), source })?;
    Ok((file, kernel))
}

impl BootFiles {
    /// Where everything goes in memory of this layout.
    pub(crate) fn plan(&self, ram: &RamLayout) -> Result<BootPlan, PlanError> {
        let initrd = self.initrd.as_ref().map(|(_, initrd)| *initrd);
        let request = PlanRequest { cmdline: &self.cmdline, initrd, ram, preferred_entry: None };
        boot::plan::plan(&self.headers, &request)
    }

    /// The kernel's release, as `uname -r` prints it.
    pub(crate) fn release(&self) -> Option<String> {
        release_of(&self.kernel, &self.headers)
    }
}

/// A kernel's release. That of an uncompressed kernel without one in its name is searched for in all of it.
fn release_of(file: &BootFile, kernel: &Kernel) -> Option<String> {
    let path = file.inside.as_ref().map_or(file.path.as_path(), |inside| Path::new(&inside.path));
    if let Some(release) = release(path, kernel.version()) {
        return Some(release.to_owned());
    }
    let facts = (kernel.format() != Format::BzImage).then(|| inspect_kernel(file).ok()).flatten()?;
    release(path, facts.version.as_deref()).map(str::to_owned)
}

/// A kernel's release, as `uname -r` prints it: out of its version string, else out of a name like vmlinux-6.1.0.
pub(crate) fn release<'a>(kernel: &'a Path, version: Option<&'a str>) -> Option<&'a str> {
    let named = || {
        let (_, release) = kernel.file_name()?.to_str()?.split_once('-')?;
        release.starts_with(|first: char| first.is_ascii_digit()).then_some(release)
    };
    let release = version.and_then(|text| text.split_whitespace().next()).or_else(named)?;
    // It becomes part of paths, and the file that it comes from is not to be trusted.
    release.chars().all(|c| c.is_ascii_alphanumeric() || "._-+~".contains(c)).then_some(release)
}

impl BootFile {
    /// What it is called where a path is shown: a file on a disk behind the disk's own path.
    pub(crate) fn name(&self) -> PathBuf {
        match &self.inside {
            Some(inside) => format!("{}:{}", self.path.display(), shown(&inside.path)).into(),
            None => self.path.clone(),
        }
    }

    /// The file, or the disk that it is on.
    #[cfg(feature = "cli")]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its path on the disk.
    #[cfg(feature = "cli")]
    pub(crate) fn inside(&self) -> Option<&str> {
        self.inside.as_ref().map(|inside| inside.path.as_str())
    }

    fn opened(path: &Path, file: File) -> Self {
        BootFile { path: path.to_owned(), origin: ByteSource::File(Arc::new(file)), inside: None }
    }

    /// Something that was made for this machine, and what it is called where a path is shown.
    fn made(name: &str, image: &Arc<dyn Image>) -> Self {
        let path = format!("the {name} that was made for this machine").into();
        BootFile { path, origin: ByteSource::Made(image.clone()), inside: None }
    }

    /// What the bytes come from.
    pub(super) fn origin(&self) -> ByteSource {
        self.origin.clone()
    }

    /// The same copies with their places in [`BootFile::origin`]. What the disk has no block for is zero, as the guest's
    /// fresh memory is.
    pub(super) fn located(&self, copies: &[Load]) -> Vec<Load> {
        match &self.inside {
            None => copies.to_vec(),
            Some(inside) => copies
                .iter()
                .flat_map(|copy| inside.runs.iter().filter_map(|run| overlap(copy, run)))
                .collect(),
        }
    }
}

/// What of a copy lies in a run.
fn overlap(copy: &Load, run: &Run) -> Option<Load> {
    let start = copy.file_offset.max(run.file);
    let end = (copy.file_offset + copy.len).min(run.file + run.len);
    (start < end).then(|| Load {
        file_offset: run.disk + (start - run.file),
        guest: copy.guest + (start - copy.file_offset),
        len: end - start,
    })
}

impl ReadAt for BootFile {
    fn length(&self) -> io::Result<u64> {
        match (&self.inside, &self.origin) {
            (Some(inside), _) => Ok(inside.size),
            (None, ByteSource::File(file)) => file.length(),
            (None, ByteSource::Made(image)) => image.length(),
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let origin: &dyn ReadAt = match &self.origin {
            ByteSource::File(file) => &**file,
            ByteSource::Made(image) => &**image,
        };
        let Some(inside) = &self.inside else { return origin.read_at(buf, offset) };
        let len = (buf.len() as u64).min(inside.size.saturating_sub(offset));
        let wanted = Load { file_offset: offset, guest: 0, len };
        buf.fill(0);
        for part in self.located(&[wanted]) {
            let end = part.guest.checked_add(part.len).ok_or(io::ErrorKind::InvalidInput)?;
            let (Ok(from), Ok(to)) = (usize::try_from(part.guest), usize::try_from(end)) else { continue };
            if let Some(place) = buf.get_mut(from..to)
                && origin.read_at(place, part.file_offset)? < place.len()
            {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput.into())
    }
}

impl fmt::Display for BootFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.inside {
            Some(inside) => write!(f, "{} on {}", shown(&inside.path), shown_path(&self.path)),
            None => f.write_str(&shown_path(&self.path)),
        }
    }
}

#[cfg(test)]
mod tests;
