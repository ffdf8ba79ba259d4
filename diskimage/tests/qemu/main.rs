//! Our work on images against `qemu-img` and `qemu-io`: what they make is read here, what is made here they find sound and the same.
//! `MINIVMM_SOAK=1` does all of it, else a tenth.

mod check;
mod commit;
mod convert;
mod killed;
mod rounds;
mod support;
