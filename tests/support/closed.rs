//! Waits for a machine that was killed in this process to let go of its image.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Until nothing in this process has `image` open. A machine that is killed waits two seconds for what the host has to end, and a busy host may take
/// longer to let go of its disk.
pub(crate) fn until_closed(image: &Path, limit: Duration) {
    let is_open = || {
        let files = fs::read_dir("/proc/self/fd").unwrap().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file == image)
    };
    let begun = Instant::now();
    while is_open() {
        assert!(begun.elapsed() < limit, "the image of a machine that was killed stays open");
        thread::sleep(Duration::from_millis(1));
    }
}
