//! minivmm: a virtual machine monitor straight on /dev/kvm.

#[doc(hidden)]
pub mod cli;
mod host;
pub mod spec;
