//! The system calls of the agent that the standard library does not offer.
#![allow(
    unsafe_code,
    reason = "the agent is compiled with a bare rustc: no crate can make these calls for it"
)]

use std::ffi::{c_int, c_ulong};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};

pub(crate) const SIGKILL: i32 = 9;
const O_RDWR_NOCTTY_CLOEXEC: c_ulong = 0o2 | 0o400 | 0o2_000_000;
const TIOCSPTLCK: c_ulong = 0x4004_5431;
const TIOCGPTPEER: c_ulong = 0x5441;
/// KVM api §4.1 and §4.2.
const KVM_GET_API_VERSION: c_ulong = 0xae00;
const KVM_CREATE_VM: c_ulong = 0xae01;

unsafe extern "C" {
    fn ioctl(fd: c_int, request: c_ulong, arg: c_ulong) -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
}

fn control(file: &File, request: c_ulong, arg: c_ulong) -> io::Result<c_int> {
    // SAFETY: every caller here passes an argument that the request takes as a plain number, or a pointer to a live i32.
    match unsafe { ioctl(file.as_raw_fd(), request, arg) } {
        result if result < 0 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

fn owned(fd: c_int) -> File {
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    unsafe { File::from_raw_fd(fd) }
}

/// Sends a signal to a process, or to a group when the number is negative; one that has gone is no error.
pub(crate) fn signal(pid: i32, number: i32) {
    // SAFETY: `kill` takes two numbers and touches no memory.
    unsafe { kill(pid, number) };
}

/// A new terminal: our side, and the process's.
pub(crate) fn open_pty() -> io::Result<(File, File)> {
    let master = OpenOptions::new().read(true).write(true).open("/dev/ptmx")?;
    let unlocked: c_int = 0;
    control(&master, TIOCSPTLCK, std::ptr::from_ref(&unlocked) as c_ulong)?;
    let terminal = owned(control(&master, TIOCGPTPEER, O_RDWR_NOCTTY_CLOEXEC)?);
    Ok((master, terminal))
}

/// Says which API /dev/kvm speaks, and that it makes a virtual machine.
pub(crate) fn check_kvm() -> io::Result<()> {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
    let version = control(&kvm, KVM_GET_API_VERSION, 0)?;
    drop(owned(control(&kvm, KVM_CREATE_VM, 0)?));
    writeln!(io::stdout(), "KVM API {version}, a machine was made")
}
