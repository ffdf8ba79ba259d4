//! minivmm is a virtual machine monitor straight on /dev/kvm: a library, and the command of the same name.
//!
//! A [`Spec`](spec::Spec) describes a machine, and [`Machine::builder`] starts it. The machine then runs on its own threads until
//! its guest powers off, it is ended, or it is dropped. After that everything it had is free again. The library leaves signals,
//! standard streams and the process alone and keeps no global state, so that one process can have many machines. (The threads of
//! a machine send each other SIGRTMIN, which is blocked in them and never delivered. A program that sends SIGRTMIN to its whole
//! process for another purpose can lose it to a machine.) Messages go to the [`log`](https://docs.rs/log) facade.
//!
//! # The first five minutes
//!
//! You need a Linux host with a /dev/kvm that you can open (`minivmm doctor` says what is missing), a kernel and an initrd of
//! any distribution. This boots them into the shell of the initrd:
//!
//! ```no_run
//! use std::io::Write;
//! use std::time::Duration;
//! use minivmm::{Machine, spec::Spec};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let spec = Spec::new("vmlinuz").with_initrd("initrd.img").with_append("quiet rdinit=/bin/sh");
//! let machine = Machine::builder(&spec).start()?;
//! let mut console = machine.console();
//! console.expect("# ", Duration::from_secs(60))?;
//! console.write_all(b"echo $((6 * 7))\n")?;
//! println!("{}", console.expect("42", Duration::from_secs(5))?);
//! # Ok(())
//! # }
//! ```
//!
//! `expect` waits for text on the console, and its error has the console's last lines. Writing to the console is typing.
//!
//! With a disk image `Spec::default().with_disk(DiskSpec::new("vm0.raw"))` is enough: kernel and initrd are found on the disk.
//! `DiskSpec::new("base.raw").with_overlay("vm1.qcow2")` gives each of many machines a disk of its own on one image.
//!
//! A machine can be paused and inspected. [`Machine::controls`] returns a handle with the same calls for other threads:
//!
//! ```no_run
//! # use std::time::Duration;
//! # fn look(machine: &minivmm::Machine) -> Result<(), Box<dyn std::error::Error>> {
//! machine.pause(Duration::from_secs(5))?; // Between two instructions, with all disk requests completed.
//! if let Some(stats) = machine.stats() {
//!     println!("{} of {} bytes of memory are resident", stats.memory.resident, stats.memory.size);
//! }
//! machine.resume();
//! machine.set_balloon(64)?; // Give 64 MiB back to the host.
//! # Ok(())
//! # }
//! ```
//!
//! [`Events`] tell what happens; [`Machine::wait_for`] and [`Machine::exit_status`] tell how the machine ended. To shut a
//! guest down, press its power button, and end the machine if the guest does not react:
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
//!     Some(Exit::PoweredOff) => println!("powered off"),
//!     Some(other) => println!("{other}"),
//!     None => println!("the guest does not react"),
//! }
//! drop(machine); // When this returns, the machine has ended and nothing is left of it.
//! # }
//! ```
//!
//! Programs to copy from: `examples/embed` is the least one, `examples/command.rs` runs one command in a guest and returns its
//! output and exit status, `examples/pool.rs` keeps a pool of machines under load, `examples/warm.rs`
//! serves requests each in a clone of its own, `examples/balloon.rs` moves memory between host
//! and guest.
//!
//! # Features
//!
//! `cli` (default) is the command: flags, machines' files (`Spec::from_file`), verbs and the control socket. An embedder can
//! leave it out with `default-features = false`, and with it clap, toml and httparse.
//!
//! # Errors
//!
//! Each error is an enum to match on. [`StartError`] contains those of [disks](DiskError), [networks](TapError),
//! [forwards](ForwardError), [sockets](NetSocketError), [switches](SwitchPortError), [ports](PortError), [shares](ShareError), [KVM](KvmError) and [kernels](kernel::KernelError). The text of an error is a sentence with the path and the
//! cure. Whatever a guest does, its machine goes on or ends with an [`Exit`].
//!
//! # Threads
//!
//! A machine has one thread for each processor, disk (or `threads=N`), network interface and shared folder, and a few of its own. [`Machine`] and everything it
//! returns can be sent to and shared with other threads. The documentation of a call says if it waits; the others return at once.

// The command uses more of the crate than the API shows.
#![cfg_attr(not(feature = "cli"), allow(dead_code, unreachable_pub, unused_imports))]

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
#[cfg(feature = "cli")]
mod migration;
mod saved;
mod shown;
pub mod spec;
#[cfg(feature = "cli")]
mod switch;

pub use devices::component::StateError;
pub use host::capture::CaptureError;
pub use host::closed::ClosedFolder;
#[doc(hidden)]
pub use host::disk::RunningImage;
pub use host::disk::{DiskError, DiskHolder};
pub use host::forward::ForwardError;
pub use host::net_socket::NetSocketError;
pub use host::port_owner::PortOwner;
pub use host::ports::PortError;
#[doc(hidden)]
pub use host::share::share_for_fuzzer;
pub use host::share::{ShareError, ShareFault};
pub use host::switch_port::SwitchPortError;
pub use host::tap::{TapError, TapHolder};
pub use image::{ImageError, ReadError};
#[doc(hidden)]
pub use image::{Search, explore_bytes};
pub use kvm::KvmError;
pub use machine::{
    BalloonError, BoundForward, CommandOutput, ConsoleInput, Controls, CopyLimits, CopyProgress, CopyReport,
    Crash, DeviceStats, DiskChangeError, DiskState, Events, ExecError, Exit, ExpectError, ExpectFailure,
    FreezeError, GaveUp, GuestClock, GuestCommand, GuestConsole, Machine, MachineBuilder, MachineEvent,
    MachineState, MemoryStats, NetError, Otherwise, PauseError, ResizeError, RestoreError, RevertError,
    SaveError, SaveOptions, SavedState, StartError, Stats, Template, Unsaveable, VcpuStats,
};
#[cfg(feature = "cli")]
#[doc(hidden)]
pub use migration::receive_bytes;
pub use saved::{SavedMachine, SavedMachineError};
pub use virtio::DeviceKind;
pub use virtio::balloon::{BalloonControl, Statistics as BalloonStatistics};
pub use virtio::transport::TransportError;

/// Errors of the files that a machine boots.
pub mod kernel {
    pub use boot::entry::Protocol;
    pub use boot::initrd::InitrdError;
    pub use boot::kernel::{Compression, Foreign, Format, KernelError};
    pub use boot::plan::PlanError;
}
