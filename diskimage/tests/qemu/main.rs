//! Our work on images against `qemu-img` and `qemu-io`: what they make is read here, what is made here they find sound and the same.
//! `MINIVMM_SOAK=1` does all of it, else a tenth.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on shall say so by a panic"
)]

mod check;
mod commit;
mod convert;
mod killed;
mod rounds;
mod support;
