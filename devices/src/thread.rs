//! The one place where threads are born: each has a name, a role, and the stack that its role needs.
//!
//! A role says what a thread does, and so what it may ask of the host. Everything that differs between roles belongs here.

use std::io;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Owns a running machine and decides what happens to it. Never waits for the host.
    Supervisor,
    /// Makes the calls that may wait for the host: opening, booting, bringing devices to rest.
    Blocking,
    /// Reads kernel and initrd into guest memory.
    Loader,
    /// Runs a vCPU.
    Vcpu,
    /// Serves virtio devices.
    Device,
    /// Makes slow calls for a disk or a share.
    Helper,
    /// Carries bytes between a guest's console and its reader or writer.
    Console,
    /// Writes captured frames.
    Capture,
    /// Accepts connections of the control socket.
    Control,
    /// Serves one connection of the control socket.
    ControlClient,
    /// Works for the command line: signals, the terminal, a verb.
    Cli,
}

impl Role {
    /// Address space for the stack; the host backs what is used. All of them are smaller than a huge page, which the host may
    /// give to a stack of which a few KiB are used.
    const fn stack(self) -> usize {
        match self {
            Role::Helper => 128 << 10,
            Role::Vcpu | Role::Capture | Role::Control | Role::ControlClient => 256 << 10,
            Role::Supervisor | Role::Blocking | Role::Loader | Role::Device | Role::Console | Role::Cli => {
                1 << 20
            }
        }
    }

    /// A thread of this role; the host shows 15 bytes of its name.
    fn builder(self, name: &str) -> Builder {
        Builder::new().name(name.to_owned()).stack_size(self.stack())
    }
}

/// Starts a thread that is joined by hand, or not at all.
///
/// # Errors
/// The host refused the thread.
pub fn spawn<T: Send + 'static>(
    role: Role,
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    role.builder(name).spawn(work)
}

/// Starts a thread that ends with `scope`.
///
/// # Errors
/// The host refused the thread.
pub fn spawn_scoped<'scope, 'env, T: Send + 'scope>(
    scope: &'scope Scope<'scope, 'env>,
    role: Role,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    role.builder(name).spawn_scoped(scope, work)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    #[test]
    fn a_thread_has_the_name_that_it_was_given() {
        let name = || std::thread::current().name().map(str::to_owned);
        assert_eq!(spawn(Role::Vcpu, "vcpu0", name).unwrap().join().unwrap().as_deref(), Some("vcpu0"));
        let scoped = std::thread::scope(|scope| {
            spawn_scoped(scope, Role::Loader, "loader", name).unwrap().join().unwrap()
        });
        assert_eq!(scoped.as_deref(), Some("loader"));
    }

    /// Every source file of the program below `folder`, but those of tests.
    fn sources(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            let name = entry.file_name().into_string().unwrap();
            if name.starts_with("test") || name.ends_with("_tests.rs") || name == "speed.rs" {
                continue;
            } else if path.is_dir() {
                sources(&path, found);
            } else if name.ends_with(".rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text.split("#[cfg(test)]\nmod ").next().unwrap().to_owned()));
            }
        }
    }

    #[test]
    fn no_thread_is_born_anywhere_else() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut found = Vec::new();
        ["src", "devices/src", "virtio/src", "boot/src"]
            .iter()
            .for_each(|of| sources(&root.join(of), &mut found));
        assert!(found.len() > 150, "{}", found.len());
        for (path, text) in found.iter().filter(|(path, _)| !path.ends_with("devices/src/thread.rs")) {
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let code: String = code.flat_map(str::split_whitespace).collect();
            let others = ["thread::Builder", "scope.spawn(", "std::thread::spawn("];
            let other = others.iter().find(|other| code.contains(*other));
            let without_role = code.split("thread::spawn(").skip(1).any(|call| !call.starts_with("Role::"));
            assert!(other.is_none() && !without_role, "{}: {other:?}", path.display());
        }
    }
}
