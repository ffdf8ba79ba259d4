//! Machines with PCI functions of the tests' own, on the real /dev/kvm. What needs no function of its own is tested from
//! outside, in `tests/native_*.rs`.

mod doorbell;
mod hanging;

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use devices::irq::MsiAllocator;
use devices::pci::FunctionAddress;
use devices::pci::bar::BarKind;
use devices::pci::testing::Scratch;
use diskimage::Format;
use tiny_guest::Guest;
use virtio::transport::Platform;

use super::pci::{self, Placed, Terminals};
use super::precopy::{Copy, FileSink};
use super::resources::Resources;
use super::run_resources::RunResources;
use super::{CopyLimits, CopyProgress, Exit, Machine, MakeFunctions, ResizeError, StartError};
use crate::spec::{DiskSpec, Spec};
use doorbell::Doorbell;

/// A machine that takes longer than this hangs.
const LIMIT: Duration = Duration::from_secs(240);

#[derive(Debug, Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs a guest beside `functions` to its end: how it ended, and what it said.
fn run(guest: Guest, functions: MakeFunctions) -> (Arc<Exit>, String) {
    let folder = tempfile::tempdir().unwrap();
    let spec = Spec::new(guest.write(folder.path()).unwrap()).with_mem("4".parse().unwrap());
    let output = Output::default();
    let machine =
        Machine::start_with(&spec, Some(Box::new(output.clone())), functions, RunResources::default())
            .unwrap();
    let exit = machine.wait_for(LIMIT);
    let text = String::from_utf8_lossy(&output.0.lock().unwrap()).into_owned();
    (exit.unwrap_or_else(|| panic!("the guest hangs; it said: {text}")), text)
}

#[track_caller]
fn powers_off_after((exit, text): (Arc<Exit>, String), said: &str) {
    assert_eq!(text, said, "{exit:?}");
    assert!(matches!(*exit, Exit::PoweredOff), "{exit:?}");
}

fn at(device: u8, function: u8) -> FunctionAddress {
    FunctionAddress::new(device, function).unwrap()
}

fn doorbell_at(address: FunctionAddress, kind: BarKind, msi: &Arc<dyn MsiAllocator>) -> Placed {
    Placed::new("doorbell", address, Doorbell::new(kind, msi))
}

/// In the window above memory, in a device's second function: its first is there as well, or nobody would look.
fn wide_doorbell(_: &Resources, _: Terminals, virtio: &Platform) -> Result<Vec<Placed>, StartError> {
    let mut functions = vec![pci::host_bridge()?];
    functions.push(Placed::new("bridge3", at(3, 0), devices::pci::host_bridge::HostBridge::new()));
    functions.push(doorbell_at(at(3, 1), BarKind::Memory64, &virtio.msi));
    Ok(functions)
}

/// In the window below 4 GiB.
fn narrow_doorbell(_: &Resources, _: Terminals, virtio: &Platform) -> Result<Vec<Placed>, StartError> {
    Ok(vec![doorbell_at(at(31, 0), BarKind::Memory32, &virtio.msi)])
}

#[test]
fn msix_reaches_a_gate_of_the_guest() {
    let wide = "msix device=03 function=1 bir=0\ninterrupt\ndone\n";
    powers_off_after(run(Guest::Msix, wide_doorbell), wide);
    let narrow = "msix device=1f function=0 bir=0\ninterrupt\ndone\n";
    powers_off_after(run(Guest::Msix, narrow_doorbell), narrow);
}

#[test]
fn a_disk_that_grows_is_resized_while_its_machine_runs() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let raw = std::fs::File::create(&image).unwrap();
    raw.set_len(1 << 20).unwrap();
    let spec = Spec::new(Guest::PowerButton.write(folder.path()).unwrap()).with_mem("4".parse().unwrap());
    let spec = spec.with_disk(image.to_str().unwrap().parse().unwrap());
    let machine = Machine::start(&spec, Box::new(io::sink())).unwrap();
    let controls = machine.controls();
    raw.set_len(3 << 20).unwrap();
    assert_eq!(controls.resize_disk("vda").unwrap(), 3 << 20);
    raw.set_len(1 << 20).unwrap();
    assert_eq!(controls.resize_disk("vda").unwrap(), 3 << 20, "the guest has data there");
    let error = controls.resize_disk("vdb").unwrap_err().to_string();
    assert!(error.contains("\"vdb\"") && error.contains("vda"), "{error}");
    machine.kill();
    machine.wait_for(LIMIT).unwrap();
    assert!(matches!(controls.resize_disk("vda"), Err(ResizeError::Ended)));
}

/// What the guest has written waits for the host's medium before the pause; and for nothing if its disk is copied.
#[test]
fn pause_of_a_copy_brings_little_to_the_medium_and_nothing_of_copied_disks() {
    let folder = tempfile::tempdir().unwrap();
    let mut spec = Spec::new(Guest::PowerButton.write(folder.path()).unwrap()).with_mem("4".parse().unwrap());
    for name in ["vda.raw", "vdb.raw", "vdc.qcow2"] {
        let image = folder.path().join(name);
        let file = std::fs::File::options().create_new(true).read(true).write(true).open(&image).unwrap();
        let format = if name.ends_with("raw") { Format::Raw } else { Format::Qcow2 };
        diskimage::create(&file, &image, &diskimage::CreateOptions::new(format, 1 << 20)).unwrap();
        spec = spec.with_disk(DiskSpec::new(image));
    }
    let machine = Machine::start(&spec, Box::new(io::sink())).unwrap();
    let controls = machine.controls();
    let counted = || -> Vec<_> {
        controls.disks.written().map(|(.., drive)| drive.medium().syncs_and_flushes()).collect()
    };
    let before = counted();
    let (memory, copied) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    memory.set_len(4 << 20).unwrap();
    let (mut sink, mut copy) = (FileSink::new(&memory), Copy::begin(&controls).unwrap());
    sink.add_disk(0, copied);
    let (index, id, drive) = controls.disks.written().next().unwrap();
    copy.add_disk(index, id, &drive).unwrap();
    let mut watch = |_: &CopyProgress| ControlFlow::Continue(());
    let paused = copy.run(&mut sink, CopyLimits::default(), LIMIT, &mut watch).unwrap();
    let marks: Vec<_> = paused.parts().marks.iter().map(Option::is_some).collect();
    assert_eq!(marks, [false, true, true]);
    let rounds = u64::from(paused.go_on().unwrap().1.rounds);
    let since: Vec<_> =
        counted().iter().zip(&before).map(|(now, then)| [now[0] - then[0], now[1] - then[1]]).collect();
    assert_eq!(since[0], [0, 0]);
    // Once for each round that was not in the pause.
    assert_eq!(since[1], [rounds - 1, 1]);
    assert_eq!(since[2][0], rounds - 1);
    machine.kill();
    machine.wait_for(LIMIT).unwrap();
}

#[test]
fn masked_vectors_wait_and_come_when_they_are_unmasked() {
    let said = "msix device=1f function=0 bir=0\n\
                masked: first=0 second=1 pending=01\n\
                open: first=1 second=1 pending=00\n\
                function masked: first=1 second=1 pending=02\n\
                function open: first=1 second=2 pending=00\n\
                done\n";
    powers_off_after(run(Guest::MsixMasks, narrow_doorbell), said);
}

#[test]
fn junk_in_bars_configuration_and_msix_tables_harms_nobody() {
    static MADE: Mutex<Vec<Arc<Mutex<Scratch>>>> = Mutex::new(Vec::new());
    let functions: MakeFunctions = |_, _, virtio| {
        let mut functions = vec![pci::host_bridge()?];
        for address in [at(1, 0), at(9, 0)] {
            let scratch = Arc::new(Mutex::new(Scratch::new(&virtio.msi).unwrap()));
            MADE.lock().unwrap().push(scratch.clone());
            functions.push(Placed {
                id: "scratch".into(),
                address,
                function: scratch,
                counted: None,
                workers: Vec::new(),
            });
        }
        Ok(functions)
    };
    powers_off_after(run(Guest::Junk, functions), "\njunk functions=0003 bars=0004\ndone\n");
    let made = MADE.lock().unwrap();
    assert_eq!(made.len(), 2);
    for scratch in made.iter() {
        assert_eq!(scratch.lock().unwrap().broken_promises, 0);
    }
}

#[test]
fn device_that_panics_ends_its_machine_and_no_other() {
    let broken: MakeFunctions = |_, _, virtio| {
        let mut function = Doorbell::new(BarKind::Memory32, &virtio.msi);
        function.panics = true;
        Ok(vec![pci::host_bridge()?, Placed::new("doorbell", at(1, 0), function)])
    };
    let (exit, text) = run(Guest::Msix, broken);
    match &*exit {
        Exit::Failed(error @ StartError::Internal(_)) => {
            assert!(error.to_string().contains("a vCPU panicked"))
        }
        other => panic!("{other:?}: {text}"),
    }
}
