//! minivmm: a virtual machine monitor straight on /dev/kvm.

#[doc(hidden)]
pub mod cli;
pub mod spec;
