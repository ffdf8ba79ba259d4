//! The choice of a file system's boot loaders, with the files that they name.

use super::bootloader::grub::GrubError;
use super::bootloader::{DeviceAttribute, Entry, Files, SearchBy, bls, grub, syslinux};
use super::disk::ReadError;
use super::explore::{Explored, INITRD_MAX, ImageFile, KERNEL_MAX};
use super::filesystem::FileKind;
use super::kernel_folders::{Candidate, KernelFolder};
use super::printable::printable;
use super::runs::Run;
use super::volumes::{Rank, Volume};

/// Maximum entries of the Boot Loader Specification, and folders of boot loaders on an EFI system partition.
const ENTRIES: usize = 64;
const FOLDERS: usize = 32;
/// Maximum number of notes.
const NOTES: usize = 16;
/// Configuration files of syslinux and its variants.
const SYSLINUX: [(&str, &str); 5] = [
    ("/extlinux", "extlinux.conf"),
    ("", "extlinux.conf"),
    ("/syslinux", "syslinux.cfg"),
    ("/isolinux", "isolinux.cfg"),
    ("", "syslinux.cfg"),
];
/// The same at the top of a file system that is no root.
const SYSLINUX_BELOW: [(&str, &str); 7] = [
    ("/boot/extlinux", "extlinux.conf"),
    ("/boot/syslinux", "syslinux.cfg"),
    ("/boot/isolinux", "isolinux.cfg"),
    ("/boot", "extlinux.conf"),
    ("/boot", "syslinux.cfg"),
    ("/EFI/syslinux", "syslinux.cfg"),
    ("/EFI/BOOT", "syslinux.cfg"),
];

/// The boot loaders' files of a folder, and the file systems that they can name.
pub(super) struct Loader<'a> {
    kernel_folder: KernelFolder<'a>,
    volumes: &'a [Volume<'a>],
}

/// A boot loader's file, and its default entry or why there is none.
type Choice = (String, Result<Entry, String>);

impl Files for Loader<'_> {
    fn charge(&self, cost: u64) -> Result<(), ReadError> {
        self.kernel_folder.volume.fs.charge(cost)
    }

    fn device(&self) -> String {
        self.kernel_folder.volume.device()
    }

    fn text(&self, device: &str, path: &str) -> Result<Option<String>, ReadError> {
        self.on(device).text(path).or_else(ignore_damage)
    }

    fn has_device(&self, device: &str) -> bool {
        self.volumes.iter().any(|volume| volume.is_device(device))
    }

    fn size(&self, device: &str, path: &str) -> Result<Option<u64>, ReadError> {
        Ok(self.on(device).regular(path).or_else(ignore_damage)?.map(|file| file.size()))
    }

    fn is_folder(&self, device: &str, path: &str) -> Result<bool, ReadError> {
        let found = self.on(device).volume.fs.find(path).or_else(ignore_damage)?;
        Ok(found.is_some_and(|node| node.kind() == FileKind::Folder))
    }

    fn entries(&self, device: &str) -> Result<Vec<(String, String)>, ReadError> {
        let own = self.kernel_folder.volume.is_device(device);
        let kernel_folder = if own { self.kernel_folder } else { self.on(device) };
        let mut all = Vec::new();
        for folder in if own { vec![kernel_folder.folder] } else { vec!["", "/boot"] } {
            let kernel_folder = KernelFolder { folder, ..kernel_folder };
            for name in kernel_folder.names("/loader/entries", ENTRIES, is_conf)? {
                let text =
                    kernel_folder.text(&format!("{folder}/loader/entries/{name}")).or_else(ignore_damage)?;
                all.extend(text.map(|text| (name, text)));
            }
            if !all.is_empty() {
                break;
            }
        }
        Ok(all)
    }

    fn search(&self, by: SearchBy, value: &str) -> Result<Option<String>, ReadError> {
        for volume in self.volumes {
            let found = match by {
                SearchBy::Uuid => volume.fs.uuid().eq_ignore_ascii_case(value),
                SearchBy::Label => volume.fs.label() == value,
                SearchBy::File => {
                    KernelFolder { volume, folder: "" }.regular(value).or_else(ignore_damage)?.is_some()
                }
            };
            if found && !value.is_empty() {
                return Ok(Some(volume.device()));
            }
        }
        Ok(None)
    }

    fn attribute(&self, device: &str, attribute: DeviceAttribute) -> Option<String> {
        let volume = self.volumes.iter().find(|volume| volume.is_device(device))?;
        let value = match attribute {
            DeviceAttribute::Uuid => volume.fs.uuid(),
            DeviceAttribute::Label => volume.fs.label(),
            DeviceAttribute::PartUuid => volume.partuuid.as_deref().unwrap_or_default(),
        };
        Some(value.to_owned()).filter(|value| !value.is_empty())
    }
}

impl<'a> Loader<'a> {
    pub(super) fn new(kernel_folder: KernelFolder<'a>, volumes: &'a [Volume<'a>]) -> Self {
        Loader { kernel_folder, volumes }
    }

    /// The top of the file system on a GRUB device; the loader's own if the device cannot be read.
    fn on(&self, device: &str) -> KernelFolder<'a> {
        let volume = self.volumes.iter().find(|volume| volume.is_device(device));
        KernelFolder { volume: volume.unwrap_or(self.kernel_folder.volume), folder: "" }
    }

    /// Takes the entry that a boot loader here would start.
    pub(super) fn entry(&self, explored: &mut Explored) -> Result<(), ReadError> {
        for (file, entry) in self.choices(&mut explored.notes)? {
            let on = format!("{} on {}", printable(&file), self.kernel_folder.volume.name);
            let taken = match entry {
                Ok(entry) => self.take(&file, entry, explored)?,
                Err(why) => Err(format!("is not followed: {}", printable(&why))),
            };
            match taken {
                Ok(()) => return Ok(()),
                Err(why) => note(&mut explored.notes, format!("{on} {why}")),
            }
        }
        Ok(())
    }

    /// Takes the files of an entry. An entry with missing files is out of date; the error names the file.
    fn take(
        &self,
        file: &str,
        entry: Entry,
        explored: &mut Explored,
    ) -> Result<Result<(), String>, ReadError> {
        let missing = |path: &str| Err(format!("names {}, which is not there or empty", printable(path)));
        let Some(kernel) = self.resolve(&entry.kernel)?.filter(|kernel| kernel.size() > 0) else {
            return Ok(missing(&entry.kernel));
        };
        let mut initrds = Vec::new();
        for path in &entry.initrds {
            match self.resolve(path)? {
                // Linux accepts no empty initrd.
                Some(initrd) if initrd.size() == 0 => {
                    let on = &self.kernel_folder.volume.name;
                    let said = format!(
                        "{} on {on} names the empty initrd {}, which is left out",
                        printable(file),
                        printable(path)
                    );
                    note(&mut explored.notes, said);
                }
                Some(initrd) => initrds.push(initrd),
                None => return Ok(missing(path)),
            }
        }
        let (options, dropped) = without_empty_root(&entry.options);
        if let Some(word) = dropped {
            let on = &self.kernel_folder.volume.name;
            let said = format!(
                "{} on {on} has {word} without a value in its options, which is left out",
                printable(file)
            );
            note(&mut explored.notes, said);
        }
        explored.kernel = Some(kernel.locate(KERNEL_MAX)?);
        explored.initrd = join(&initrds)?;
        explored.entry = Some((format!("{} ({})", printable(file), printable(&entry.title)), Some(options)));
        Ok(Ok(()))
    }

    /// The default entries of the boot loaders whose files are here, with those files.
    fn choices(&self, notes: &mut Vec<String>) -> Result<Vec<Choice>, ReadError> {
        let KernelFolder { volume, folder } = self.kernel_folder;
        // The top of a file system that is no root: it may be all that a firmware's boot loader reads.
        let top = folder.is_empty() && volume.rank == Rank::No;
        let mut all = self.grub_choices(top, notes)?;
        all.extend(self.loader_entry(notes)?);
        if top {
            self.note_unified_kernels(notes)?;
        }
        let inside: &[_] = if top { &SYSLINUX_BELOW } else { &[] };
        for (inside, name) in SYSLINUX.iter().chain(inside) {
            let folder = format!("{folder}{inside}");
            let path = format!("{folder}/{name}");
            if let Some(text) = self.own_text(&path)? {
                all.extend(syslinux::choose(self, &folder, &text)?.map(|choice| (path, choice)));
            }
        }
        Ok(all)
    }

    fn grub_choices(&self, top: bool, notes: &mut Vec<String>) -> Result<Vec<Choice>, ReadError> {
        let volume = self.kernel_folder.volume;
        let mut all = Vec::new();
        for folder in self.grub_folders(top)? {
            let path = format!("{folder}/grub.cfg");
            let Some(text) = self.own_text(&path)? else { continue };
            let mut messages = Vec::new();
            match grub::choose(self, &folder, &text, &mut messages) {
                Ok(entry) => all.push((path.clone(), Ok(entry))),
                Err(GrubError::Read(error)) => return Err(error),
                Err(GrubError::Message(why)) => all.push((path.clone(), Err(why.into()))),
            }
            for message in messages {
                note(notes, format!("{} on {}: {}", printable(&path), volume.name, printable(&message)));
            }
        }
        Ok(all)
    }

    /// The entry of the Boot Loader Specification that would be started.
    fn loader_entry(&self, notes: &mut Vec<String>) -> Result<Option<Choice>, ReadError> {
        let KernelFolder { volume, folder } = self.kernel_folder;
        let entries = self.entries(&self.device())?;
        let (mut parsed, mut others) = (Vec::new(), Vec::new());
        for (name, text) in &entries {
            if let Some(entry) = bls::parse(name, text) {
                parsed.push(entry);
                continue;
            }
            others.push(name.as_str());
            if let Some(program) = bls::efi_program(text) {
                let line = format!(
                    "{folder}/loader/entries/{} on {} starts the EFI program {}, which is not read here",
                    printable(name),
                    volume.name,
                    printable(program)
                );
                note(notes, line);
            }
        }
        let mut messages = Vec::new();
        let found = bls::choose(parsed, &others, &self.loader_conf()?, &mut messages);
        Ok(found.map(|found| {
            for message in messages {
                let message = printable(&message);
                note(notes, format!("loader.conf for {folder}/loader on {}: {message}", volume.name));
            }
            (format!("{folder}/loader/entries/{}.conf", found.id), Ok(found.entry))
        }))
    }

    fn note_unified_kernels(&self, notes: &mut Vec<String>) -> Result<(), ReadError> {
        let is_program = |name: &str| name.to_ascii_lowercase().ends_with(".efi");
        let names = self.kernel_folder.names("/EFI/Linux", FOLDERS, is_program);
        for name in names.or_else(ignore_damage)? {
            let volume = &self.kernel_folder.volume.name;
            note(
                notes,
                format!(
                    "/EFI/Linux/{} on {volume} is a unified kernel image, which is not read here",
                    printable(&name)
                ),
            );
        }
        Ok(())
    }

    /// Folders with a grub.cfg.
    fn grub_folders(&self, top: bool) -> Result<Vec<String>, ReadError> {
        let folder = self.kernel_folder.folder;
        let mut folders: Vec<_> = ["/grub", "/grub2"].map(|name| format!("{folder}{name}")).into();
        if top {
            folders.extend(["/boot/grub", "/boot/grub2"].map(str::to_owned));
            let mut names = self.kernel_folder.names("/EFI", FOLDERS, |_| true).or_else(ignore_damage)?;
            // Distributions have folders of their own; the default folder is a copy of one.
            names.sort_by_key(|name| (name.eq_ignore_ascii_case("BOOT"), name.clone()));
            folders.extend(names.into_iter().map(|name| format!("/EFI/{name}")));
        }
        Ok(folders)
    }

    /// systemd-boot's settings: they are on the EFI system partition, while its entries may be on another.
    fn loader_conf(&self) -> Result<String, ReadError> {
        let own = self.own_text(&format!("{}/loader/loader.conf", self.kernel_folder.folder))?;
        if let Some(own) = own {
            return Ok(own);
        }
        for volume in self.volumes {
            let kernel_folder = KernelFolder { volume, folder: "" };
            if let Some(text) = kernel_folder.text("/loader/loader.conf").or_else(ignore_damage)? {
                return Ok(text);
            }
        }
        Ok(String::new())
    }

    fn own_text(&self, path: &str) -> Result<Option<String>, ReadError> {
        self.kernel_folder.text(path).or_else(ignore_damage)
    }

    /// Resolves a path of a boot loader, with or without a GRUB device: from the top of its file system, or
    /// relative to the loader's folder.
    fn resolve(&self, path: &str) -> Result<Option<Candidate<'a>>, ReadError> {
        let (device, path) = match path.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            Some((device, path)) => (Some(device), path),
            None => (None, path),
        };
        let there = device.map(|device| self.on(device).regular(path)).transpose()?.flatten();
        if there.is_some() {
            return Ok(there);
        }
        let own = self.kernel_folder.regular(path)?;
        if own.is_some() {
            return Ok(own);
        }
        let inside = self.kernel_folder.regular(&format!(
            "{}/{}",
            self.kernel_folder.folder,
            path.trim_start_matches('/')
        ))?;
        if inside.is_some() {
            return Ok(inside);
        }
        for volume in self.volumes {
            if let Some(found) = (KernelFolder { volume, folder: "" }).regular(path)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

fn is_conf(name: &str) -> bool {
    name.len() > 5 && name.get(name.len() - 5..).is_some_and(|end| end.eq_ignore_ascii_case(".conf"))
}

/// Options without a `root=` whose value is empty, as an unset variable leaves it, and that word.
fn without_empty_root(options: &str) -> (String, Option<&str>) {
    const NOTHING: [&str; 10] = [
        "root=",
        "root=UUID=",
        "root=LABEL=",
        "root=PARTUUID=",
        "root=PARTLABEL=",
        "root=/dev/disk/by-uuid/",
        "root=/dev/disk/by-label/",
        "root=/dev/disk/by-partuuid/",
        "root=/dev/disk/by-partlabel/",
        "root=/dev/",
    ];
    let is_empty = |word: &&str| NOTHING.contains(&word.replace('"', "").as_str());
    match options.split(' ').find(is_empty) {
        None => (options.to_owned(), None),
        Some(word) => {
            let kept: Vec<_> = options.split(' ').filter(|word| !is_empty(word)).collect();
            (kept.join(" "), Some(word))
        }
    }
}

/// Adds a note, once, up to the maximum.
fn note(notes: &mut Vec<String>, line: String) {
    if notes.len() < NOTES && !notes.contains(&line) {
        notes.push(line);
    } else if notes.len() == NOTES {
        notes.push("and more like that, which is not listed".to_owned());
    }
}

/// A damaged file does not hide the others.
fn ignore_damage<T: Default>(error: ReadError) -> Result<T, ReadError> {
    match error {
        ReadError::Io(_) | ReadError::Endless => Err(error),
        _ => Ok(T::default()),
    }
}

/// Concatenates initrds, each aligned to four bytes, as Linux unpacks them. If the total is too long, there
/// are no runs.
fn join(files: &[Candidate<'_>]) -> Result<Option<ImageFile>, ReadError> {
    let fits = files.iter().try_fold(0_u64, |size, next| {
        size.next_multiple_of(4).checked_add(next.size()).filter(|size| *size <= INITRD_MAX)
    });
    let max = if fits.is_some() { INITRD_MAX } else { 0 };
    let Some((first, others)) = files.split_first() else { return Ok(None) };
    let mut all = first.locate(max)?;
    for next in others {
        let file = next.locate(max)?;
        let start = all.size.checked_next_multiple_of(4).unwrap_or(u64::MAX);
        all.runs.extend(file.runs.iter().map(|run| Run { file: run.file.saturating_add(start), ..*run }));
        all.size = start.saturating_add(file.size);
        all.path.push_str(" + ");
        all.path.push_str(&file.path);
    }
    Ok(Some(all))
}

#[cfg(test)]
mod tests {
    use super::without_empty_root;

    #[test]
    fn root_that_names_nothing_is_left_out() {
        for word in ["root=", "root=UUID=", "root=\"\"", "root=PARTUUID=\"\"", "root=/dev/disk/by-label/"] {
            let options = format!("a root=/dev/vda1 {word} b=\"c  d\"");
            let kept = "a root=/dev/vda1 b=\"c  d\"".to_owned();
            assert_eq!(without_empty_root(&options), (kept, Some(word)));
        }
        for options in ["", "ro", "root=UUID=1", "rootflags= x=root="] {
            assert_eq!(without_empty_root(options), (options.to_owned(), None));
        }
    }
}
