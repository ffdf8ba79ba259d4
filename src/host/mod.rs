//! The process's own surroundings: terminal, signals, clock, and what kind of host this is. The only room besides
//! `kvm` with unsafe code.
//!
//! Only the command line uses the terminal, the signals and the process: the library leaves them alone.
#![allow(unsafe_code, reason = "termios, signal masks, processes and local time are C interfaces")]

pub(crate) mod clock;
pub(crate) mod connect;
pub(crate) mod disk;
pub(crate) mod facts;
pub(crate) mod identity;
pub(crate) mod lock;
pub(crate) mod peer;
pub(crate) mod pidfd;
pub(crate) mod ports;
pub(crate) mod process;
pub(crate) mod ready;
pub(crate) mod signals;
pub(crate) mod stdio;
pub(crate) mod tap;
pub(crate) mod terminal;
