//! What was done, for people and as JSON.

use std::fmt;
use std::path::{Path, PathBuf};

use diskimage::shell_word;
use serde::Serialize;

use super::source::MACHINE_FILE;
use crate::shown::path as shown;
use crate::spec::PortName;

/// See the module.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Report {
    name: String,
    /// Its process, if it runs.
    pub(super) pid: Option<u32>,
    folder: PathBuf,
    disks: Vec<ClonedDisk>,
    ports: Vec<ClonedPort>,
    /// What stays the original's, in sentences.
    left_out: Vec<String>,
    /// Milliseconds for which the original was paused.
    pub(super) paused_ms: Option<u64>,
}

/// A disk that the clone can write to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ClonedDisk {
    pub(super) id: String,
    pub(super) path: PathBuf,
    /// What it lies on, which must stay as it is.
    pub(super) base: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct ClonedPort {
    name: String,
    socket: PathBuf,
}

impl Report {
    pub(super) fn new(name: &str, folder: &Path) -> Self {
        Report { name: name.to_owned(), folder: folder.into(), ..Report::default() }
    }

    pub(super) fn left_out(&mut self, sentence: String) {
        self.left_out.push(sentence);
    }

    pub(super) fn port(&mut self, name: &PortName, socket: &Path) {
        self.ports.push(ClonedPort { name: name.to_string(), socket: socket.into() });
    }

    pub(super) fn disk(&mut self, disk: ClonedDisk) {
        self.disks.push(disk);
    }

    /// As it is printed.
    pub(super) fn text(&self, json: bool) -> Result<String, serde_json::Error> {
        if json { serde_json::to_string_pretty(self) } else { Ok(self.to_string()) }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { name, pid, folder, disks, ports, left_out, paused_ms } = self;
        let file = folder.join(MACHINE_FILE);
        let boots = format!("minivmm -d --config {}", shell_word(&file));
        match pid {
            Some(pid) => write!(f, "{name} runs, as process {pid}; `{boots}` boots it when it has ended")?,
            None => write!(f, "{name} is made, and off; `{boots}` boots it")?,
        }
        for ClonedDisk { id, path, base } in disks {
            write!(f, "\n{id}: {}", shown(path))?;
            match base {
                Some(base) => write!(f, ", on {}, which must stay as it is", shown(base))?,
                None => f.write_str(", a whole copy")?,
            }
        }
        for ClonedPort { name, socket } in ports {
            write!(f, "\nport {name}: {}", shown(socket))?;
        }
        left_out.iter().try_for_each(|sentence| write!(f, "\n{sentence}"))?;
        paused_ms.map_or(Ok(()), |paused| write!(f, "\nthe original was paused for {paused} ms"))
    }
}
