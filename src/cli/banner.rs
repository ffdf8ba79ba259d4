//! What a machine is made of, said on stderr before it starts, as lab scripts do.

use std::fmt::{self, Display};
use std::path::Path;

use boot::kernel::{Format, Kernel};

use crate::spec::Spec;

/// The banner of a machine.
#[derive(Debug)]
pub(super) struct Banner<'a> {
    /// The machine.
    pub spec: &'a Spec,
    /// Its kernel.
    pub kernel: &'a Kernel,
    /// The console is a terminal that somebody types into.
    pub terminal: bool,
}

impl Display for Banner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Banner { spec, kernel, terminal } = self;
        let path = spec.kernel.as_deref().unwrap_or(Path::new("")).display();
        let mut line = |name: &str, value: &dyn Display| writeln!(f, "~> {name:<12}: {value}");
        line("Kernel", &format_args!("{path} ({})", describe(kernel.format(), kernel.version())))?;
        match spec.initrd() {
            Some(initrd) => line("Initrd", &initrd.display())?,
            None => line("Initrd", &"none")?,
        }
        line("RAM", &spec.mem())?;
        line("Processors", &spec.cpus())?;
        if *terminal {
            line("Console", &"this terminal; Ctrl-] then ? for the menu, q to quit")?;
        }
        Ok(())
    }
}

/// Format and release of a kernel.
pub(super) fn describe(format: Format, version: Option<&str>) -> String {
    match version.and_then(|version| version.split_whitespace().next()) {
        Some(release) => format!("Linux {release}, {format}"),
        None => format.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::kernels::bzimage;

    #[test]
    fn banner_says_what_the_machine_is_made_of() {
        let kernel = Kernel::parse(&bzimage("6.1.0-own (me@laptop) #1 SMP")[..]).unwrap();
        let spec = Spec::new("/k/vmlinuz").with_initrd("/k/initrd.img").with_mem("1G".parse().unwrap());
        let text = Banner { spec: &spec, kernel: &kernel, terminal: true }.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "~> Kernel      : /k/vmlinuz (Linux 6.1.0-own, bzImage)");
        assert_eq!(lines[1], "~> Initrd      : /k/initrd.img");
        assert_eq!(lines[2], "~> RAM         : 1 GiB");
        assert_eq!(lines[3], "~> Processors  : 1");
        assert!(lines[4].contains("Ctrl-]"));
        assert!(!Banner { spec: &spec, kernel: &kernel, terminal: false }.to_string().contains("Ctrl-]"));
    }
}
