//! Builder methods of [`Spec`], one for each option.

use super::{
    BalloonSize, ConsoleChoice, Cpus, DiskSpec, Initrd, MachineName, MachineUuid, MemBacking, MemSize,
    NetSpec, OnReboot, PortSpec, Rtc, ShareSpec, Spec,
};

impl Spec {
    /// Sets the initial RAM disk.
    #[must_use]
    pub fn with_initrd(self, initrd: impl Into<Initrd>) -> Self {
        Spec { initrd: Some(initrd.into()), ..self }
    }

    /// Replaces [`DEFAULT_CMDLINE`](super::DEFAULT_CMDLINE).
    #[must_use]
    pub fn with_cmdline(self, cmdline: impl Into<String>) -> Self {
        Spec { cmdline: Some(cmdline.into()), ..self }
    }

    /// Sets the words that are added to the kernel command line.
    #[must_use]
    pub fn with_append(self, words: impl Into<String>) -> Self {
        Spec { append: Some(words.into()), ..self }
    }

    /// Sets the amount of memory.
    #[must_use]
    pub fn with_mem(self, mem: MemSize) -> Self {
        Spec { mem: Some(mem), ..self }
    }

    /// Sets the number of processors.
    #[must_use]
    pub fn with_cpus(self, cpus: Cpus) -> Self {
        Spec { cpus: Some(cpus), ..self }
    }

    /// Sets the clock chip.
    #[must_use]
    pub fn with_rtc(self, rtc: Rtc) -> Self {
        Spec { rtc: Some(rtc), ..self }
    }

    /// Sets what happens when the guest reboots.
    #[must_use]
    pub fn with_on_reboot(self, what: OnReboot) -> Self {
        Spec { on_reboot: Some(what), ..self }
    }

    /// Adds a disk.
    #[must_use]
    pub fn with_disk(mut self, disk: DiskSpec) -> Self {
        self.disk.push(disk);
        self
    }

    /// Adds a network interface.
    #[must_use]
    pub fn with_net(mut self, net: NetSpec) -> Self {
        self.net.push(net);
        self
    }

    /// Adds a port.
    #[must_use]
    pub fn with_port(mut self, port: PortSpec) -> Self {
        self.port.push(port);
        self
    }

    /// Adds a shared folder.
    #[must_use]
    pub fn with_share(mut self, share: ShareSpec) -> Self {
        self.share.push(share);
        self
    }

    /// Sets how much memory is taken back at the start.
    #[must_use]
    pub fn with_balloon(self, balloon: BalloonSize) -> Self {
        Spec { balloon: Some(balloon), ..self }
    }

    /// Sets the machine's name.
    #[must_use]
    pub fn with_name(self, name: MachineName) -> Self {
        Spec { name: Some(name), ..self }
    }

    /// Sets the machine's UUID.
    #[must_use]
    pub fn with_uuid(self, uuid: MachineUuid) -> Self {
        Spec { uuid: Some(uuid), ..self }
    }

    /// Sets what backs the memory on the host.
    #[must_use]
    pub fn with_mem_backing(self, backing: MemBacking) -> Self {
        Spec { mem_backing: Some(backing), ..self }
    }

    /// Has equal pages shared with other guests, or not.
    #[must_use]
    pub fn with_merge(self, merge: bool) -> Self {
        Spec { merge: Some(merge), ..self }
    }

    /// Sets the console that the terminal has.
    #[must_use]
    pub fn with_console(self, console: ConsoleChoice) -> Self {
        Spec { console: Some(console), ..self }
    }
}
