//! The pages of a saved machine's memory that its guest used in its first second: noted beside them, to be read ahead the next time.
//!
//! What is read is hostile, as all of the folder. A note that is of no use is none.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{SavedMachineError, read};
use crate::host::new_file::NewFile;
use crate::image::printable;

/// Its name in the folder.
const WORKING_SET: &str = "working-set";
/// Layout of the file.
const FORMAT: u64 = 1;
const PAGE: u64 = 4096;
/// Most ranges: each is a call of the host.
const MOST_RANGES: usize = 16 << 10;
/// Most bytes of the file; a range has two numbers of up to 20 digits.
const MOST_BYTES: u64 = 1 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct WorkingSet {
    path: PathBuf,
    machine: u32,
    memory: u64,
    ranges: Vec<(u64, u64)>,
    /// Why what is noted is of no use.
    problem: Option<String>,
}

/// The file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Note {
    format: u64,
    /// CRC-32 (IEEE 802.3) of the `machine.json` beside it.
    machine: u32,
    /// Bytes of `memory`.
    memory: u64,
    /// First page and number of pages, in ascending order.
    pages: Vec<(u64, u64)>,
}

impl WorkingSet {
    /// What is noted in `folder` for the machine whose description has this checksum, and whose memory is so long.
    pub(super) fn of(folder: &Path, machine: u32, memory: u64) -> Self {
        let path = folder.join(WORKING_SET);
        let found = match path.symlink_metadata() {
            Ok(_) => ranges(folder, machine, memory),
            // As before the first start.
            Err(_) => Ok(Vec::new()),
        };
        let (ranges, problem) = match found {
            Ok(ranges) => (ranges, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        WorkingSet { path, machine, memory, ranges, problem }
    }

    /// Says in the log why what is noted is left out, if it is. Apart, because a saved machine is opened before there is one.
    pub(crate) fn warn(&self) {
        if let Some(problem) = &self.problem {
            log::warn!("{problem}; the note of what its guest used first is left out, and written anew");
        }
    }

    /// Offsets in `memory` and bytes, in ascending order; nothing if nothing of use is noted.
    pub(crate) fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges
    }

    /// Notes these, in place of those that were.
    pub(crate) fn note(&self, touched: &[(u64, u64)]) -> Result<(), SavedMachineError> {
        let pages = touched.iter().map(|(offset, len)| (offset / PAGE, len.div_ceil(PAGE)));
        let pages = at_most(MOST_RANGES, pages.collect());
        let Self { machine, memory, .. } = *self;
        let note = Note { format: FORMAT, machine, memory, pages };
        let write = || {
            let new = NewFile::create(&self.path)?;
            let mut file: &File = new.file();
            file.write_all(&serde_json::to_vec(&note)?)?;
            new.keep(true)
        };
        write().map_err(|source| SavedMachineError::Unwritable { folder: self.path.clone(), source })
    }
}

/// Reads what is noted.
fn ranges(folder: &Path, machine: u32, memory: u64) -> Result<Vec<(u64, u64)>, SavedMachineError> {
    let damaged = |reason: &str| {
        let reason = printable(&format!("{WORKING_SET}: {reason}"));
        SavedMachineError::Damaged { folder: folder.into(), reason }
    };
    let text = read(folder, WORKING_SET, MOST_BYTES)?;
    let note: Note = serde_json::from_slice(&text).map_err(|error| damaged(&error.to_string()))?;
    if note.format != FORMAT {
        return Err(damaged(&format!("it has format {}, and this minivmm knows {FORMAT}", note.format)));
    }
    if (note.machine, note.memory) != (machine, memory) {
        return Err(damaged("it is of another saved machine"));
    }
    if note.pages.len() > MOST_RANGES {
        return Err(damaged(&format!("it has more than {MOST_RANGES} ranges")));
    }
    let mut behind = 0;
    let mut ranges = Vec::with_capacity(note.pages.len());
    for (first, count) in note.pages {
        let end = first.checked_add(count).filter(|end| *end <= memory / PAGE);
        let Some(end) = end.filter(|_| first >= behind && count > 0) else {
            return Err(damaged("its ranges are not in order, or beyond the memory"));
        };
        ranges.push((first * PAGE, count * PAGE));
        behind = end;
    }
    Ok(ranges)
}

/// As many ranges at most, with the smallest gaps between them filled.
fn at_most(most: usize, ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    let (mut ranges, mut gap) = (ranges, 1);
    while ranges.len() > most {
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for (first, count) in ranges {
            match joined.last_mut() {
                Some((start, length)) if first - (*start + *length) <= gap => {
                    *length = first + count - *start
                }
                _ => joined.push((first, count)),
            }
        }
        (ranges, gap) = (joined, gap * 2);
    }
    ranges
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const MEMORY: u64 = 1 << 20;

    #[test]
    fn note_is_read_as_it_was_written_and_by_its_own_machine_only() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let none = WorkingSet::of(folder, 7, MEMORY);
        assert!(none.ranges().is_empty());
        let touched = [(0, 4096), (0x3000, 0x4000), (MEMORY - 4096, 4096)];
        none.note(&touched).unwrap();
        assert_eq!(WorkingSet::of(folder, 7, MEMORY).ranges(), touched);
        assert!(WorkingSet::of(folder, 8, MEMORY).ranges().is_empty());
        assert!(WorkingSet::of(folder, 7, MEMORY + 4096).ranges().is_empty());
        // Written anew as a whole.
        none.note(&touched[..1]).unwrap();
        assert_eq!(WorkingSet::of(folder, 7, MEMORY).ranges(), &touched[..1]);
        assert_eq!(fs::read_dir(folder).unwrap().count(), 1);
        let error = WorkingSet::of(&folder.join("none"), 7, MEMORY).note(&touched).unwrap_err().to_string();
        assert!(error.contains("none/working-set"), "{error}");
    }

    #[test]
    fn note_with_anything_wrong_in_it_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, path) = (folder.path(), folder.path().join(WORKING_SET));
        let note = |pages: &str| {
            format!("{{\"format\":1,\"machine\":7,\"memory\":{MEMORY},\"pages\":[{pages}]}}").into_bytes()
        };
        let refused = |bytes: &[u8], word: &str| {
            fs::write(&path, bytes).unwrap();
            let error = ranges(folder, 7, MEMORY).unwrap_err().to_string();
            assert!(error.contains(word) && !error.contains(char::is_control), "{error:?}");
            let set = WorkingSet::of(folder, 7, MEMORY);
            assert!(set.ranges().is_empty() && set.problem.is_some_and(|problem| problem.contains(word)));
        };
        for pages in ["[0,0]", "[256,1]", "[255,2]", "[0,257]", "[4,2],[5,1]", "[4,1],[0,1]"] {
            refused(&note(pages), "not in order");
        }
        refused(&note(&format!("[{},1]", u64::MAX)), "beyond");
        refused(&note(&format!("[1,{}]", u64::MAX)), "beyond");
        refused(&note("[0,1],".repeat(MOST_RANGES + 1).trim_end_matches(',')), "more than");
        refused(" ".repeat((1 << 20) + 1).as_bytes(), "longer than");
        refused(
            &note("[0,1]").iter().map(|byte| if *byte == b'1' { b'2' } else { *byte }).collect::<Vec<_>>(),
            "",
        );
        refused(b"{\"format\":2,\"machine\":7,\"memory\":1048576,\"pages\":[]}", "format 2");
        refused(b"\x1b[2J", "working-set");
        let good = note("[0,2],[5,1]");
        for len in 0..good.len() {
            refused(&good[..len], "working-set");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, bad).unwrap();
            // Other pages may be read ahead; none beyond the memory.
            let set = WorkingSet::of(folder, 7, MEMORY);
            assert!(set.ranges().iter().all(|(offset, len)| offset + len <= MEMORY));
        }
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(WorkingSet::of(folder, 7, MEMORY).ranges().is_empty());
        // What is there is replaced, and not written through.
        WorkingSet::of(folder, 7, MEMORY).note(&[(0, 4096)]).unwrap();
        assert_eq!(WorkingSet::of(folder, 7, MEMORY).ranges(), [(0, 4096)]);
    }

    #[test]
    fn more_ranges_than_there_may_be_are_joined_where_the_gaps_are_small() {
        let ranges = vec![(0, 1), (2, 1), (10, 2), (100, 1), (103, 5)];
        assert_eq!(at_most(5, ranges.clone()), ranges);
        assert_eq!(at_most(4, ranges.clone()), [(0, 3), (10, 2), (100, 1), (103, 5)]);
        assert_eq!(at_most(2, ranges.clone()), [(0, 12), (100, 8)]);
        assert_eq!(at_most(1, ranges), [(0, 108)]);
        let folder = tempfile::tempdir().unwrap();
        let memory = 1 << 40;
        let set = WorkingSet::of(folder.path(), 7, memory);
        let every_other: Vec<_> =
            (0..3 * MOST_RANGES as u64).map(|n| (memory - (n + 1) * 8192, 4096)).rev().collect();
        set.note(&every_other).unwrap();
        let read = WorkingSet::of(folder.path(), 7, memory);
        assert!((1..=MOST_RANGES).contains(&read.ranges().len()));
    }
}
