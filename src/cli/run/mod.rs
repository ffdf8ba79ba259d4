//! `minivmm run`: one command in a guest that lives as long as it. Standard output and standard error pass
//! unchanged and separate, and the exit status is the command's.
//!
//! The guest boots an initramfs that is made here. Its init uses named ports of the virtio console, whose
//! other ends are in this process: no file is left behind, whatever happens.

pub mod args;
mod build_tree;
mod busybox;
mod covered;
mod environment;
mod error;
mod events;
mod guest;
mod nested;
mod out;
mod output;
pub(super) mod podman;
mod ports;
mod reseed;
mod session;
mod start;
mod tar;
mod terminal;
mod times;
mod tree;
mod verdict;
mod volume;
mod warm;

use args::RunArgs;
#[doc(hidden)]
pub use tar::unpack_bytes;

use super::exit::Status;
use crate::spec::Spec;

/// Runs a command in a machine.
pub(super) fn run(args: &RunArgs, spec: Spec) -> Status {
    session::run(args, spec).unwrap_or_else(|error| super::report_error(&error, Status::RunFailed))
}
