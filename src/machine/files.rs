//! What a machine boots from: the kernel and the initrd that the spec names, or those on its first disk, and the command
//! line that goes with them. Looked for anew at each boot, so that a guest that has upgraded its kernel boots the new one.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use boot::initrd::Initrd;
use boot::inspect::inspect_kernel;
use boot::kernel::{Format, Kernel};
use boot::plan::Load;
use boot::read::ReadAt;

use super::StartError;
use super::cmdline::{self, Said};
use crate::image::{DiskFile, Explored, ImageError, ImageFile, ReadError, Run, Wanted, explore};
use crate::spec::{self, Spec, SpecError};

/// Longest kernel and longest initrd that are taken from a disk.
const KERNEL_MAX: u64 = 256 << 20;
const INITRD_MAX: u64 = 1 << 30;

/// A file to boot from.
#[derive(Debug, Clone)]
pub(crate) struct BootFile {
    /// The file, or the disk it is on.
    path: PathBuf,
    file: Arc<File>,
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
}

impl BootFiles {
    /// Finds them for this machine.
    pub(crate) fn find(spec: &Spec) -> Result<Self, StartError> {
        let given = spec.kernel.as_deref().map(given_kernel).transpose()?;
        let disk = spec.disk.first().map(|disk| disk.path.as_path());
        let release = match &given {
            Some((file, kernel)) if spec.initrd.is_none() && disk.is_some() => release_of(file, kernel),
            _ => None,
        };
        let wanted = match (&given, &release) {
            (None, _) => Wanted::Kernel,
            (Some(_), Some(release)) => Wanted::Initrd(release),
            (Some(_), None) => Wanted::Nothing,
        };
        let (source, mut explored) = match disk {
            Some(path) => explore_disk(path, wanted)?,
            None if given.is_none() => return Err(SpecError::NoKernel.into()),
            None => (None, Explored::default()),
        };
        let taken = |file: ImageFile, max, what, flag| match &source {
            Some((path, _)) if file.size > max => {
                let (path, mib) = (path.clone(), file.size >> 20);
                Err(ImageError::TooLong { path, file: file.path, mib, what, flag })
            }
            Some((path, disk)) => {
                Ok(Some(BootFile { path: path.clone(), file: disk.clone(), inside: Some(file) }))
            }
            None => Ok(None),
        };
        let on_disk = explored.kernel.take().map(|file| taken(file, KERNEL_MAX, "kernel", "kernel"));
        let (kernel, headers) = match (given, on_disk.transpose()?.flatten()) {
            (Some(given), _) => given,
            (None, Some(kernel)) => parse(kernel)?,
            (None, None) => return Err(nothing(disk, &explored).into()),
        };
        let initrd = match &spec.initrd {
            Some(spec::Initrd::None) => None,
            Some(spec::Initrd::File(path)) => Some(open("initrd", path)?),
            None => match explored.initrd.take() {
                Some(file) => taken(file, INITRD_MAX, "initrd", "initrd")?,
                None => None,
            },
        };
        let initrd = match initrd {
            Some(file) => {
                let parsed = Initrd::parse(&file)
                    .map_err(|source| StartError::Initrd { path: file.name(), source })?;
                Some((file, parsed))
            }
            None => None,
        };
        let said = Said {
            spec,
            options: explored.entry.as_ref().and_then(|(_, options)| options.as_deref()),
            root: explored.root.as_ref().map(|(root, _)| root.as_str()),
            initrd: initrd.is_some(),
        };
        let line = cmdline::compose(&said);
        // A kernel from here may have its root anywhere; one from the disk shall not start to find none.
        if let (None, Some(path), None) = (&spec.kernel, disk, &line.root) {
            return Err(ImageError::NoRoot { path: path.to_owned(), looked: explored.looked }.into());
        }
        let found = explored.root.filter(|(root, _)| line.added_root && line.root.as_ref() == Some(root));
        let entry = explored.entry.filter(|_| line.took_options).map(|(name, _)| name);
        let looked = Some(explored.looked).filter(|looked| !looked.is_empty());
        Ok(BootFiles { kernel, headers, initrd, cmdline: line.text, root: found, entry, looked })
    }
}

type Source = Option<(PathBuf, Arc<File>)>;

/// Looks over the first disk. Where the kernel is given, the disk may hold anything.
fn explore_disk(path: &Path, wanted: Wanted<'_>) -> Result<(Source, Explored), ImageError> {
    let opened = DiskFile::open(path);
    let disk = opened.map_err(|source| ImageError::Open { path: path.to_owned(), source })?;
    match explore(&disk, wanted) {
        Ok(explored) => Ok((Some((path.to_owned(), Arc::new(disk.file))), explored)),
        Err(source @ ReadError::Io(_)) => Err(ImageError::Read { path: path.to_owned(), source }),
        Err(source) if wanted == Wanted::Kernel => Err(ImageError::Read { path: path.to_owned(), source }),
        Err(error) => Ok((None, Explored { looked: error.to_string(), ..Explored::default() })),
    }
}

fn nothing(disk: Option<&Path>, explored: &Explored) -> ImageError {
    let (path, looked) = (disk.unwrap_or(Path::new("")).to_owned(), explored.looked.clone());
    if explored.readable {
        ImageError::NoKernel { path, looked }
    } else {
        ImageError::NoFileSystem { path, looked }
    }
}

fn given_kernel(path: &Path) -> Result<(BootFile, Kernel), StartError> {
    parse(open("kernel", path)?)
}

fn parse(file: BootFile) -> Result<(BootFile, Kernel), StartError> {
    let kernel = Kernel::parse(&file).map_err(|source| StartError::Kernel { path: file.name(), source })?;
    Ok((file, kernel))
}

fn open(what: &'static str, path: &Path) -> Result<BootFile, StartError> {
    let file = File::open(path).map_err(|source| StartError::Open { what, path: path.to_owned(), source })?;
    Ok(BootFile { path: path.to_owned(), file: Arc::new(file), inside: None })
}

/// A kernel's release. That of an uncompressed kernel without one in its name is searched for in all of it.
fn release_of(file: &BootFile, kernel: &Kernel) -> Option<String> {
    if let Some(release) = release(&file.path, kernel.version()) {
        return Some(release.to_owned());
    }
    let facts = (kernel.format() != Format::BzImage).then(|| inspect_kernel(file).ok()).flatten()?;
    release(&file.path, facts.version.as_deref()).map(str::to_owned)
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
            Some(inside) => format!("{}:{}", self.path.display(), inside.path).into(),
            None => self.path.clone(),
        }
    }

    /// The open file that the bytes come from.
    pub(super) fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// The same copies with their places in [`BootFile::file`]. What the disk has no block for is zero, as the guest's
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
        self.inside.as_ref().map_or_else(|| self.file.length(), |inside| Ok(inside.size))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let Some(inside) = &self.inside else { return self.file.read_at(buf, offset) };
        let len = (buf.len() as u64).min(inside.size.saturating_sub(offset));
        let wanted = Load { file_offset: offset, guest: 0, len };
        buf.fill(0);
        for part in self.located(&[wanted]) {
            let end = part.guest.checked_add(part.len).ok_or(io::ErrorKind::InvalidInput)?;
            let (Ok(from), Ok(to)) = (usize::try_from(part.guest), usize::try_from(end)) else { continue };
            if let Some(place) = buf.get_mut(from..to) {
                std::os::unix::fs::FileExt::read_exact_at(&*self.file, place, part.file_offset)?;
            }
        }
        usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput.into())
    }
}

impl fmt::Display for BootFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.inside {
            Some(inside) => write!(f, "{} on {}", inside.path, self.path.display()),
            None => self.path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests;
