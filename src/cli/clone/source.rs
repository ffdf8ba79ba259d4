//! What a clone is made from.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::CloneArgs;
use super::error::CloneError;
use crate::cli::verbs::snapshot::{existing, folder_of};
use crate::cli::verbs::{MachineClient, VerbError};
use crate::spec::{MachineName, Spec};

/// Name of a clone's file in its folder.
pub(super) const MACHINE_FILE: &str = "vm.toml";

/// See the module.
#[derive(Debug)]
pub(super) enum Source {
    /// It runs.
    Running(MachineName, MachineClient),
    /// A folder of `minivmm save`, or a snapshot.
    Saved(PathBuf),
    /// Its file.
    Off(PathBuf),
}

impl Source {
    /// A running machine of this name comes before a folder or file of it.
    pub(super) fn find(args: &CloneArgs) -> Result<Self, CloneError> {
        let path = &args.machine;
        let name: Option<MachineName> = path.to_str().and_then(|text| text.parse().ok());
        if let Some(snapshot) = &args.snapshot {
            let machine = name.ok_or_else(|| CloneError::NoName(path.clone()))?;
            let folder = folder_of(&machine)?.join(snapshot.as_str());
            existing(&machine, &folder, snapshot.as_str())?;
            return Ok(Source::Saved(folder));
        }
        if let Some(name) = name {
            match MachineClient::find(&name) {
                Ok(client) => return Ok(Source::Running(name, client)),
                Err(VerbError::NoMachine(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Self::at(path)?.ok_or_else(|| CloneError::NoMachine(path.clone()))
    }

    fn at(path: &Path) -> Result<Option<Self>, CloneError> {
        // What cannot be looked at is not the same as what is not there.
        let find = |path: &Path| match path.metadata() {
            Ok(found) => Ok(Some(found)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(source) => Err(CloneError::Unreadable { path: path.into(), source }),
        };
        let is_file = |path: &Path| Ok::<_, CloneError>(find(path)?.is_some_and(|found| found.is_file()));
        match find(path)? {
            Some(found) if found.is_dir() => {
                let file = path.join(MACHINE_FILE);
                if is_file(&path.join("machine.json"))? {
                    return Ok(Some(Source::Saved(path.into())));
                }
                Ok(is_file(&file)?.then_some(Source::Off(file)))
            }
            found => Ok(found.map(|_| Source::Off(path.into()))),
        }
    }
}

/// What a running machine was started as.
pub(super) fn spec_of(name: &MachineName, client: &MachineClient) -> Result<Spec, CloneError> {
    let mut info = client.get("/v1/machine")?;
    serde_json::from_value(info.get_mut("spec").map(serde_json::Value::take).unwrap_or_default())
        .map_err(|_| CloneError::Description(name.clone()))
}
