//! The folders of warm machines. Each is there as a whole or not at all, and is never written to: a machine that is made anew has another
//! folder, which takes the name. So a run needs no lock: it goes on from the folder that it has opened, whatever becomes of the name.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{FileMark, WarmError, WarmName};
use crate::cli::state_folder::{remove_hidden, state_folder};
use crate::host::lock::user;
use crate::host::open_now::open_now;
use crate::machine::files::Restore;
use crate::machine::{Controls, SaveError};
use crate::saved::{NewSavedMachine, SavedMachine, SavedMachineError};
use crate::shown::path as shown;
use crate::spec::Spec;

/// The file beside those of a saved machine.
const NOTE: &str = "warm.json";
/// Most bytes of it: it lists some modules of the kernel.
const MOST_NOTE: u64 = 1 << 20;
const FORMAT: u32 = 1;
/// How long the machine may take to rest.
const PAUSE_LIMIT: Duration = Duration::from_secs(30);

/// What the machine was made from.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    format: u32,
    key: String,
    /// Files that were found on the way, whose paths are not known before.
    files: BTreeMap<PathBuf, Option<FileMark>>,
}

/// The place of a warm machine, and what it depends on.
#[derive(Debug, Clone)]
pub(in crate::cli) struct WarmMachine {
    name: WarmName,
    /// That of all of them.
    store: PathBuf,
    key: String,
}

impl WarmMachine {
    pub(in crate::cli) fn new(name: &WarmName, key: String) -> Result<Self, WarmError> {
        Ok(WarmMachine { name: name.clone(), store: store()?, key })
    }

    fn folder(&self) -> PathBuf {
        self.store.join(self.name.as_str())
    }

    /// The machine, if there is one; an error says why what is there is of no use.
    pub(in crate::cli) fn find(&self) -> Result<Option<Restore>, String> {
        let folder = self.folder();
        let identity = |folder: &Path| {
            fs::symlink_metadata(folder).map(|found| (found.dev(), found.ino(), found.uid(), found.is_dir()))
        };
        let before = match identity(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            found => found.map_err(|error| error.to_string())?,
        };
        if !matches!(before, (_, _, owner, true) if owner == user()) {
            return Err(format!("{} is no folder of this user", shown(&folder)));
        }
        let note = read_note(&folder).map_err(|error| format!("its {NOTE} cannot be read: {error}"))?;
        let note: Note =
            serde_json::from_slice(&note).map_err(|error| format!("its {NOTE} is damaged: {error}"))?;
        if note.format != FORMAT || note.key != self.key {
            return Err("the kernel, the guest's files, an option or this program has changed".into());
        }
        if let Some((path, _)) = note.files.iter().find(|(path, mark)| FileMark::at(path) != **mark) {
            return Err(format!("{} has changed", shown(path)));
        }
        let saved = SavedMachine::open(&folder).map_err(|error| error.to_string())?;
        if !saved.takes_commands() {
            return Err("its guest waits for no command".into());
        }
        // Not the note of one and the memory of another one.
        match identity(&folder) {
            Ok(after) if after == before => Ok(Some(saved.into_restore())),
            _ => Err("it was replaced just now".into()),
        }
    }

    /// Removes what is there.
    pub(in crate::cli) fn remove(&self) -> io::Result<bool> {
        remove_hidden(&self.store, self.name.as_str())
    }

    /// Saves a machine whose guest waits for a command, and lets it go on. `files` are what was found on the way.
    pub(in crate::cli) fn save(
        &self,
        controls: &Controls,
        spec: Spec,
        files: BTreeMap<PathBuf, Option<FileMark>>,
    ) -> Result<(), SaveError> {
        let folder = self.folder();
        let unwritable = |source| SavedMachineError::Unwritable { folder: folder.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&self.store).map_err(unwritable)?;
        let note = Note { format: FORMAT, key: self.key.clone(), files };
        let note = serde_json::to_vec_pretty(&note).map_err(|error| unwritable(error.into()))?;
        self.remove().map_err(unwritable)?;
        let mut new = NewSavedMachine::create(&folder)?;
        new.takes_commands(NOTE, &note).map_err(unwritable)?;
        controls.save_waiting(new, spec, PAUSE_LIMIT)
    }
}

fn read_note(folder: &Path) -> io::Result<Vec<u8>> {
    let file = open_now(&folder.join(NOTE), File::options().read(true), libc::O_NOFOLLOW)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MOST_NOTE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn store() -> Result<PathBuf, WarmError> {
    Ok(state_folder().ok_or(WarmError::NoPlace)?.join("warm"))
}

/// The names and folders of all warm machines, sorted.
pub(super) fn names() -> Result<Vec<(String, PathBuf)>, WarmError> {
    let store = store()?;
    let entries = match store.read_dir() {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(WarmError::Folder { folder: store, source }),
    };
    let mut names: Vec<_> = entries
        .flatten()
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .filter(|(name, _)| name.parse::<WarmName>().is_ok())
        .collect();
    names.sort_unstable();
    Ok(names)
}

/// Removes one.
pub(super) fn remove(name: &WarmName) -> Result<(), WarmError> {
    let store = store()?;
    match remove_hidden(&store, name.as_str()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(WarmError::None(name.clone())),
        Err(source) => Err(WarmError::Folder { folder: store, source }),
    }
}
