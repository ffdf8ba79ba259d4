//! Building a [`Spec`] in a program, option by option.

use super::{
    BalloonSize, ConsoleChoice, Cpus, DiskSpec, Initrd, MachineName, MemBacking, MemSize, OnReboot, PortSpec,
    Rtc, Spec, TapSpec,
};

impl Spec {
    /// With this initial RAM disk.
    #[must_use]
    pub fn with_initrd(self, initrd: impl Into<Initrd>) -> Self {
        Spec { initrd: Some(initrd.into()), ..self }
    }

    /// With this kernel command line in place of [`DEFAULT_CMDLINE`](super::DEFAULT_CMDLINE).
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

    /// With this disk behind those it has.
    #[must_use]
    pub fn with_disk(mut self, disk: DiskSpec) -> Self {
        self.disk.push(disk);
        self
    }

    /// With this network interface behind those it has.
    #[must_use]
    pub fn with_tap(mut self, tap: TapSpec) -> Self {
        self.tap.push(tap);
        self
    }

    /// With this port behind those it has.
    #[must_use]
    pub fn with_port(mut self, port: PortSpec) -> Self {
        self.port.push(port);
        self
    }

    /// With so much of its memory taken back at the start.
    #[must_use]
    pub fn with_balloon(self, balloon: BalloonSize) -> Self {
        Spec { balloon: Some(balloon), ..self }
    }

    /// Called so.
    #[must_use]
    pub fn with_name(self, name: MachineName) -> Self {
        Spec { name: Some(name), ..self }
    }

    /// With memory of this kind in the host.
    #[must_use]
    pub fn with_mem_backing(self, backing: MemBacking) -> Self {
        Spec { mem_backing: Some(backing), ..self }
    }

    /// With the terminal on this console.
    #[must_use]
    pub fn with_console(self, console: ConsoleChoice) -> Self {
        Spec { console: Some(console), ..self }
    }
}
