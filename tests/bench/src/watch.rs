//! Watches another program up to its first KVM_RUN, without slowing it down: a seccomp filter stops just the calls
//! of interest and tells this process (seccomp_unotify(2)); everything else runs untouched.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// KVM_RUN, KVM api §4.10.
const KVM_RUN: u64 = 0xae80;
/// Where the child keeps the listener for this process to fetch.
const LISTENER: i32 = 200;

/// Which calls to stop at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// KVM_RUN alone: for times and memory.
    FirstRun,
    /// Every ioctl to KVM: for counting them.
    EveryIoctl,
}

/// What was seen until the first KVM_RUN.
#[derive(Debug, Clone)]
pub struct Seen {
    /// From just before the fork.
    pub time: Duration,
    /// ioctls to KVM before KVM_RUN, by request number; empty for [`Stop::FirstRun`].
    pub ioctls: Vec<u64>,
    /// Private memory besides guest RAM.
    pub memory: Memory,
}

/// Private memory of a process besides its guest RAM, in KiB.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// Its own pages: heap, stacks, data written. (`Anonymous` of smaps: `Private_Dirty` would count the pages of a
    /// program that was written to disk a moment ago as well.)
    pub own_kib: u64,
    /// Pages of files, mostly the program's text, which other machines share.
    pub file_kib: u64,
}

/// Runs `command` until its first KVM_RUN, then ends it. Mappings of `ram_bytes` and more count as guest RAM.
pub fn watch(command: &mut Command, stop: Stop, ram_bytes: u64) -> Result<Seen> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let filter = filter(stop);
    // SAFETY: the closure makes only system calls that are safe between fork and exec, and allocates nothing.
    unsafe { command.pre_exec(move || install(&filter)) };
    let start = Instant::now();
    let child = Running(command.spawn().context("start")?);
    let listener = fetch_listener(child.0.id())?;
    let mut ioctls = Vec::new();
    loop {
        let (id, request) = receive(&listener)?;
        if request == KVM_RUN {
            let time = start.elapsed();
            return Ok(Seen { time, ioctls, memory: memory(child.0.id(), ram_bytes)? });
        }
        ioctls.push(request);
        resume(&listener, id)?;
    }
}

/// Ended, and waited for, on every way out.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn statement(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

fn filter(stop: Stop) -> Vec<libc::sock_filter> {
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let and = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
    let give = libc::BPF_RET | libc::BPF_K;
    // Offsets in struct seccomp_data: 0 the system call, 24 the low word of the second argument.
    let (mask, value) = match stop {
        Stop::FirstRun => (0xffff_ffff, KVM_RUN as u32),
        Stop::EveryIoctl => (0xff00, 0xae00),
    };
    vec![
        statement(load, 0, 0, 0),
        statement(equal, libc::SYS_ioctl as u32, 0, 3),
        statement(load, 24, 0, 0),
        statement(and, mask, 0, 0),
        statement(equal, value, 1, 0),
        statement(give, libc::SECCOMP_RET_ALLOW, 0, 0),
        statement(give, libc::SECCOMP_RET_USER_NOTIF, 0, 0),
    ]
}

fn install(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: `program` is a valid filter that lives across the calls; they affect the child alone.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &program,
        );
        if fd < 0 || libc::dup2(fd as i32, LISTENER) < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::close(fd as i32);
    }
    Ok(())
}

fn fetch_listener(pid: u32) -> Result<OwnedFd> {
    // SAFETY: plain numbers in, a new descriptor or an error out.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if pidfd < 0 {
        return Err(io::Error::last_os_error()).context("pidfd_open");
    }
    // SAFETY: the descriptor is new and nobody else's.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd as i32) };
    // SAFETY: as for pidfd_open.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), LISTENER, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("the program ended before its first KVM_RUN");
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// SECCOMP_IOCTL_NOTIF_RECV and _SEND (linux/seccomp.h).
const NOTIF_RECV: u64 = 0xc050_2100;
const NOTIF_SEND: u64 = 0xc018_2101;

fn receive(listener: &OwnedFd) -> Result<(u64, u64)> {
    let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: `poll` is one valid entry.
    let ready = unsafe { libc::poll(&mut poll, 1, 10_000) };
    if ready <= 0 || poll.revents & libc::POLLIN == 0 {
        bail!("no KVM_RUN within 10 s: did the program end?");
    }
    // SAFETY: an all-zero seccomp_notif is what the call asks for.
    let mut notification: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure that it is given.
    if unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_RECV, &mut notification) } < 0 {
        return Err(io::Error::last_os_error()).context("the program ended before its first KVM_RUN");
    }
    Ok((notification.id, notification.data.args[1] & 0xffff_ffff))
}

fn resume(listener: &OwnedFd, id: u64) -> Result<()> {
    let response = libc::seccomp_notif_resp {
        id,
        val: 0,
        error: 0,
        flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
    };
    // SAFETY: `response` is valid for the call.
    if unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_SEND, &response) } < 0 {
        return Err(io::Error::last_os_error()).context("resume");
    }
    Ok(())
}

/// Adds up /proc/PID/smaps.
pub fn memory(pid: u32, ram_bytes: u64) -> Result<Memory> {
    Ok(sum(&fs::read_to_string(format!("/proc/{pid}/smaps"))?, ram_bytes))
}

/// Adds up the text of /proc/PID/smaps.
pub fn sum(smaps: &str, ram_bytes: u64) -> Memory {
    let mut sum = Memory::default();
    let mut guest_ram = false;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (Some(first), second) = (words.next(), words.next()) else { continue };
        let kib = || second.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
        match first {
            "Size:" => guest_ram = kib() * 1024 >= ram_bytes,
            "Rss:" if !guest_ram => sum.file_kib += kib(),
            "Anonymous:" if !guest_ram => {
                sum.own_kib += kib();
                sum.file_kib -= kib().min(sum.file_kib);
            }
            _ => {}
        }
    }
    sum
}
