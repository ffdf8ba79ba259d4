//! The private memory of a process.

use std::fs;

/// In KiB, without its guest's memory, of which the host gives as much at a time as it likes: that is what is open to huge
/// pages. Pages of the program's file are not counted, which are its own only while nobody else runs it.
pub(crate) fn private_memory(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut sum, mut mapping, mut guests) = (0, 0, 0);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Anonymous:") => mapping += words.next().unwrap().parse::<u64>().unwrap(),
            // The last line of each.
            Some("VmFlags:") if words.any(|flag| flag == "hg") => {
                mapping = 0;
                guests += 1;
            }
            Some("VmFlags:") => sum += std::mem::take(&mut mapping),
            _ => {}
        }
    }
    assert!(guests > 0 && sum > 0, "{guests} mappings of guest memory, and {sum} KiB besides:\n{text}");
    sum
}
