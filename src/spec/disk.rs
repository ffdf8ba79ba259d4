//! The description of a disk.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use diskimage::Format;
use serde::{Deserialize, Serialize};

use super::disk_limits::{DiskBps, DiskIops};
use super::disk_options::{DiskDiscard, OnFull};
use super::text::{Device, by_text};
use super::words::{DeviceError, Word, once, split};

const DISK: &str = "disk";

/// A disk: an image, raw or qcow2, or a block device.
///
/// As text it is its path and options behind commas, such as `base.raw,overlay=vm0.qcow2`; a comma in a path is written twice.
///
/// ```
/// use minivmm::spec::DiskSpec;
///
/// let disk: DiskSpec = "vm0.raw,ro,serial=s1".parse()?;
/// assert!(disk.read_only && disk.path.ends_with("vm0.raw"));
/// # Ok::<(), minivmm::spec::DeviceError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct DiskSpec {
    /// The image or block device.
    pub path: PathBuf,
    /// The guest cannot write (`ro`).
    #[serde(default, rename = "ro", skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// The disk's serial number; the guest has it in /dev/disk/by-id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<DiskSerial>,
    /// Bypasses the host's page cache (O_DIRECT).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub direct: bool,
    /// Number of queues; by default the number of processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<DiskQueues>,
    /// Number of host threads that serve the queues, each an equal share of them; one if not said, and at most one a queue.
    /// More threads help where one is at its limit: many processors and a fast disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<DiskQueues>,
    /// Format of the image at the path. If not said, it is the one of the path's ending: qcow2 for `.qcow2`, else raw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// A qcow2 image that takes what the guest writes; it is made if it is missing. The image at the path is its base, is only
    /// read, and may be the base of other machines too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<PathBuf>,
    /// What the guest writes goes to a temporary file, and is gone when the machine ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub snapshot: bool,
    /// Files that may be opened as backing files, beside those in the folder of the image that names them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backing: Vec<PathBuf>,
    /// Most operations in a second: reads, writes, flushes, discards and zeroing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<DiskIops>,
    /// Most bytes that are read and written in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bps: Option<DiskBps>,
    /// Whether the guest can give space back to the host; by default not from an image whose space is all allocated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discard: Option<DiskDiscard>,
    /// What happens when the host has no room for what the guest writes; by default it gets an I/O error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_full: Option<OnFull>,
}

impl DiskSpec {
    /// A disk on this file, to be read and written.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        DiskSpec {
            path: path.into(),
            read_only: false,
            serial: None,
            direct: false,
            queues: None,
            threads: None,
            format: None,
            overlay: None,
            snapshot: false,
            backing: Vec::new(),
            iops: None,
            bps: None,
            discard: None,
            on_full: None,
        }
    }

    /// Makes it read-only.
    #[must_use]
    pub fn read_only(self) -> Self {
        DiskSpec { read_only: true, ..self }
    }

    /// Sets the serial number.
    #[must_use]
    pub fn with_serial(self, serial: DiskSerial) -> Self {
        DiskSpec { serial: Some(serial), ..self }
    }

    /// Bypasses the host's page cache.
    #[must_use]
    pub fn direct(self) -> Self {
        DiskSpec { direct: true, ..self }
    }

    /// Sets the number of queues.
    #[must_use]
    pub fn with_queues(self, queues: DiskQueues) -> Self {
        DiskSpec { queues: Some(queues), ..self }
    }

    /// With `threads` host threads that serve the queues.
    #[must_use]
    pub fn with_threads(self, threads: DiskQueues) -> Self {
        DiskSpec { threads: Some(threads), ..self }
    }

    /// Sets whether the guest can give space back to the host.
    #[must_use]
    pub fn with_discard(self, discard: DiskDiscard) -> Self {
        DiskSpec { discard: Some(discard), ..self }
    }

    /// Sets what happens when the host has no room.
    #[must_use]
    pub fn with_on_full(self, on_full: OnFull) -> Self {
        DiskSpec { on_full: Some(on_full), ..self }
    }

    /// In this format, whatever the path's ending is.
    #[must_use]
    pub fn with_format(self, format: Format) -> Self {
        DiskSpec { format: Some(format), ..self }
    }

    /// Keeps what the guest writes in the qcow2 image `overlay`, which is made if it is missing.
    #[must_use]
    pub fn with_overlay(self, overlay: impl Into<PathBuf>) -> Self {
        DiskSpec { overlay: Some(overlay.into()), ..self }
    }

    /// Drops what the guest has written when the machine ends.
    #[must_use]
    pub fn snapshot(self) -> Self {
        DiskSpec { snapshot: true, ..self }
    }

    /// Lets `file` be opened as a backing file.
    #[must_use]
    pub fn with_backing(mut self, file: impl Into<PathBuf>) -> Self {
        self.backing.push(file.into());
        self
    }

    /// The format of the image at the path: the one that was said, else that of the path's ending.
    pub fn format(&self) -> Format {
        self.format.unwrap_or_else(|| Format::of(&self.path))
    }

    /// The image that the guest's disk is: the overlay, if there is one.
    pub fn image(&self) -> &Path {
        self.overlay.as_ref().unwrap_or(&self.path)
    }

    /// Whether it can be taken out while the machine runs: nothing of it is ever written.
    pub(crate) fn is_removable(&self) -> bool {
        self.read_only && self.overlay.is_none() && !self.snapshot
    }

    /// The paths in it.
    pub(super) fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        std::iter::once(&mut self.path).chain(&mut self.overlay).chain(&mut self.backing)
    }

    /// The image that the guest's writes change, if there is one that outlives the machine.
    pub(super) fn written(&self) -> Option<&Path> {
        (!self.read_only && !self.snapshot).then(|| self.image())
    }

    /// The images that are only read.
    pub(super) fn only_read(&self) -> impl Iterator<Item = &Path> {
        let base = self.overlay.is_some().then_some(&self.path);
        let image = self.written().is_none().then(|| self.image());
        base.into_iter().chain(&self.backing).map(PathBuf::as_path).chain(image)
    }

    /// With at most `iops` operations in a second.
    #[must_use]
    pub fn with_iops(self, iops: DiskIops) -> Self {
        DiskSpec { iops: Some(iops), ..self }
    }

    /// With at most `bps` bytes in a second.
    #[must_use]
    pub fn with_bps(self, bps: DiskBps) -> Self {
        DiskSpec { bps: Some(bps), ..self }
    }

    /// Parses the text of the command line. The path need not be UTF-8.
    ///
    /// # Errors
    /// [`DeviceError`] for an unknown or wrong option.
    pub fn parse(text: &OsStr) -> Result<Self, DeviceError> {
        let mut words = split(text).into_iter();
        let path = words.next().filter(|path| !path.is_empty());
        let mut disk = DiskSpec::new(path.ok_or(DeviceError::Empty("where the disk's path should be"))?);
        for word in words {
            disk.set(&word)?;
        }
        Ok(disk)
    }

    fn set(&mut self, word: &OsString) -> Result<(), DeviceError> {
        let word = Word::parse(word);
        let flag = |place: &mut bool, word| match std::mem::replace(place, true) {
            false => Ok(()),
            true => Err(DeviceError::Twice { device: DISK, word }),
        };
        match (word.name.as_str(), &word.value) {
            ("ro", None) => flag(&mut self.read_only, "ro"),
            ("direct", None) => flag(&mut self.direct, "direct"),
            ("serial", Some(_)) => once(&mut self.serial, word.text().parse()?, DISK, "serial"),
            ("queues", Some(_)) => once(&mut self.queues, word.text().parse()?, DISK, "queues"),
            ("threads", Some(_)) => once(&mut self.threads, word.text().parse()?, DISK, "threads"),
            ("format", Some(_)) => once(&mut self.format, word.text().parse()?, DISK, "format"),
            ("overlay", Some(_)) => once(&mut self.overlay, path(&word, "overlay")?, DISK, "overlay"),
            ("snapshot", None) => flag(&mut self.snapshot, "snapshot"),
            ("backing", Some(_)) => {
                self.backing.push(path(&word, "backing")?);
                Ok(())
            }
            ("iops", Some(_)) => once(&mut self.iops, word.text().parse()?, DISK, "iops"),
            ("bps", Some(_)) => once(&mut self.bps, word.text().parse()?, DISK, "bps"),
            ("discard", Some(_)) => once(&mut self.discard, word.text().parse()?, DISK, "discard"),
            ("on-full", Some(_)) => once(&mut self.on_full, word.text().parse()?, DISK, "on-full"),
            ("", None) => Err(DeviceError::Empty("behind a comma")),
            _ => Err(DeviceError::Unknown {
                device: DISK,
                word: word.written(),
                known: "`ro`, `serial=TEXT`, `direct`, `queues=N`, `threads=N`, `iops=N`, `bps=SIZE`, `format=raw|qcow2`, \
                        `overlay=FILE`, `snapshot`, `backing=FILE`, `discard=on|off|auto` and `on-full=report|pause`",
            }),
        }
    }
}

/// The value of an option that is a path.
fn path(word: &Word, name: &'static str) -> Result<PathBuf, DeviceError> {
    let path = word.value.as_ref().filter(|path| !path.is_empty());
    path.map(PathBuf::from).ok_or(DeviceError::EmptyPath(name))
}

impl Device for DiskSpec {
    const EXAMPLE: &'static str = "vm0.raw,ro";
}

impl FromStr for DiskSpec {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        Self::parse(text.as_ref())
    }
}

/// Serial number of a disk: 1 to 20 printable ASCII characters (virtio 1.3 §5.2.6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSerial(String);

impl DiskSerial {
    /// `VIRTIO_BLK_ID_BYTES`.
    pub const MAX: usize = 20;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DiskSerial {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let fits = (1..=Self::MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if fits { Ok(DiskSerial(text.into())) } else { Err(DeviceError::Serial(text.into())) }
    }
}

impl fmt::Display for DiskSerial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

by_text!(DiskSerial);

/// Number of queues of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct DiskQueues(u16);

impl DiskQueues {
    /// The maximum: each queue has an interrupt vector.
    pub const MAX: u16 = 64;

    /// Returns `None` for 0 and for more than [`DiskQueues::MAX`].
    pub fn new(count: u16) -> Option<Self> {
        (1..=Self::MAX).contains(&count).then_some(DiskQueues(count))
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for DiskQueues {
    type Error = DeviceError;

    fn try_from(count: u16) -> Result<Self, DeviceError> {
        Self::new(count).ok_or_else(|| DeviceError::Queues(count.to_string()))
    }
}

impl From<DiskQueues> for u16 {
    fn from(queues: DiskQueues) -> u16 {
        queues.0
    }
}

impl FromStr for DiskQueues {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        text.parse().ok().and_then(Self::new).ok_or_else(|| DeviceError::Queues(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    fn mistake(text: &str) -> String {
        text.parse::<DiskSpec>().unwrap_err().to_string()
    }

    #[test]
    fn every_option_of_a_disk_is_read() {
        let disk: DiskSpec =
            "/d/vm0.raw,ro,serial=lab-1,direct,queues=4,threads=2,iops=500,bps=10M".parse().unwrap();
        let expected = DiskSpec::new("/d/vm0.raw")
            .read_only()
            .with_serial("lab-1".parse().unwrap())
            .direct()
            .with_queues(DiskQueues::new(4).unwrap())
            .with_threads(DiskQueues::new(2).unwrap())
            .with_iops(DiskIops::new(500).unwrap())
            .with_bps(DiskBps::new(10 << 20).unwrap());
        assert_eq!(disk, expected);
        assert_eq!("vm0.raw".parse(), Ok(DiskSpec::new("vm0.raw")));
    }

    #[test]
    fn space_of_the_host_is_an_option() {
        let disk: DiskSpec = "vm0.raw,discard=off,on-full=pause".parse().unwrap();
        let expected = DiskSpec::new("vm0.raw").with_discard(DiskDiscard::Off).with_on_full(OnFull::Pause);
        assert_eq!(disk, expected);
        let table: DiskSpec = toml::from_str("path = 'vm0.raw'\ndiscard = 'off'\non-full = 'pause'").unwrap();
        assert_eq!(table, expected);
        assert!(mistake("d,discard=yes").contains("`on`, `off` or `auto`"));
        assert!(mistake("d,on-full=stop").contains("`on-full=pause`"));
        assert!(mistake("d,on-full=pause,on-full=pause").contains("stands twice"));
    }

    #[test]
    fn images_formats_and_overlays_are_read() {
        let disk: DiskSpec =
            "base.raw,overlay=a,,1.qcow2,format=raw,snapshot,backing=/b/x,backing=y".parse().unwrap();
        let expected = DiskSpec::new("base.raw")
            .with_overlay("a,1.qcow2")
            .with_format(Format::Raw)
            .snapshot()
            .with_backing("/b/x")
            .with_backing("y");
        assert_eq!(disk, expected);
        assert_eq!(disk.image(), Path::new("a,1.qcow2"));
        let format = |text: &str| text.parse::<DiskSpec>().unwrap().format();
        assert_eq!((format("a.QCOW2"), format("a.img")), (Format::Qcow2, Format::Raw));
        assert_eq!((format("a.qcow2,format=raw"), format("a,format=qcow2")), (Format::Raw, Format::Qcow2));
    }

    #[test]
    fn path_may_hold_commas_equals_signs_and_any_bytes() {
        let disk: DiskSpec = "a,,b=c,ro".parse().unwrap();
        assert_eq!((disk.path.as_path(), disk.read_only), (Path::new("a,b=c"), true));
        let odd = OsStr::from_bytes(b"\xff,ro");
        assert_eq!(DiskSpec::parse(odd).unwrap(), DiskSpec::new(OsStr::from_bytes(b"\xff")).read_only());
    }

    #[test]
    fn mistakes_are_told_with_what_could_be_said() {
        assert!(mistake("").contains("disk's path"));
        assert!(mistake(",ro").contains("disk's path"));
        assert!(mistake("d,").contains("behind a comma"));
        for wrong in ["d,rw", "d,ro=1", "d,serial", "d,size=5"] {
            let said = mistake(wrong);
            assert!(said.contains(&wrong[2..]) && said.contains("`queues=N`"), "{said}");
        }
        assert!(mistake("d,ro,ro").contains("stands twice"));
        assert!(mistake("d,overlay=a,overlay=b").contains("stands twice"));
        assert!(mistake("d,overlay=").contains("the path of `overlay` is empty"));
        assert!(mistake("d,backing=").contains("the path of `backing` is empty"));
        assert!(mistake("d,format=vmdk").contains("`raw` or `qcow2`"));
        assert!(mistake("d,snapshot=on").contains("`snapshot=on`"));
        assert!(mistake("d,serial=a,serial=b").contains("stands twice"));
        assert!(mistake("d,serial=123456789012345678901").contains("1 to 20"));
        assert!(mistake("d,serial=ö").contains("ASCII"));
        for queues in ["0", "65", "70000", "x", ""] {
            assert!(mistake(&format!("d,queues={queues}")).contains("from 1 to 64"));
        }
        assert!(mistake("d,iops=0").contains("operations a second"));
        assert!(mistake("d,bps=fast").contains("bytes a second"));
        assert!(mistake("d,bps=1M,bps=2M").contains("stands twice"));
    }
}
