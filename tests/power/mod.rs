//! Power cuts: what a machine's disks hold afterwards, by a recording of all that it did to its files.

pub(crate) mod folder;
pub(crate) mod image;
pub(crate) mod machine;
pub(crate) mod promise;
pub(crate) mod recording;
mod wire;
