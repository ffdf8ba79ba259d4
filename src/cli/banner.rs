//! What a machine is made of, said on stderr before it starts, as lab scripts do.

use std::fmt::{self, Display};
use std::path::Path;

use boot::kernel::Kernel;

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
        line("Kernel", &format_args!("{path} ({})", describe(kernel)))?;
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
pub(super) fn describe(kernel: &Kernel) -> String {
    let format = kernel.format();
    match kernel.version().and_then(|version| version.split_whitespace().next()) {
        Some(release) => format!("Linux {release}, {format}"),
        None => format.to_string(),
    }
}
