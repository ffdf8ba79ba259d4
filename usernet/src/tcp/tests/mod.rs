//! The whole of `tcp` against a host in memory, with the TCP of another author as the guest.

mod guest;
mod host;
mod transfer;
