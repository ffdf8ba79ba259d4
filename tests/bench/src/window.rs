//! What a VMM does on its host while its guest works, seen from outside: processor time by thread, and then, in a window
//! of its own because counting costs time, every system call and every exit (window.sh).

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use lab::{Cmd, Lab};

/// Puts the script into the lab.
pub fn prepare(lab: &Lab) -> Result<()> {
    Ok(lab.put("window.sh", include_str!("window.sh").as_bytes())?)
}

/// What grows with the work, read on the host.
#[derive(Debug, Clone)]
pub enum Amount {
    /// Bytes that the first process read from disks.
    BytesRead,
    /// Bytes that it wrote to disks.
    BytesWritten,
    /// The length of a file.
    Length(String),
    /// A file with a number.
    File(String),
    /// Seconds.
    Time,
}

/// One look, twice `seconds` long.
#[derive(Debug, Default)]
pub struct Window {
    /// Amount of work a second, while nothing was counted.
    pub rate: f64,
    /// Processor time for an amount of 1, in ns, by thread.
    pub cpu: BTreeMap<String, f64>,
    /// How much work was done while calls and exits were counted.
    amount: f64,
    /// System calls by thread and number.
    calls: BTreeMap<(String, u32), u64>,
    /// Exits to user space by reason (KVM api, `KVM_EXIT_*`), over all processors.
    user_exits: BTreeMap<u32, u64>,
    /// Writes to device memory, which on its way are doorbells: the rest of what a guest writes there is set-up.
    kicks: u64,
    exits: u64,
}

/// Where a processor of the guest comes back from for KVM's own reasons, and for which there is nothing to do:
/// KVM_EXIT_INTR.
const SIGNAL: u32 = 10;

impl Window {
    /// System calls of all threads for an amount of `unit`, without the KVM_RUN of processors that no signal or device
    /// called out: those are in [`Window::user_exits`].
    pub fn calls(&self, unit: f64) -> f64 {
        self.sum(unit, |_| true)
    }

    fn sum(&self, unit: f64, take: impl Fn(&(String, u32)) -> bool) -> f64 {
        let all: u64 = self.calls.iter().filter(|(key, _)| take(key)).map(|(_, count)| count).sum();
        all as f64 * unit / self.amount
    }

    /// Exits to user space for an amount of `unit`.
    pub fn user_exits(&self, unit: f64) -> f64 {
        let all: u64 = self.user_exits.iter().filter(|(reason, _)| **reason != SIGNAL).map(|(_, n)| n).sum();
        all as f64 * unit / self.amount
    }

    /// Doorbells rung for an amount of `unit`.
    pub fn kicks(&self, unit: f64) -> f64 {
        self.kicks as f64 * unit / self.amount
    }

    /// Exits of any kind for an amount of `unit`.
    pub fn exits(&self, unit: f64) -> f64 {
        self.exits as f64 * unit / self.amount
    }

    /// Processor time in us for an amount of `unit`, over all threads that are no processor of the guest.
    pub fn cpu_us(&self, unit: f64) -> f64 {
        self.cpu.iter().filter(|(name, _)| !is_vcpu(name)).map(|(_, ns)| ns * unit / 1e3).sum()
    }

    /// The same with them.
    pub fn cpu_with_vcpus_us(&self, unit: f64) -> f64 {
        self.cpu.values().map(|ns| ns * unit / 1e3).sum()
    }

    /// Which thread makes which calls how often for an amount of `unit`; what is rare is left out.
    pub fn calls_by_name(&self, unit: f64) -> String {
        let mut calls: Vec<_> =
            self.calls.iter().map(|(key, n)| (*n as f64 * unit / self.amount, key)).collect();
        calls.sort_by(|a, b| b.0.total_cmp(&a.0));
        let words = calls.iter().take_while(|(each, _)| *each >= 0.005);
        words
            .map(|(each, (thread, call))| format!("{thread}:{} {each:.2}", name(*call)))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

pub fn is_vcpu(thread: &str) -> bool {
    thread.starts_with("vcpu") || thread.starts_with("CPU_")
}

/// Windows that are looked at for work.
const TRIES: usize = 3;

/// Looks at processes for twice `seconds`; `None` where nothing was done in [`TRIES`] windows: connections of other programs have
/// been seen to come to rest.
pub fn look(lab: &Lab, pids: &[u32], seconds: u32, amount: &Amount) -> Result<Option<Window>> {
    let amount = match amount {
        Amount::BytesRead => "read_bytes".into(),
        Amount::BytesWritten => "write_bytes".into(),
        Amount::Length(path) => format!("length:{path}"),
        Amount::File(path) => path.clone(),
        Amount::Time => "time".into(),
    };
    let pids = pids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let line = format!("bash window.sh {pids} {seconds} {amount}");
    for _ in 0..TRIES {
        let out = lab.exec(&Cmd::sh(&line))?;
        if out.status.code() != 0 {
            bail!("{line}: {}{}", out.text(), out.err_text());
        }
        let window = parse(&out.text()).with_context(|| format!("{line}: {}", out.text()))?;
        if window.is_some() {
            return Ok(window);
        }
    }
    Ok(None)
}

/// What was said at one moment.
#[derive(Debug, Default)]
struct Moment {
    amount: f64,
    time: f64,
    threads: BTreeMap<u32, (String, f64)>,
}

/// `None` if nothing was done.
fn parse(text: &str) -> Result<Option<Window>> {
    let mut moments: Vec<Moment> = Vec::new();
    let mut window = Window::default();
    let mut histogram = "";
    let mut counted: Vec<f64> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["amount", amount] => moments.push(Moment { amount: amount.parse()?, ..Moment::default() }),
            ["counted", amount] => counted.push(amount.parse::<f64>()?),
            ["time", time] => moments.last_mut().context("no amount")?.time = time.parse()?,
            ["thread", tid, ns, name] => {
                let threads = &mut moments.last_mut().context("no amount")?.threads;
                threads.insert(tid.parse()?, ((*name).to_owned(), ns.parse()?));
            }
            ["histogram", name] => histogram = name,
            ["{", "common_pid:", tid, key, value, "}", "hitcount:", count] => {
                // A thread that came and went in between is a helper of io_uring's, which makes no calls.
                let tid: u32 = tid.trim_end_matches(',').parse()?;
                let threads = moments.iter().rev().find_map(|moment| moment.threads.get(&tid));
                if let Some((thread, _)) = threads {
                    window.count(histogram, thread, (key, value.parse()?), count.parse()?);
                }
            }
            _ => {}
        }
    }
    let ([before, after, _], [begin, end]) = (moments.as_slice(), counted.as_slice()) else {
        bail!("it did not say everything")
    };
    let done = after.amount - before.amount;
    window.rate = done * 1e6 / (after.time - before.time);
    window.amount = end - begin;
    if done <= 0.0 || window.amount <= 0.0 {
        return Ok(None);
    }
    for (tid, (name, ns)) in &after.threads {
        let earlier = before.threads.get(tid).map_or(0.0, |(_, ns)| *ns);
        *window.cpu.entry(name.clone()).or_default() += (ns - earlier) / done;
    }
    Ok(Some(window))
}

impl Window {
    fn count(&mut self, histogram: &str, thread: &str, (key, value): (&str, u32), count: u64) {
        // KVM's tracepoints, virt/kvm: a write is type 2 (KVM_TRACE_MMIO_WRITE).
        match (histogram, key) {
            ("raw_syscalls/sys_enter", "id:") => {
                *self.calls.entry((thread.to_owned(), value)).or_default() += count;
            }
            ("kvm/kvm_userspace_exit", "reason:") => *self.user_exits.entry(value).or_default() += count,
            ("kvm/kvm_mmio", "type:") if value == 2 => self.kicks += count,
            ("kvm/kvm_exit", "exit_reason:") => self.exits += count,
            _ => {}
        }
    }
}

/// The name of a system call.
pub fn name(call: u32) -> String {
    let known = match i64::from(call) {
        libc::SYS_read => "read",
        libc::SYS_write => "write",
        libc::SYS_readv => "readv",
        libc::SYS_writev => "writev",
        libc::SYS_pread64 => "pread",
        libc::SYS_preadv => "preadv",
        libc::SYS_pwrite64 => "pwrite",
        libc::SYS_pwritev => "pwritev",
        libc::SYS_fallocate => "fallocate",
        libc::SYS_statx => "statx",
        libc::SYS_openat => "openat",
        libc::SYS_openat2 => "openat2",
        libc::SYS_close => "close",
        libc::SYS_getdents64 => "getdents",
        libc::SYS_fstat => "fstat",
        libc::SYS_newfstatat => "fstatat",
        libc::SYS_fgetxattr => "fgetxattr",
        libc::SYS_fchdir => "fchdir",
        libc::SYS_unshare => "unshare",
        libc::SYS_lseek => "lseek",
        libc::SYS_pwritev2 => "pwritev2",
        libc::SYS_preadv2 => "preadv2",
        libc::SYS_setresuid => "setresuid",
        libc::SYS_setresgid => "setresgid",
        libc::SYS_ppoll => "ppoll",
        libc::SYS_poll => "poll",
        libc::SYS_ioctl => "ioctl",
        libc::SYS_futex => "futex",
        libc::SYS_epoll_wait => "epoll_wait",
        libc::SYS_epoll_pwait => "epoll_pwait",
        libc::SYS_epoll_pwait2 => "epoll_pwait2",
        libc::SYS_epoll_ctl => "epoll_ctl",
        libc::SYS_io_uring_enter => "io_uring_enter",
        libc::SYS_clock_gettime => "clock_gettime",
        libc::SYS_timerfd_settime => "timerfd_settime",
        libc::SYS_sendto => "send",
        libc::SYS_recvfrom => "recv",
        libc::SYS_sendmsg => "sendmsg",
        libc::SYS_recvmsg => "recvmsg",
        libc::SYS_recvmmsg => "recvmmsg",
        libc::SYS_io_submit => "io_submit",
        libc::SYS_io_getevents => "io_getevents",
        _ => return format!("call {call}"),
    };
    known.to_owned()
}
