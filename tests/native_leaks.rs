//! Machines that come and go leave nothing behind. Alone in its file: it counts what the whole process has.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say so by a panic")]

#[path = "support/embedded.rs"]
mod embedded;

use embedded::start;
use tiny_guest::Guest;

/// Threads, open descriptors, memory mappings and the KiB of them of this process.
fn count() -> [usize; 4] {
    let entries = |path: &str| std::fs::read_dir(path).unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let size = size.trim().trim_end_matches(" kB").parse().unwrap();
    [entries("/proc/self/task"), entries("/proc/self/fd"), maps, size]
}

#[test]
fn a_thousand_machines_in_a_row_leave_no_thread_descriptor_or_mapping() {
    let folder = tempfile::tempdir().unwrap();
    let machines = |number: usize| {
        for at in 0..number {
            let guest = [Guest::Halt, Guest::Busy, Guest::Ports, Guest::TripleFault][at % 4];
            let (machine, output) = start(&folder, guest);
            if at % 8 < 4 {
                // The others are dropped where they are, before the guest ran or amid its boot.
                assert!(output.wait_for(&["ing\n", "done\n"]));
            }
            drop(machine);
        }
    };
    // The allocator and the thread library keep some of what they once had: the first machines show how much.
    machines(40);
    let before = count();
    machines(1000);
    let after = count();
    assert_eq!(after[..2], before[..2], "threads, descriptors");
    // A machine has more than ten mappings and 5 MiB: what 1000 of them left would be far beyond this.
    assert!(after[2] <= before[2] + 8, "mappings: {before:?}, {after:?}");
    assert!(after[3] <= before[3] + 4096, "address space: {before:?}, {after:?}");
}
