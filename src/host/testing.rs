//! For the tests of what files keep.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;

/// Starts a program that stays between fork(2) and execve(2), with all open files, until the second of these is written to.
pub(super) fn starting() -> (thread::JoinHandle<()>, io::PipeReader, io::PipeWriter) {
    let ((begun, mut begin), (mut end, ended)) = (io::pipe().unwrap(), io::pipe().unwrap());
    let thread = thread::spawn(move || {
        let mut command = Command::new("true");
        // The child has a copy of this end as well, and shall not wait for itself.
        let wait = move || begin.write_all(&[0]).and_then(|()| end.read_exact(&mut [0]));
        // SAFETY: write(2) and read(2) may be called between fork and exec.
        unsafe { command.pre_exec(wait) };
        assert!(command.status().unwrap().success());
    });
    (thread, begun, ended)
}
