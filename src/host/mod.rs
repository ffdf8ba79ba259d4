//! The process's own surroundings: terminal, signals, clock, and what kind of host this is. The only room besides
//! `kvm` with unsafe code.
//!
//! Only the command line uses the terminal and the signals: the library leaves both alone.
#![allow(unsafe_code, reason = "termios, signal masks and local time are C interfaces")]

pub(crate) mod clock;
pub(crate) mod disk;
pub(crate) mod facts;
pub(crate) mod lock;
pub(crate) mod ports;
pub(crate) mod signals;
pub(crate) mod tap;
pub(crate) mod terminal;
