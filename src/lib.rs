//! minivmm: a virtual machine monitor straight on /dev/kvm, as a library and as the command of the same name.
//!
//! A [`spec::Spec`] says what a machine is made of, [`Machine::start`] makes it and lets it run, and the machine ends
//! when its guest switches itself off, when it is asked to, or when it is dropped. The library touches neither
//! signals nor standard input and output, never ends the process, and keeps no global state: many machines live in
//! one process.
//!
//! ```no_run
//! use minivmm::{Exit, Machine, spec::Spec};
//!
//! let spec = Spec::new("vmlinuz").with_initrd("initrd.img").with_append("quiet");
//! let machine = Machine::start(&spec, Box::new(std::io::stdout()))?;
//! match &*machine.wait() {
//!     Exit::PoweredOff => println!("the guest switched itself off"),
//!     other => println!("{other:?}"),
//! }
//! # Ok::<(), minivmm::StartError>(())
//! ```

#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod control;
mod host;
#[doc(hidden)]
pub mod image;
mod kvm;
mod machine;
pub mod spec;

pub use host::disk::{DiskError, DiskHolder};
pub use host::ports::PortError;
pub use host::tap::{TapError, TapHolder};
pub use image::{ImageError, ReadError};
pub use kvm::KvmError;
pub use machine::{
    ConsoleInput, Controls, Crash, DeviceStats, Events, Exit, ExpectError, GuestConsole, Machine,
    MachineBuilder, MachineEvent, MachineState, MemoryStats, PauseError, StartError, Stats, Unheard,
    VcpuStats,
};
pub use virtio::DeviceKind;
pub use virtio::balloon::{BalloonControl, Statistics as BalloonStatistics};
