//! minivmm: a virtual machine monitor straight on /dev/kvm, as a library and as the command of the same name.
//!
//! A [`Spec`](spec::Spec) says what a machine is made of, and [`Machine::builder`] starts it. From then on it lives on threads
//! of its own, until its guest switches itself off, it is told to end, or it is dropped: then all that it had is free again.
//! The library touches neither signals nor standard input and output, never ends the process, and keeps no global state, so
//! that many machines live in one process. (Its threads send each other SIGRTMIN, which is blocked there and never delivered: a
//! program that sends that one to its whole process for purposes of its own may find it taken by a machine.) What it has to say beside its results goes to the [`log`](https://docs.rs/log)
//! facade.
//!
//! # The first five minutes
//!
//! You need a Linux host whose /dev/kvm you may open (`minivmm doctor` says what is missing), a kernel, and an initrd: any
//! distribution's will do. This boots them into the initrd's shell:
//!
//! ```no_run
//! use std::io::Write;
//! use std::time::Duration;
//! use minivmm::{Machine, spec::Spec};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let spec = Spec::new("vmlinuz").with_initrd("initrd.img").with_append("quiet rdinit=/bin/sh");
//! let machine = Machine::builder(&spec).start()?;
//! // A guest speaks when it likes: wait for its words. The error has the console's last lines.
//! let mut console = machine.console();
//! console.expect("# ", Duration::from_secs(60))?;
//! // Typing is writing.
//! console.write_all(b"echo $((6 * 7))\n")?;
//! println!("{}", console.expect("42", Duration::from_secs(5))?);
//! # Ok(())
//! # }
//! ```
//!
//! Where a whole disk image is at hand, `Spec::default().with_disk(DiskSpec::new("vm0.raw"))` is enough: kernel and initrd are
//! found on it. [`Spec::from_file`](spec::Spec::from_file) reads the same TOML as the command.
//!
//! A machine can be brought to rest and looked at; [`Machine::controls`] gives other threads the same to do:
//!
//! ```no_run
//! # use std::time::Duration;
//! # fn look(machine: &minivmm::Machine) -> Result<(), Box<dyn std::error::Error>> {
//! machine.pause(Duration::from_secs(5))?; // Between two instructions; what disks were asked for is done.
//! if let Some(stats) = machine.stats() {
//!     println!("{} of {} bytes of memory taken", stats.memory.resident, stats.memory.size);
//! }
//! machine.resume();
//! machine.set_balloon(64)?; // Give 64 MiB back to the host.
//! # Ok(())
//! # }
//! ```
//!
//! [`Events`] say what happens, [`Machine::wait_for`] and [`Machine::exit_status`] how it ended. Shutting a guest down is asking
//! it to, and ending it if it does not:
//!
//! ```no_run
//! # use std::time::Duration;
//! # use minivmm::{Exit, Machine, MachineEvent};
//! # fn end(machine: Machine) {
//! let events = machine.events();
//! std::thread::spawn(move || {
//!     for event in events {
//!         if let MachineEvent::DeviceFailed { device, reason } = event {
//!             eprintln!("{device}: {reason}");
//!         }
//!     }
//! });
//! machine.power_button();
//! match machine.wait_for(Duration::from_secs(30)).as_deref() {
//!     Some(Exit::PoweredOff) => println!("well done"),
//!     Some(other) => println!("{other}"),
//!     None => println!("it does not listen"),
//! }
//! drop(machine); // It has ended when this returns, and left nothing behind.
//! # }
//! ```
//!
//! The examples to copy from: `examples/command.rs` runs one command in a guest and gives its output and exit status,
//! `examples/pool.rs` keeps a pool of machines under load, `examples/balloon.rs` moves memory between host and guest.
//!
//! # Errors
//!
//! Each is an enum to match on ([`StartError`] holds those of [disks](DiskError), [networks](TapError), [ports](PortError),
//! [KVM](KvmError) and [kernels](kernel::KernelError)); its text is a sentence for people, with the path and the cure. However
//! a guest behaves, its machine goes on or ends with an [`Exit`].
//!
//! # Threads
//!
//! A machine has one for each processor, disk and network, and a few for itself. [`Machine`] and all that it hands out can be
//! sent to and shared with other threads. Of a call's waiting its documentation tells; the others return at once.

// The command uses more of the machine's inside than the API shows.
#![cfg_attr(not(feature = "cli"), allow(dead_code, unused_imports))]

#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod control;
mod host;
mod image;
mod kvm;
mod machine;
pub mod spec;

pub use devices::component::StateError;
pub use host::disk::{DiskError, DiskHolder};
pub use host::ports::PortError;
pub use host::tap::{TapError, TapHolder};
pub use image::{ImageError, ReadError};
#[doc(hidden)]
pub use image::{Search, explore_bytes};
pub use kvm::KvmError;
pub use machine::{
    BalloonError, ConsoleInput, Controls, Crash, DeviceStats, Events, Exit, ExpectError, ExpectFailure,
    GaveUp, GuestConsole, Machine, MachineBuilder, MachineEvent, MachineState, MemoryStats, PauseError,
    ResizeError, RestoreError, SaveError, SavedState, StartError, Stats, VcpuStats,
};
pub use virtio::DeviceKind;
pub use virtio::balloon::{BalloonControl, Statistics as BalloonStatistics};
pub use virtio::transport::TransportError;

/// What can be wrong with the files that a machine boots.
pub mod kernel {
    pub use boot::entry::Protocol;
    pub use boot::initrd::InitrdError;
    pub use boot::kernel::{Compression, Foreign, Format, KernelError};
    pub use boot::plan::PlanError;
}
