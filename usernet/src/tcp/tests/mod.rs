//! The whole of `tcp` against a host in memory: with the TCP of another author as the guest, and with segments by hand.

mod guest;
mod host;
mod limits;
mod peer;
mod random;
mod segments;
mod speed;
mod transfer;
