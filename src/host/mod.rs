//! The process's own surroundings.

pub(crate) mod facts;
