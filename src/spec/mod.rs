//! What a machine is made of: one struct that the command line, a TOML file and the library share.
//!
//! A new option is a field here. Its doc comment is its help text, its name is its flag and its key in the file.

mod file;
mod size;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use file::SpecError;
pub use size::{Cpus, MemSize, SizeError};

/// The kernel command line of a machine that does not say: the first serial port is the console, and a panic resets
/// at once, so that it can be seen from outside. The last word spares the kernel 76 port accesses that look for PCI
/// devices before PCI is there, in a way (CF8/CFC) that this machine does not have.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 panic=-1 pci=noearly";

/// What a machine is made of.
///
/// What is `None` was not said; the methods of the same names give the default then.
///
/// ```
/// use minivmm::spec::Spec;
///
/// let spec = Spec::new("vmlinuz").with_initrd("initrd.img").with_mem("1G".parse()?).with_append("quiet");
/// assert_eq!(spec.mem().mib(), 1024);
/// assert_eq!(spec.cpus().get(), 1);
/// assert_eq!(spec.cmdline(), "console=ttyS0 panic=-1 pci=noearly quiet");
/// # Ok::<(), minivmm::spec::SizeError>(())
/// ```
// The first paragraph of a field's comment is its line in `--help`; the rest is for the manual.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Spec {
    /// Linux kernel: bzImage (vmlinuz) or ELF (vmlinux)
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,

    /// Initial RAM disk; `none` to boot without
    ///
    /// A distribution's kernel has its disk and network drivers as modules and needs the initrd made for it.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<Initrd>,

    /// Kernel command line, in place of the default one
    ///
    /// The default is `console=ttyS0 panic=-1 pci=noearly`.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,

    /// Words to add to the kernel command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub append: Option<String>,

    /// Memory: 512 (MiB), 512M, 2G [default: 512]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem: Option<MemSize>,

    /// Number of processors [default: 1]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,

    /// Clock chip: none, utc or localtime [default: none]
    ///
    /// Linux needs none: kvm-clock gives it the right time from its first second on. The chip is for guests that
    /// know no KVM; `localtime` is for those which take it to show local time.
    #[arg(long, value_name = "CLOCK", hide_possible_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtc: Option<Rtc>,

    /// If the guest reboots: reboot, exit [default: reboot]
    #[arg(long, value_name = "WHAT", hide_possible_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_reboot: Option<OnReboot>,
}

/// The initial RAM disk that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PathBuf", into = "PathBuf")]
pub enum Initrd {
    /// The word `none`: boot without, whatever the kernel seems to need. (A file of that name is `./none`.)
    None,
    /// A file.
    File(PathBuf),
}

/// The clock chip that the guest finds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Rtc {
    /// No chip. Linux takes the time from kvm-clock.
    #[default]
    None,
    /// A chip that shows UTC, as Linux expects.
    Utc,
    /// A chip that shows the host's local time.
    Localtime,
}

/// What happens when the guest reboots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum OnReboot {
    /// The machine boots again.
    #[default]
    Reboot,
    /// The machine ends.
    Exit,
}

impl Spec {
    /// A machine that boots this kernel, everything else by default.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Spec { kernel: Some(kernel.into()), ..Spec::default() }
    }

    /// The kernel to boot.
    ///
    /// # Errors
    /// [`SpecError::NoKernel`] if none was named.
    pub fn kernel(&self) -> Result<&Path, SpecError> {
        self.kernel.as_deref().ok_or(SpecError::NoKernel)
    }

    /// The initial RAM disk to load, if any.
    pub fn initrd(&self) -> Option<&Path> {
        match &self.initrd {
            Some(Initrd::File(path)) => Some(path),
            Some(Initrd::None) | None => None,
        }
    }

    /// The whole kernel command line: [`DEFAULT_CMDLINE`] or what replaces it, then what is added.
    pub fn cmdline(&self) -> String {
        let base = self.cmdline.as_deref().unwrap_or(DEFAULT_CMDLINE).trim();
        let append = self.append.as_deref().unwrap_or_default().trim();
        let space = if base.is_empty() || append.is_empty() { "" } else { " " };
        format!("{base}{space}{append}")
    }

    /// Memory.
    pub fn mem(&self) -> MemSize {
        self.mem.unwrap_or_default()
    }

    /// Number of processors.
    pub fn cpus(&self) -> Cpus {
        self.cpus.unwrap_or_default()
    }

    /// The clock chip.
    pub fn rtc(&self) -> Rtc {
        self.rtc.unwrap_or_default()
    }

    /// What happens when the guest reboots.
    pub fn on_reboot(&self) -> OnReboot {
        self.on_reboot.unwrap_or_default()
    }

    /// With this initial RAM disk.
    #[must_use]
    pub fn with_initrd(self, initrd: impl Into<Initrd>) -> Self {
        Spec { initrd: Some(initrd.into()), ..self }
    }

    /// With this kernel command line in place of [`DEFAULT_CMDLINE`].
    #[must_use]
    pub fn with_cmdline(self, cmdline: impl Into<String>) -> Self {
        Spec { cmdline: Some(cmdline.into()), ..self }
    }

    /// With these words added to the kernel command line.
    #[must_use]
    pub fn with_append(self, words: impl Into<String>) -> Self {
        Spec { append: Some(words.into()), ..self }
    }

    /// With this much memory.
    #[must_use]
    pub fn with_mem(self, mem: MemSize) -> Self {
        Spec { mem: Some(mem), ..self }
    }

    /// With this many processors.
    #[must_use]
    pub fn with_cpus(self, cpus: Cpus) -> Self {
        Spec { cpus: Some(cpus), ..self }
    }

    /// With this clock chip.
    #[must_use]
    pub fn with_rtc(self, rtc: Rtc) -> Self {
        Spec { rtc: Some(rtc), ..self }
    }

    /// With this done when the guest reboots.
    #[must_use]
    pub fn with_on_reboot(self, what: OnReboot) -> Self {
        Spec { on_reboot: Some(what), ..self }
    }

    /// The paths in it, which a file counts from its own folder. Names every field: the compiler asks about a new one.
    fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let Spec { kernel, initrd, cmdline: _, append: _, mem: _, cpus: _, rtc: _, on_reboot: _ } = self;
        let initrd = match initrd {
            Some(Initrd::File(path)) => Some(path),
            Some(Initrd::None) | None => None,
        };
        kernel.iter_mut().chain(initrd)
    }
}

impl From<PathBuf> for Initrd {
    fn from(path: PathBuf) -> Self {
        if path.as_os_str() == "none" { Initrd::None } else { Initrd::File(path) }
    }
}

/// As the command line gives it: a path need not be UTF-8.
impl From<OsString> for Initrd {
    fn from(path: OsString) -> Self {
        PathBuf::from(path).into()
    }
}

impl From<&str> for Initrd {
    fn from(path: &str) -> Self {
        PathBuf::from(path).into()
    }
}

impl From<Initrd> for PathBuf {
    fn from(initrd: Initrd) -> Self {
        match initrd {
            Initrd::None => "none".into(),
            Initrd::File(path) => path,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_the_default_until_replaced() {
        assert_eq!(Spec::new("k").cmdline(), DEFAULT_CMDLINE);
        assert_eq!(
            Spec::new("k").with_append(" quiet ").cmdline(),
            "console=ttyS0 panic=-1 pci=noearly quiet"
        );
        assert_eq!(Spec::new("k").with_cmdline("ro").with_append("quiet").cmdline(), "ro quiet");
        assert_eq!(Spec::new("k").with_cmdline("").cmdline(), "");
        assert_eq!(Spec::new("k").with_cmdline("").with_append("quiet").cmdline(), "quiet");
    }

    #[test]
    fn machine_without_a_kernel_says_how_to_name_one() {
        let error = Spec::default().kernel().unwrap_err();
        assert!(error.to_string().contains("--kernel"), "{error}");
    }
}
