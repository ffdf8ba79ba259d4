//! Which QEMU emulates the machine: this host's, or a newer one of its release's backports.

use crate::host::{run, say, tool};
use crate::packages::{self, Release};
use crate::{LabError, cache};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The first version whose nested paging does not lose events of guests.
const SOUND: u32 = 10;
/// Where a newer QEMU is for the release whose own is older.
pub(crate) const BACKPORTS: (&str, &str) = ("bookworm", "bookworm-backports");
/// What is unpacked of it. Its firmware and libraries are those of the host's own QEMU.
const PACKAGES: [&str; 3] = ["qemu-system-x86", "qemu-system-common", "qemu-system-data"];
/// Where the host's firmware is.
const FIRMWARE: [&str; 2] = ["/usr/share/seabios", "/usr/lib/ipxe/qemu"];
/// A release without backports is asked again after so long.
const ASK_AGAIN: Duration = Duration::from_secs(24 * 3600);

/// A QEMU to run.
#[derive(Debug)]
pub(crate) struct Qemu {
    program: PathBuf,
    data: Option<PathBuf>,
    /// What its `--version` says.
    pub(crate) version: String,
    /// Whether guests may use nested paging; a guest then boots in two thirds of the time.
    pub(crate) nested_paging: bool,
}

impl Qemu {
    /// The host's if it is new enough; otherwise one of the backports, fetched once; otherwise the host's all the same.
    /// `MINIVMM_QEMU=host` leaves the backports out.
    pub(crate) fn find() -> Result<Self, LabError> {
        let program = tool("qemu-system-x86_64")?;
        let (number, version) = version(&program)?;
        let nested_paging = number >= SOUND;
        let host = Self { program, data: None, version, nested_paging };
        if nested_paging || std::env::var("MINIVMM_QEMU").is_ok_and(|which| which == "host") {
            return Ok(host);
        }
        Ok(Self::of_backports()?.unwrap_or(host))
    }

    fn of_backports() -> Result<Option<Self>, LabError> {
        let (codename, suite) = BACKPORTS;
        if !is_release(codename) {
            return Ok(None);
        }
        let refused = cache::cache_dir()?.join("no-qemu-backports");
        let age = refused.metadata().and_then(|m| m.modified()).ok().and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age < ASK_AGAIN) {
            return Ok(None);
        }
        match Self::fetched(suite) {
            Ok(qemu) => Ok(Some(qemu)),
            Err(error) => {
                say(&format!("no QEMU of {suite}, so guests run more slowly here: {error}"));
                cache::write(&refused, error.to_string().as_bytes())?;
                Ok(None)
            }
        }
    }

    fn fetched(suite: &'static str) -> Result<Self, LabError> {
        let place = packages::unpacked_together(Release::Named(suite), &format!("qemu-{suite}"), &PACKAGES)?;
        let program = place.join("usr/bin/qemu-system-x86_64");
        let (number, version) = version(&program)?;
        if number < SOUND {
            return Err(LabError::format(&program, format!("its version is {number}, older than {SOUND}")));
        }
        Ok(Self { program, data: Some(place.join("usr/share/qemu")), version, nested_paging: true })
    }

    /// Its command line begins so; `wrapper` stands in front of it.
    pub(crate) fn command(&self, wrapper: &[&Path]) -> Command {
        let mut words = wrapper.iter().copied().chain([self.program.as_path()]);
        let mut command = Command::new(words.next().unwrap_or(&self.program));
        command.args(words);
        if let Some(data) = &self.data {
            for folder in std::iter::once(data.as_path()).chain(FIRMWARE.iter().map(Path::new)) {
                command.arg("-L").arg(folder);
            }
        }
        command
    }
}

/// Whether this host is Debian's release of this name.
pub(crate) fn is_release(codename: &str) -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    release.lines().any(|line| line == format!("VERSION_CODENAME={codename}"))
}

/// Its major version, and all that it says of it.
pub(crate) fn version(qemu: &Path) -> Result<(u32, String), LabError> {
    let text = run(Command::new(qemu).arg("--version"))?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let number = text.split("version ").nth(1).and_then(|v| v.split('.').next()).and_then(|v| v.parse().ok());
    let number =
        number.ok_or_else(|| LabError::format(qemu, format!("its --version says no number: {text:?}")))?;
    Ok((number, text))
}
