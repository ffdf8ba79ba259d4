//! Disks that are images with tables: qcow2, alone or on backing files.
//!
//! imago looks mappings up and changes them; the data go straight between the files and guest memory, by the engines of raw
//! disks. The rules that make this safe:
//!
//! - A cluster of data stays where it is. A discard punches a hole into it and leaves it to its place on the disk, so that no
//!   operation in flight ever meets a cluster that serves something else.
//! - Mappings change under one lock ([`ImageDisk`]), on threads beside the disk's own: a write to a new cluster brings the data to
//!   the file first and sets the mapping then, so that a read finds the old bytes or the new ones.
//! - imago's writes of metadata are held in memory, and a flush brings them to the medium in an order that survives a power cut
//!   (`diskimage::HeldWrites`). Without changed metadata a flush is one fdatasync, as on a raw disk.

mod change;
mod disk;
mod engine;
mod parts;
mod running;
mod settle;
mod threads;

#[cfg(test)]
mod tests;

pub(crate) use disk::ImageDisk;
pub use running::RunningImage;
