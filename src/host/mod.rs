//! The process's environment: terminal, signals, clock, and facts about the host. The only module besides
//! `kvm` with unsafe code.
//!
//! Only the command line uses the terminal, the signals and the process: the library leaves them alone.
#![allow(unsafe_code, reason = "termios, signal masks, processes and local time are C interfaces")]

pub(crate) mod announce;
pub(crate) mod capture;
pub(crate) mod clock;
pub(crate) mod closed;
pub(crate) mod connect;
pub(crate) mod disk;
pub(crate) mod disk_image;
#[cfg(feature = "cli")]
pub(crate) mod facts;
mod file_system;
pub(crate) mod forward;
pub(crate) mod frame_link;
pub(crate) mod identity;
mod iovecs;
pub(crate) mod lock;
pub(crate) mod lock_soon;
pub(crate) mod merged;
pub(crate) mod net_socket;
pub(crate) mod new_file;
pub(crate) mod new_folder;
pub(crate) mod open_files;
pub(crate) mod open_now;
#[cfg(feature = "cli")]
pub(crate) mod patient;
pub(crate) mod peer;
#[cfg(feature = "cli")]
pub(crate) mod pidfd;
pub(crate) mod port_owner;
pub(crate) mod ports;
mod proc_path;
#[cfg(feature = "cli")]
pub(crate) mod process;
pub(crate) mod ready;
pub(crate) mod runtime_folders;
pub(crate) mod share;
#[cfg(feature = "cli")]
pub(crate) mod signals;
pub(crate) mod socket_address;
pub(crate) mod socket_file;
pub(crate) mod soon;
#[cfg(feature = "cli")]
pub(crate) mod stdio;
pub(crate) mod switch_port;
pub(crate) mod tap;
#[cfg(feature = "cli")]
pub(crate) mod terminal;
#[cfg(test)]
mod testing;
pub(crate) mod user_network;
