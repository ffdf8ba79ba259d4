//! Copies a machine while it runs ("pre-copy"): all of its memory, and of the disks that are asked for, then what was written meanwhile,
//! again and again, until the rest of both fits into a short pause; then that rest and the state of everything else.
//!
//! Where it goes is a [`Sink`]: a file, or another host. The log of written pages is switched off in every way out, and a machine that
//! ran before runs on, unless the caller decides otherwise.

mod disks;
mod policy;
mod status;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use disks::CopiedDisk;
use policy::{Convergence, Rate, Throttle, Verdict};
pub use policy::{CopyLimits, CopyProgress, CopyReport, Otherwise};
pub(super) use status::{CopyStatus, Shown};

use super::controls::Controls;
use super::hold::Hold;
#[cfg(feature = "cli")]
use super::saved::SavedState;
use super::saved::{SaveError, SavedParts, Unsaveable};
use super::supervisor::Command;
#[cfg(feature = "cli")]
use crate::host::disk::DiskMark;
use crate::host::disk::{Drive, write_zeros};
use crate::host::soon::soon;
use crate::kvm::memory::{GuestRam, is_zeros};
use crate::spec::Spec;

/// Longest sleep of a copy that has a bandwidth.
const SLEEP: Duration = Duration::from_millis(50);

/// Where a copy of memory goes. Offsets are those of a file that has the machine's ranges of memory one behind the other.
pub(crate) trait Sink {
    /// These bytes are at this offset.
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// So many zeros are at this offset, where there was something else before.
    fn zeros(&mut self, offset: u64, len: usize) -> io::Result<()>;
    /// These bytes are at this offset of the disk of this number.
    fn disk(&mut self, disk: usize, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// So many zeros are at this offset of the disk of this number, where there was something else before.
    fn disk_zeros(&mut self, disk: usize, offset: u64, len: u64) -> io::Result<()>;
    /// What was given so far is on its way.
    fn flush(&mut self) -> io::Result<()>;
}

/// Sparse files, at first without data.
#[derive(Debug)]
pub(super) struct FileSink<'a> {
    memory: &'a File,
    /// By the number of the disk.
    disks: BTreeMap<usize, File>,
}

impl<'a> FileSink<'a> {
    pub(super) fn new(memory: &'a File) -> Self {
        FileSink { memory, disks: BTreeMap::new() }
    }

    /// Takes disk `index`, too.
    pub(super) fn add_disk(&mut self, index: usize, file: File) {
        self.disks.insert(index, file);
    }

    fn disk_file(&self, index: usize) -> io::Result<&File> {
        self.disks.get(&index).ok_or_else(|| ErrorKind::NotFound.into())
    }
}

impl Sink for FileSink<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.memory.write_all_at(bytes, offset)
    }

    fn zeros(&mut self, offset: u64, len: usize) -> io::Result<()> {
        self.memory.write_all_at(&vec![0; len], offset)
    }

    fn disk(&mut self, disk: usize, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk_file(disk)?.write_all_at(bytes, offset)
    }

    fn disk_zeros(&mut self, disk: usize, offset: u64, len: u64) -> io::Result<()> {
        write_zeros(self.disk_file(disk)?, offset, len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Told of progress; says whether to go on.
pub(crate) type Watch<'a> = &'a mut dyn FnMut(&CopyProgress) -> ControlFlow<()>;

/// Who uses the log of written pages of a boot. What one takes from it, no other one gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogUser {
    /// [`Controls::log_writes`].
    Library,
    /// The copy of this number.
    Copy(u64),
}

/// What a copy begins with.
#[derive(Debug)]
pub(super) struct CopyStart {
    /// Memory of the present boot.
    pub(super) ram: Arc<GuestRam>,
    /// What the machine is made of now, or why it cannot be made again.
    pub(super) spec: Result<Spec, Unsaveable>,
}

/// The log of written pages, for as long as it is used.
#[derive(Debug)]
struct MemoryLog<'a> {
    controls: &'a Controls,
    user: LogUser,
}

impl<'a> MemoryLog<'a> {
    /// As [`MemoryLog::begin`], for a while if the copy that has the log is one that nobody wants any more.
    fn begin_soon(controls: &'a Controls) -> Result<(Self, CopyStart), SaveError> {
        let ends = Cell::new(false);
        let begin = || {
            // Asked first: one that is not there any more has let go of the log.
            ends.set(controls.copy.has_cancelled());
            Self::begin(controls)
        };
        soon(begin, |error| matches!(error, SaveError::LogInUse) && ends.get())
    }

    fn begin(controls: &'a Controls) -> Result<(Self, CopyStart), SaveError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let user = LogUser::Copy(NUMBER.fetch_add(1, Ordering::Relaxed));
        let start = controls.ask(|answer| Command::LogWrites(user, true, answer)).recv();
        let start = start.unwrap_or(Err(SaveError::Ended))?;
        Ok((MemoryLog { controls, user }, start))
    }

    fn take(&self) -> Result<Vec<Range<u64>>, SaveError> {
        let taken = self.controls.ask(|answer| Command::TakeWritten(self.user, answer)).recv();
        taken.unwrap_or(Err(SaveError::Ended)).map_err(|error| match error {
            // It was on: a guest that boots again has another memory, and no log.
            SaveError::Log(_) | SaveError::LogInUse => SaveError::Reset,
            error => error,
        })
    }
}

impl Drop for MemoryLog<'_> {
    fn drop(&mut self) {
        let _ = self.controls.ask(|answer| Command::LogWrites(self.user, false, answer)).recv();
    }
}

/// A machine that is paused for the end of its copy. Dropped, it goes on if it ran before.
#[derive(Debug)]
pub(crate) struct PausedCopy<'a> {
    #[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "migrations are the command's"))]
    controls: &'a Controls,
    // First, so that the machine goes on before it is spared the log.
    pause: Pause<'a>,
    /// What was copied of its disks is up to date for as long as it is paused.
    // Before the log of memory: who has that one next begins the logs of the disks anew.
    #[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "migrations are the command's"))]
    disks: Vec<CopiedDisk>,
    _log: MemoryLog<'a>,
    // After the log, which the next copy may then have.
    shown: Shown,
    parts: SavedParts,
    report: CopyReport,
    begin: Instant,
}

impl<'a> PausedCopy<'a> {
    /// So many bytes more were copied in the pause.
    pub(super) fn sent(&mut self, bytes: u64) {
        self.report.sent += bytes;
        self.report.paused_sent += bytes;
    }

    /// What was saved, for as long as the machine is paused.
    pub(crate) fn parts(&self) -> &SavedParts {
        &self.parts
    }

    /// It is still under way, until the machine goes on.
    pub(super) fn shown(&self) -> &Shown {
        &self.shown
    }

    /// Has the machine stay paused, because it may run elsewhere from now on.
    #[cfg(feature = "cli")]
    pub(crate) fn leave(self) -> Result<Leaving<'a>, SaveError> {
        self.controls.leave(Some(self.parts.paused.clone()))?;
        Ok(Leaving(self))
    }

    /// Has the machine go on if it ran before.
    pub(crate) fn go_on(self) -> Result<(SavedParts, CopyReport), SaveError> {
        // What is named first is dropped last.
        let PausedCopy { controls: _, shown: _shown, _log, disks: _disks, pause, parts, mut report, begin } =
            self;
        // From here on what was saved is complete, whatever the machine does.
        let still_paused = parts.paused.strong_count() > 0;
        report.paused_ms = millis(pause.begin.elapsed());
        drop(pause);
        report.total_ms = millis(begin.elapsed());
        if still_paused { Ok((parts, report)) } else { Err(SaveError::Resumed) }
    }
}

/// A machine that may run elsewhere: nobody lets it go on meanwhile.
#[cfg(feature = "cli")]
#[derive(Debug)]
pub(crate) struct Leaving<'a>(PausedCopy<'a>);

#[cfg(feature = "cli")]
impl Leaving<'_> {
    /// It runs elsewhere, and ends here, if somebody has not ended it already.
    pub(crate) fn left(self) -> CopyReport {
        let PausedCopy { controls, pause, mut report, begin, .. } = self.0;
        (report.paused_ms, report.total_ms) = (millis(pause.begin.elapsed()), millis(begin.elapsed()));
        if let Err(error) = controls.end_left() {
            log::info!("the machine runs elsewhere, and was not ended here: {error}");
        }
        report
    }

    /// What its disks are known by, but for those that were copied.
    pub(crate) fn marks(&self) -> Vec<Option<DiskMark>> {
        let mut marks = self.0.parts.marks.clone();
        for disk in &self.0.disks {
            if let Some(mark) = marks.get_mut(disk.index()) {
                *mark = None;
            }
        }
        marks
    }

    /// The state of all but the memory.
    pub(crate) fn state(&self) -> &SavedState {
        &self.0.parts.state
    }

    /// Lets another process have its disks, unless it has copies of them.
    pub(crate) fn release_disks(&self) -> Result<(), SaveError> {
        self.0.controls.disks.release(|index| !self.0.disks.iter().any(|disk| disk.index() == index))
    }

    /// It does not run elsewhere, and goes on here if it ran before. First it takes its disks again, for which it waits until `limit`.
    ///
    /// # Errors
    /// [`SaveError::DiskAway`], and it stays paused.
    pub(crate) fn come_back(self, limit: Duration) -> Result<(), SaveError> {
        let controls = self.0.controls;
        match controls.disks.take_back(None, limit) {
            Ok(()) => controls.leave(None),
            Err(error) => {
                self.stay_paused();
                Err(error)
            }
        }
    }

    /// Nobody knows whether it runs elsewhere. It stays paused until somebody wants it to go on.
    pub(crate) fn stay_paused(self) {
        self.0.controls.copy.set_away(Some(self.0.parts.marks.clone()));
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[derive(Debug)]
struct Pause<'a> {
    _hold: Hold<'a>,
    begin: Instant,
}

/// A copy of memory on its way.
struct Copying<'a, 'b> {
    shown: &'a Shown,
    ram: &'a GuestRam,
    sink: &'a mut dyn Sink,
    watch: Watch<'b>,
    progress: CopyProgress,
    rate: Rate,
    throttle: Throttle,
}

/// A machine that is about to be copied.
#[derive(Debug)]
pub(crate) struct Copy<'a> {
    controls: &'a Controls,
    // Before the log of memory, as in [`PausedCopy`].
    disks: Vec<CopiedDisk>,
    log: MemoryLog<'a>,
    ram: Arc<GuestRam>,
    #[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "migrations are the command's"))]
    spec: Spec,
    shown: Shown,
}

impl<'a> Copy<'a> {
    /// Begins to log what is written. Refused if another copy is under way; one that is about to end is waited for.
    pub(crate) fn begin(controls: &'a Controls) -> Result<Self, SaveError> {
        if controls.copy.away().is_some() {
            return Err(SaveError::Away);
        }
        // First, so that whoever finds the log in use sees whether its user is wanted.
        let shown = controls.copy.show();
        let (log, CopyStart { ram, spec }) = MemoryLog::begin_soon(controls)?;
        Ok(Copy { spec: spec?, controls, log, ram, shown, disks: Vec::new() })
    }

    /// What the machine is made of.
    #[cfg(feature = "cli")]
    pub(crate) fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Bytes of memory.
    pub(crate) fn size(&self) -> u64 {
        self.ram.size()
    }

    /// Has a disk copied, too, which the sink is to know by `index`.
    pub(super) fn add_disk(&mut self, index: usize, id: &str, drive: &Drive) -> Result<u64, SaveError> {
        let disk = CopiedDisk::begin(index, id, drive)?;
        let len = disk.len();
        self.disks.push(disk);
        Ok(len)
    }

    /// Has all disks copied, too, that the guest can write to. Gives the bytes of each of them, by its place in the list of disks.
    #[cfg(feature = "cli")]
    pub(crate) fn add_disks(&mut self) -> Result<Vec<Option<u64>>, SaveError> {
        let controls = self.controls;
        let mut lens = vec![None; self.spec.disk.len()];
        for (index, id, drive) in controls.disks.written() {
            let len = self.add_disk(index, id, &drive)?;
            if let Some(own) = lens.get_mut(index) {
                *own = Some(len);
            }
        }
        Ok(lens)
    }

    /// Copies memory and disks to `sink` until the machine is paused and the sink has all. Waits for the pause until `limit`.
    pub(crate) fn run(
        self,
        sink: &mut dyn Sink,
        limits: CopyLimits,
        limit: Duration,
        watch: Watch<'_>,
    ) -> Result<PausedCopy<'a>, SaveError> {
        // What is named first is dropped last: see [`Copy::begin`].
        let Copy { shown, controls, log, ram, spec: _, mut disks } = self;
        let begin = Instant::now();
        let mut copying = Copying {
            shown: &shown,
            ram: &ram,
            sink,
            watch,
            progress: CopyProgress::default(),
            rate: Rate::default(),
            throttle: Throttle::new(limits.bandwidth, begin),
        };
        let disks_left = disks::left(&mut disks)?;
        copying.round(ranges(ram.used()?), (&mut disks, disks_left), Zeros::Skip)?;
        let mut convergence = Convergence::new(limits);
        let copied: Vec<_> = disks.iter().map(CopiedDisk::index).collect();
        let written = loop {
            // The pause does the same, and has little to do then. First, because it may take long: the guest writes meanwhile.
            controls.disks.sync(|index| !copied.contains(&index))?;
            copying.goes_on()?;
            let written = log.take()?;
            let disks_left = disks::take_written(&mut disks)?;
            let left = len(&written) + disks_left;
            match convergence.after_round(left, copying.rate) {
                Verdict::Again => {
                    copying.round(ram.offsets(&written), (&mut disks, disks_left), Zeros::Tell)?;
                }
                Verdict::Pause => break written,
                Verdict::GiveUp => {
                    let rate = copying.rate.bytes_per_second();
                    return Err(SaveError::Diverges { left, rate, downtime: limits.downtime });
                }
            }
        };
        let pause_begin = Instant::now();
        let pause = Pause { _hold: Hold::begin(controls, limit)?, begin: pause_begin };
        // First, so that pages which this writes are copied, too.
        let parts = controls.ask_to_save(copied).map_err(|error| match error {
            // It was paused here, and somebody has let it go on since.
            SaveError::NotPaused => SaveError::Resumed,
            error => error,
        })?;
        if !Arc::ptr_eq(&parts.ram, &ram) {
            return Err(SaveError::Reset);
        }
        let mut last = written;
        last.extend(log.take()?);
        // Nothing is in flight any more.
        let disks_left = disks::take_written(&mut disks)?;
        copying.throttle = Throttle::new(None, begin);
        let before = copying.progress.sent;
        copying.round(ram.offsets(&merge(last)), (&mut disks, disks_left), Zeros::Tell)?;
        controls.check_paused(&parts.paused)?;
        disks.iter().try_for_each(CopiedDisk::check_length)?;
        let CopyProgress { round, sent, .. } = copying.progress;
        let report = CopyReport { rounds: round, sent, paused_sent: sent - before, ..CopyReport::default() };
        Ok(PausedCopy { controls, pause, shown, _log: log, parts, report, begin, disks })
    }
}

/// What becomes of pages without anything in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Zeros {
    /// The sink has them already.
    Skip,
    Tell,
}

impl Copying<'_, '_> {
    /// Disks first, of which so many bytes are left: of what is in memory, less is written meanwhile then.
    fn round(
        &mut self,
        offsets: Vec<Range<u64>>,
        (disks, disks_left): (&mut [CopiedDisk], u64),
        zeros: Zeros,
    ) -> Result<(), SaveError> {
        self.progress.round += 1;
        self.progress.left = len(&offsets) + disks_left;
        self.progress.total = self.progress.left;
        let (mut bytes, mut busy) = (0u64, Duration::ZERO);
        for disk in disks {
            let (sent, took) = self.disk(disk, zeros)?;
            (bytes, busy) = (bytes + sent, busy + took);
        }
        let ram = self.ram;
        for range in offsets {
            ram.read_pieces(range.start, range.end - range.start, |offset, piece| {
                let (begin, len) = (Instant::now(), piece.len() as u64);
                self.progress.left = self.progress.left.saturating_sub(len);
                if !is_zeros(piece) {
                    self.sink.data(offset, piece)?;
                    busy += begin.elapsed();
                    bytes += len;
                    self.sent(len);
                } else if zeros == Zeros::Tell {
                    self.sink.zeros(offset, piece.len())?;
                }
                self.goes_on()
            })?;
        }
        let begin = Instant::now();
        self.sink.flush()?;
        self.rate.measure(bytes, busy + begin.elapsed());
        self.progress.rate = self.rate.bytes_per_second();
        Ok(())
    }

    /// So many bytes went to the sink: not more than may in their time.
    fn sent(&mut self, bytes: u64) {
        self.progress.sent += bytes;
        let mut delay = self.throttle.delay(bytes, Instant::now());
        // In short sleeps: whoever cancels a slow copy does not wait for its next piece.
        while !delay.is_zero() && !self.shown.is_cancelled() {
            let part = delay.min(SLEEP);
            thread::sleep(part);
            delay -= part;
        }
    }
}

/// Copies the memory of a paused machine to an empty file.
pub(super) fn copy_paused(shown: &Shown, ram: &GuestRam, file: &File) -> Result<(), SaveError> {
    file.set_len(ram.size())?;
    let mut copying = Copying {
        shown,
        ram,
        sink: &mut FileSink::new(file),
        watch: &mut |_| ControlFlow::Continue(()),
        progress: CopyProgress::default(),
        rate: Rate::default(),
        throttle: Throttle::new(None, Instant::now()),
    };
    copying.round(ranges(ram.used()?), (&mut [], 0), Zeros::Skip)
}

fn ranges(parts: Vec<(u64, u64)>) -> Vec<Range<u64>> {
    parts.into_iter().map(|(at, len)| at..at + len).collect()
}

fn len(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Ranges that may overlap, as few as they are in ascending order.
fn merge(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    #[test]
    fn ranges_that_overlap_become_one() {
        assert_eq!(merge(vec![8..12, 0..4, 4..6, 9..10, 20..21]), [0..6, 8..12, 20..21]);
        assert_eq!(merge(Vec::new()), []);
    }

    /// Pages of memory and what a file has of them.
    fn copy(
        ram: &GuestRam,
        file: &File,
        offsets: Vec<Range<u64>>,
        zeros: Zeros,
        most: u64,
    ) -> Result<CopyProgress, SaveError> {
        let mut watch = |progress: &CopyProgress| {
            if progress.sent > most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let mut sink = FileSink::new(file);
        let mut copying = Copying {
            shown: &CopyStatus::default().show(),
            ram,
            sink: &mut sink,
            watch: &mut watch,
            progress: CopyProgress::default(),
            rate: Rate::default(),
            throttle: Throttle::new(None, Instant::now()),
        };
        copying.round(offsets, (&mut [], 0), zeros).map(|()| copying.progress)
    }

    #[test]
    fn round_copies_what_changed_and_zeros_where_there_was_something() {
        let layout = [(0, 2 << 20), (1 << 32, 2 << 20)];
        let ram = GuestRam::new(&layout).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(ram.size()).unwrap();
        let high = (1u64 << 32) + 0x3000;
        for (at, value) in [(0x1000, 1u64), (high, 2)] {
            ram.memory().write_obj(value, GuestAddress(at)).unwrap();
        }
        let first = copy(&ram, &file, ranges(vec![(0, 4 << 20)]), Zeros::Skip, u64::MAX).unwrap();
        assert_eq!((first.round, first.left), (1, 0));
        assert!(first.sent >= 8192 && first.sent <= 2 * (64 << 10), "{first:?}");
        let word = |offset| {
            let mut word = [0; 8];
            file.read_exact_at(&mut word, offset).unwrap();
            u64::from_le_bytes(word)
        };
        assert_eq!([word(0x1000), word((2 << 20) + 0x3000)], [1, 2]);
        ram.memory().write_obj(0u64, GuestAddress(0x1000)).unwrap();
        ram.memory().write_obj(3u64, GuestAddress(high)).unwrap();
        let written = [0x1000..0x2000, high..high + 0x1000];
        copy(&ram, &file, ram.offsets(&written), Zeros::Tell, u64::MAX).unwrap();
        assert_eq!([word(0x1000), word((2 << 20) + 0x3000)], [0, 3]);
        // Only what was named.
        ram.memory().write_obj(4u64, GuestAddress(0x1000)).unwrap();
        copy(&ram, &file, ram.offsets(&written[1..]), Zeros::Tell, u64::MAX).unwrap();
        assert_eq!(word(0x1000), 0);
    }

    #[test]
    fn copy_ends_between_two_pieces_and_names_a_failed_write() {
        let ram = GuestRam::new(&[(0, 4 << 20)]).unwrap();
        (0..1024u64).for_each(|page| ram.memory().write_obj(7u8, GuestAddress(page * 4096)).unwrap());
        let file = tempfile::NamedTempFile::new().unwrap();
        let all = || ranges(vec![(0, 4 << 20)]);
        let error = copy(&ram, file.as_file(), all(), Zeros::Skip, 1 << 20).unwrap_err();
        assert!(matches!(error, SaveError::Cancelled));
        assert!(file.as_file().metadata().unwrap().len() <= (1 << 20) + (64 << 10));
        let read_only = File::open(file.path()).unwrap();
        let error = copy(&ram, &read_only, all(), Zeros::Skip, u64::MAX).unwrap_err();
        assert!(matches!(error, SaveError::Memory { .. }), "{error}");
    }
}
