//! A run that goes on from a machine that an earlier one has kept, or keeps its own.

use std::path::PathBuf;

use super::args::RunArgs;
use super::busybox::Busybox;
use super::guest::Sources;
use crate::cli::report;
use crate::cli::warm::{Key, WarmError, WarmMachine};
use crate::machine::{Controls, SaveError, disk_id};
use crate::saved::{SavedMachineError, with_absolute_paths};
use crate::spec::{MacAddress, NetLink, Spec};

/// The warm machine that `args` name, for this machine; `None` if they name none.
pub(super) fn find(args: &RunArgs, spec: &Spec, busybox: &Busybox) -> Result<Option<WarmMachine>, WarmError> {
    let Some(name) = &args.warm else { return Ok(None) };
    check(spec)?;
    let own = Spec { name: None, ..spec.clone() };
    // Without a working directory the paths are as they were given.
    let mut key = Key::new(&with_absolute_paths(own.clone()).unwrap_or(own));
    for folder in [&args.root, &args.modules] {
        key.bytes(&[folder.is_some().into()]);
    }
    if args.tty {
        // A machine with a terminal has one console more.
        key.bytes(b"tty");
    }
    if args.out.is_some() {
        key.bytes(b"out");
    }
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    if let Some(root) = &args.root {
        key.folder(&absolute(root));
    }
    if let Some(modules) = &args.modules {
        key.file(&absolute(modules));
    }
    if let Ok(busybox) = busybox.path() {
        key.file(busybox);
    }
    WarmMachine::new(name, key.finish()).map(Some)
}

/// Whether many runs can go on from this machine.
fn check(spec: &Spec) -> Result<(), WarmError> {
    if let Some(index) = spec.disk.iter().position(|disk| !disk.read_only && !disk.snapshot) {
        return Err(WarmError::WritableDisk(disk_id(index)));
    }
    let outside = |link: &&NetLink| !matches!(link, NetLink::User(_) | NetLink::None);
    match spec.net.iter().map(|net| &net.link).find(outside) {
        Some(NetLink::Tap(name)) => Err(WarmError::Net(format!("the TAP {name}"))),
        Some(link) => Err(WarmError::Net(link.to_string())),
        None => Ok(()),
    }
}

/// That of the machines of warm runs, which go on under any name.
const WARM_UUID: &str = "6d696e69-766d-4d77-a172-6d0000000001";

/// Gives the machine a UUID, and the user networks addresses, that do not depend on the machine's name and the working directory, as its
/// others do: a guest that goes on keeps them.
pub(super) fn fix_addresses(spec: &mut Spec) {
    spec.uuid = spec.uuid.or_else(|| WARM_UUID.parse().ok());
    for (last, net) in (1..=u8::MAX).zip(&mut spec.net) {
        if matches!(net.link, NetLink::User(_)) && net.mac.is_none() {
            net.mac = MacAddress::new([0x02, 0, 0, 0, 0x77, last]).ok();
        }
    }
}

/// A machine to be kept when its guest waits for a command.
#[derive(Debug)]
pub(super) struct Keep {
    pub(super) warm: WarmMachine,
    pub(super) spec: Spec,
    /// The kernel's modules.
    pub(super) files: Sources,
}

impl Keep {
    /// Saves the machine, which goes on then.
    pub(super) fn save(self, controls: &Controls) -> Result<(), SaveError> {
        let spec = Spec { name: None, ..self.spec };
        self.warm.save(controls, spec, self.files)
    }
}

/// Says what became of a warm machine, to those who want to know.
pub(super) fn say(args: &RunArgs, what: &str) {
    if let Some(name) = args.warm.as_ref().filter(|_| args.verbose) {
        report::message(&format_args!("minivmm: the warm machine {name}: {what}\n"));
    }
}

/// Says how the save went.
pub(super) fn say_saved(args: &RunArgs, saved: &Result<(), SaveError>) {
    match saved {
        Ok(()) => say(args, "it is saved"),
        Err(SaveError::Folder(SavedMachineError::Busy(_) | SavedMachineError::Exists(_))) => {
            say(args, "another run saves it");
        }
        Err(error) => report::message(&format_args!(
            "minivmm: warning: the machine is not kept, and the next run boots too: {}\n",
            report::chain(error)
        )),
    }
}
