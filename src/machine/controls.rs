//! What can be asked of a running machine: messages to its supervisor, and looks at what that has published.

use std::fs::File;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use diskimage::Format;
use virtio::balloon::{self, BalloonControl};

#[cfg(feature = "cli")]
use super::Asker;
use super::disks::{DiskState, Disks};
use super::events::Publisher;
use super::hold::Hold;
use super::net_handles::{BoundForward, NetError, NetHandles};
use super::precopy::{
    self, Copy, CopyLimits, CopyProgress, CopyReport, CopyStatus, FileSink, LogUser, PausedCopy, Shown,
};
use super::revert::{Revert, RevertError};
use super::saved::{SaveError, SaveOptions, SavedParts, SavedState, Unsaveable};
use super::stats::UnfinishedStats;
use super::supervisor::{Command, Event, UrgentRequests};
use super::{
    BalloonError, DiskChangeError, Events, Exit, ExitCell, MachineState, PauseError, ResizeError, StartError,
    Stats,
};
use crate::host::capture::{CaptureLimits, CaptureStream};
use crate::host::disk::DiskMark;
use crate::saved::{NewSavedMachine, SavedMachine, SavedMachineError, with_absolute_paths};
use crate::spec::{DiskGrowth, DiskLimitsChange, MemSize, PortForward, Spec};

/// Asks things of a running machine; it may be cloned and sent to other threads. All of it is harmless once the machine
/// has ended.
#[derive(Debug, Clone)]
pub struct Controls {
    pub(super) events: Sender<Event>,
    pub(super) urgent: Arc<UrgentRequests>,
    pub(super) balloon: BalloonControl,
    pub(super) disks: Disks,
    pub(super) nets: NetHandles,
    /// What the guest has.
    pub(super) mem: MemSize,
    pub(super) publisher: Publisher,
    pub(super) outcome: Arc<ExitCell>,
    pub(super) copy: CopyStatus,
    /// There is all that its guest booted from.
    pub(super) can_boot: bool,
}

impl Controls {
    /// The memory balloon: how much of its memory the guest shall leave to the host, how much it does, and what it says of
    /// its memory. [`Controls::set_balloon`] says how much it shall.
    pub fn balloon(&self) -> &BalloonControl {
        &self.balloon
    }

    /// From now on the guest shall leave `mib` MiB of its memory to the host; 0 gives all of it back. This is a wish, and
    /// stays one across reboots: a guest with a driver for the balloon (Linux: the module `virtio_balloon`) follows it in
    /// its own time, one without never does. [`MemoryStats::balloon`](crate::MemoryStats::balloon) says how far it is.
    ///
    /// # Errors
    /// [`BalloonError`], and nothing has changed.
    pub fn set_balloon(&self, mib: u64) -> Result<(), BalloonError> {
        if mib >= self.mem.mib() {
            return Err(BalloonError::NothingLeft { mib, mem: self.mem });
        }
        if self.outcome.has_ended() {
            return Err(BalloonError::Ended);
        }
        balloon::set_target(&self.balloon, mib);
        Ok(())
    }

    /// Has the guest see that the image or block device of a disk has grown, and gives the new size in bytes. `id` is `vda`
    /// for the first disk. A driver follows at once (Linux: the size in `/sys/block/vda/size`); partitions and file systems
    /// are the guest's to grow. A disk that became smaller keeps its size. Waits while the host does not answer for the file.
    ///
    /// # Errors
    /// [`ResizeError`], and the guest sees the size of before.
    pub fn resize_disk(&self, id: &str) -> Result<u64, ResizeError> {
        self.disks.grow(id, DiskGrowth::By(0))
    }

    /// Grows the image of a disk, and has the guest see that, as [`Controls::resize_disk`]; gives the new size in bytes. The new
    /// part reads as zeros and takes no space. An image only grows; a block device is the host's to grow.
    ///
    /// # Errors
    /// [`ResizeError`], and the guest sees the size of before.
    pub fn grow_disk(&self, id: &str, growth: DiskGrowth) -> Result<u64, ResizeError> {
        self.disks.grow(id, growth)
    }

    /// Sets how much a disk may do in a second, from now on and across reboots. What waits goes by the new limits at once.
    ///
    /// # Errors
    /// [`DiskChangeError`].
    pub fn set_disk_limits(&self, id: &str, change: DiskLimitsChange) -> Result<(), DiskChangeError> {
        self.disks.set_limits(id, change).map(drop)
    }

    /// Takes a read-only disk out of its drive: the guest sees a disk of no sectors, and gets an I/O error for what it asks of it.
    /// Returns when the host has ended the requests in flight and the image is closed, so that others may write to it. The drive
    /// stays empty across reboots, until [`Controls::insert_disk`].
    ///
    /// # Errors
    /// [`DiskChangeError`]; but after [`DiskChangeError::InFlight`] the disk is out.
    pub fn eject_disk(&self, id: &str) -> Result<(), DiskChangeError> {
        self.disks.eject(id)
    }

    /// Puts an image or block device into an empty drive. It is opened, checked and locked as at a start, read-only. Waits for
    /// the host for 20 s at most.
    ///
    /// # Errors
    /// [`DiskChangeError`], and the drive is empty.
    pub fn insert_disk(&self, id: &str, path: impl AsRef<Path>) -> Result<DiskState, DiskChangeError> {
        self.disks.insert(id, path.as_ref())
    }

    /// The disks as they are now; none once the machine has ended.
    pub fn disks(&self) -> Vec<DiskState> {
        self.disks.states()
    }

    /// The ports of the host that lead to the guest: those of the spec in its order, then those that were added. None once the
    /// machine has ended.
    pub fn forwards(&self) -> Vec<BoundForward> {
        self.nets.forwards()
    }

    /// Those of this user network or of the only one.
    pub(crate) fn forwards_of(&self, net: Option<&str>) -> Result<Vec<BoundForward>, NetError> {
        self.nets.forwards_of(net)
    }

    /// Opens a port of the host that leads to the guest, until it is removed or the machine ends; port 0 is any that is free.
    /// `net` is the id of a user network, such as `net0`; `None` stands for the only one. The port takes connections when this
    /// returns, also of a machine that rests: they wait until it goes on.
    ///
    /// # Errors
    /// [`NetError`], and nothing has changed.
    pub fn add_forward(&self, net: Option<&str>, forward: PortForward) -> Result<BoundForward, NetError> {
        self.nets.add_forward(net, forward)
    }

    /// Closes a port that leads to the guest; connections through it go on. A forward that was asked for with port 0 is named by
    /// the port that the host gave. Waits for a second at most until the port is free; of a machine that rests, a port of UDP is
    /// free when it goes on.
    ///
    /// # Errors
    /// [`NetError`], and nothing has changed.
    pub fn remove_forward(&self, net: Option<&str>, forward: PortForward) -> Result<BoundForward, NetError> {
        self.nets.remove_forward(net, forward)
    }

    /// Begins a capture of the frames of an interface, whose reader takes it from what this returns.
    pub(crate) fn capture(
        &self,
        net: Option<&str>,
        limits: CaptureLimits,
    ) -> Result<CaptureStream, NetError> {
        self.nets.capture(net, limits)
    }

    /// Waits until the machine has ended, all its console output is out and everything it had is freed. For a writer that does
    /// not take the last output it waits five seconds; then what is left is lost, and the writer's thread stays with it. What
    /// the host has in flight on a disk is waited for as long as it takes, or two seconds once the machine is killed.
    pub fn wait(&self) -> Arc<Exit> {
        loop {
            // Without a deadline it gives an end the first time.
            if let Some(exit) = self.outcome.wait(None) {
                return exit;
            }
        }
    }

    /// As [`Controls::wait`], for at most `limit`; `None` if the machine runs on.
    pub fn wait_for(&self, limit: Duration) -> Option<Arc<Exit>> {
        // A limit beyond what a clock can say is none.
        self.outcome.wait(Instant::now().checked_add(limit))
    }

    /// How the machine ended; `None` as long as it has not. Never waits.
    pub fn exit_status(&self) -> Option<Arc<Exit>> {
        self.outcome.exit()
    }

    /// Presses the power button. What comes of it is up to the guest: it needs a driver for the button (Linux: the
    /// module `button`) and something that acts on it (systemd-logind, acpid).
    pub fn power_button(&self) {
        self.send(Command::PowerButton);
    }

    /// Resets the machine: the guest is stopped where it is and boots again. Resets that are asked for before the machine
    /// has come to the first are one. A clone of what `minivmm run --warm` has kept is not reset, which a warning in the log says: the
    /// initial RAM disk that its guest booted is not there any more.
    pub fn reset(&self) {
        if !self.can_boot {
            log::warn!("{}", StartError::InitrdGone);
        } else if self.urgent.reset() {
            self.send(Command::Reset);
        }
    }

    /// Whether a reset can boot it again.
    #[cfg(feature = "cli")]
    pub(crate) fn can_boot(&self) -> bool {
        self.can_boot
    }

    /// Ends the machine where it is, whatever it is doing: its guest stops at once. A disk that the host does not answer for
    /// is waited for two seconds; then the machine ends without it. A thread of this process stays with that disk, and keeps
    /// its lock, until the host answers.
    pub fn kill(&self) {
        self.urgent.kill();
        self.send(Command::Kill);
    }

    /// Brings the machine to rest: its processors stop between two instructions, then its devices, whose work that is
    /// under way is brought to an end. The guest sees its clock jump when it goes on, to the right time. Pausing a
    /// machine that rests already does nothing.
    ///
    /// # Errors
    /// [`PauseError`]. After [`PauseError::TimedOut`] the machine is still paused later, unless it is resumed before.
    pub fn pause(&self, limit: Duration) -> Result<(), PauseError> {
        self.pause_by(Command::Pause, limit)
    }

    /// Pauses it by this command.
    pub(super) fn pause_by(
        &self,
        command: impl FnOnce(Sender<Result<(), PauseError>>) -> Command,
        limit: Duration,
    ) -> Result<(), PauseError> {
        self.ask(command).recv_timeout(limit).unwrap_or_else(|error| match error {
            RecvTimeoutError::Timeout => Err(PauseError::TimedOut(limit)),
            // Nobody is there to answer.
            RecvTimeoutError::Disconnected => Err(PauseError::Ended),
        })
    }

    /// Lets a machine go on that was paused, or is about to be. It does when this returns. One that boots just now, or waits
    /// for what the host has in flight on a disk, answers after that.
    pub fn resume(&self) {
        if let Err(error) = self.come_home() {
            return log::warn!("{error}");
        }
        // No answer: it has ended.
        let _ = self.ask(Command::Resume).recv();
    }

    /// Saves a paused machine: its state is returned, and the contents of its memory go to `memory`, a file of which nothing
    /// is kept (a memfd will do). Holes in it stand for zeros. What of its disks is on the host stays there.
    ///
    /// It stays paused, and may be resumed or ended then. Together with its disks as they are now, state and memory are all that
    /// [`MachineBuilder::restore`](crate::MachineBuilder::restore) needs.
    ///
    /// # Errors
    /// [`SaveError`]; the machine is as it was.
    pub fn save(&self, memory: &File) -> Result<SavedState, SaveError> {
        let SavedParts { state, ram, paused, .. } = self.ask_to_save(Vec::new())?;
        // Here, and not on a thread of the machine, which does not wait for a file.
        ram.save(memory)?;
        self.check_paused(&paused)?;
        Ok(state)
    }

    /// Saves a paused machine to `folder`, which is there afterwards as a whole or not at all; an empty folder of that name is
    /// taken. [`SavedMachine::open`](crate::SavedMachine::open) reads it. What of the machine's disks is on the host stays there: a machine
    /// that is restored needs them as they are now, so that this one has to end before it writes to them again
    /// ([`Controls::save_and_end`]).
    ///
    /// It stays paused, and may be resumed or ended then.
    ///
    /// # Errors
    /// [`SaveError`]; the machine is as it was, and there is no folder.
    pub fn save_to(&self, folder: impl AsRef<Path>) -> Result<(), SaveError> {
        self.save_with(folder, SaveOptions::new())
    }

    /// As [`Controls::save_to`], with `options`.
    ///
    /// # Errors
    /// [`SaveError`]; the machine is as it was, and there is no folder.
    pub fn save_with(&self, folder: impl AsRef<Path>, options: SaveOptions) -> Result<(), SaveError> {
        let saved = SavedMachineParts::write(self, folder.as_ref(), options, &self.copy.show())?;
        saved.keep().map(drop)
    }

    /// Saves the machine with copies of its disks to `folder`, as [`Controls::save_with`] does, and lets it go on if it ran. It rests while
    /// its disks and the last of its memory are copied, and goes on before they are on the host's medium. Pausing it may take until `limit`.
    ///
    /// # Errors
    /// [`SaveError`]. There is no folder then, and the machine runs if it ran before.
    pub fn snapshot_to(&self, folder: impl AsRef<Path>, limit: Duration) -> Result<(), SaveError> {
        let (options, limits) = (SaveOptions::new().with_disks(), CopyLimits::default());
        let watch = &mut |_: &CopyProgress| ControlFlow::Continue(());
        self.save_running_with(folder, options, limits, limit, watch).map(drop)
    }

    /// Saves the machine of `spec` to `new` while its guest waits for a command, and lets it go on: what its ports have to do with the program
    /// at their other end has not begun. Pausing it may take until `limit`.
    #[cfg(feature = "cli")]
    pub(crate) fn save_waiting(
        &self,
        new: NewSavedMachine,
        spec: Spec,
        limit: Duration,
    ) -> Result<(), SaveError> {
        let hold = Hold::begin(self, limit)?;
        let SavedParts { state, ram, paused, marks, .. } = self.ask_to_save(Vec::new())?;
        precopy::copy_paused(&self.copy.show(), &ram, new.memory())?;
        self.check_paused(&paused)?;
        drop(hold);
        // All that waits for the host's disk is done while the machine runs.
        Ok(new.keep(spec, &state, marks)?)
    }

    /// Copies the disks of a paused machine into a folder which has not got them yet, if that is asked for. Gives the bytes that were copied.
    fn copy_disks(
        &self,
        parts: &SavedParts,
        options: SaveOptions,
        new: &mut NewSavedMachine,
        shown: &Shown,
    ) -> Result<u64, SaveError> {
        let copied = parts.copy_disks(options, new, &|| !shown.is_cancelled());
        // A copy that was given up fails for the reason of that.
        self.check_paused(&parts.paused)?;
        if shown.is_cancelled() { Err(SaveError::Cancelled) } else { copied }
    }

    /// Pauses the machine, for which it waits until `limit`, saves it as [`Controls::save_to`] does and ends it ([`Exit::Saved`]).
    /// Returns when it is about to end; [`Controls::wait`] waits for that.
    ///
    /// # Errors
    /// [`SaveError`]. There is no folder then, and the machine runs if it ran before.
    pub fn save_and_end(&self, folder: impl AsRef<Path>, limit: Duration) -> Result<(), SaveError> {
        self.save_and_end_with(folder, SaveOptions::new(), limit)
    }

    /// As [`Controls::save_and_end`], with `options`.
    ///
    /// # Errors
    /// [`SaveError`]. There is no folder then, and the machine runs if it ran before.
    pub fn save_and_end_with(
        &self,
        folder: impl AsRef<Path>,
        options: SaveOptions,
        limit: Duration,
    ) -> Result<(), SaveError> {
        let folder = folder.as_ref();
        // Before it rests: a cancel that comes while that is waited for is one.
        let shown = self.copy.show();
        let _hold = Hold::begin(self, limit)?;
        let paused = SavedMachineParts::write(self, folder, options, &shown)?.keep()?;
        let ends = self.ask(|answer| Command::EndSaved(paused, answer)).recv();
        ends.unwrap_or(Err(SaveError::Ended)).inspect_err(|_| {
            // It may have written to its disks since.
            let _ = std::fs::remove_dir_all(folder);
        })
    }

    /// Saves the machine to `folder` as [`Controls::save_to`] does, while it runs: it is paused for what its guest has written meanwhile
    /// only, about as long as `limits` say, and goes on. Whoever restores the folder has the machine as it was in that pause. Pausing
    /// may take until `limit`. `watch` is told of progress, and says whether to go on.
    ///
    /// # Errors
    /// [`SaveError`]: [`SaveError::WritableDisk`] if the guest can write to a disk. There is no folder then, and the machine runs on.
    pub fn save_running(
        &self,
        folder: impl AsRef<Path>,
        limits: CopyLimits,
        limit: Duration,
        watch: &mut dyn FnMut(&CopyProgress) -> ControlFlow<()>,
    ) -> Result<CopyReport, SaveError> {
        self.save_running_with(folder, SaveOptions::new(), limits, limit, watch)
    }

    /// As [`Controls::save_running`], with `options`. Raw images are copied as the memory is: while the machine runs, and in the pause what was
    /// written last. Where the file system can share their blocks (btrfs, XFS) the copy takes no time, and is made in the pause, as are copies
    /// of images in other formats.
    ///
    /// # Errors
    /// [`SaveError`]. There is no folder then, and the machine runs on.
    pub fn save_running_with(
        &self,
        folder: impl AsRef<Path>,
        options: SaveOptions,
        limits: CopyLimits,
        limit: Duration,
        watch: &mut dyn FnMut(&CopyProgress) -> ControlFlow<()>,
    ) -> Result<CopyReport, SaveError> {
        let folder = folder.as_ref();
        let writable = self.disks.states().into_iter().find(|disk| !disk.read_only);
        if let Some(disk) = writable.filter(|_| !options.copies_disks()) {
            return Err(SaveError::WritableDisk(disk.id));
        }
        let mut new = NewSavedMachine::create(folder)?;
        let mut copy = Copy::begin(self)?;
        new.memory().set_len(copy.size())?;
        let memory = new.memory().try_clone()?;
        let mut sink = FileSink::new(&memory);
        if options.copies_disks() {
            let begun = self.begin_disks(&mut copy, &mut new, &mut sink);
            begun.map_err(|error| of_folder(folder, error))?;
        }
        let copied = copy.run(&mut sink, limits, limit, watch).and_then(|mut paused| {
            let bytes = self.copy_disks(paused.parts(), options, &mut new, paused.shown())?;
            paused.sent(bytes);
            Ok(paused)
        });
        let (SavedParts { state, spec, marks, .. }, report) =
            copied.and_then(PausedCopy::go_on).map_err(|error| of_folder(folder, error))?;
        // All that waits for the host's disk is done while the machine runs.
        new.keep(spec?, &state, marks)?;
        Ok(report)
    }

    /// Has those disks copied while the machine runs that can be, and take long in its pause.
    fn begin_disks(
        &self,
        copy: &mut Copy<'_>,
        new: &mut NewSavedMachine,
        sink: &mut FileSink<'_>,
    ) -> Result<(), SaveError> {
        for (index, id, drive) in self.disks.written() {
            let written = drive.medium().written_file();
            let written = written.map_err(|source| SaveError::DiskRead { id: id.into(), source })?;
            let Some(file) = written.as_ref() else { continue };
            if file.is_device {
                return Err(Unsaveable::DeviceDisk(id.into()).into());
            }
            // Of another format the file is copied, and not what the guest sees, of which the log is.
            if file.format != Format::Raw || file.base.is_some() {
                continue;
            }
            if let Some(file) = new.begin_disk(index, file)? {
                // As long as what is copied, which somebody may make longer at any time.
                let len = copy.add_disk(index, id, &drive)?;
                file.set_len(len).map_err(|source| SaveError::DiskCopy { id: id.into(), source })?;
                sink.add_disk(index, file);
            }
        }
        Ok(())
    }

    /// The same for `asker`: what it has copied ends when it is gone, as by [`Controls::cancel_copy`].
    #[cfg(feature = "cli")]
    pub(crate) fn asked_by(&self, asker: &Asker) -> Self {
        Controls { copy: self.copy.asked_by(asker.clone()), ..self.clone() }
    }

    /// How far a save or migration of the machine is, if one is under way.
    pub fn copy_progress(&self) -> Option<CopyProgress> {
        self.copy.progress()
    }

    /// Ends the saves, migrations and reverts that are under way: they fail with [`SaveError::Cancelled`] or [`RevertError::Cancelled`], and
    /// the machine is as it was. One that has copied everything is not held up any more.
    pub fn cancel_copy(&self) {
        self.copy.cancel(None);
    }

    /// The same for those alone that whoever asked for them has called so.
    #[cfg(feature = "cli")]
    pub(crate) fn cancel_copy_called(&self, name: &str) {
        self.copy.cancel(Some(name));
    }

    /// Takes the machine back to what it was when [`Controls::snapshot_to`] made `folder`: memory, devices and disks, which are replaced by new
    /// files of the same names. What it did since then is lost. It goes on when this returns, also if it rested before; console, name,
    /// networks and ports stay, connections of a user network do not. The guest gets another VM generation ID.
    ///
    /// All that takes long is done while it still runs. Each disk is the old one or that of the snapshot, whenever this process is killed; if
    /// that happens between two disks, revert again.
    ///
    /// # Errors
    /// [`RevertError`], and the machine runs as before; but with [`RevertError::Ended`] it may have ended because of this.
    pub fn revert_to(&self, folder: impl AsRef<Path>) -> Result<(), RevertError> {
        let saved = SavedMachine::open(folder)?;
        let spec = self.ask(Command::Spec).recv().map_err(|_| RevertError::Ended)?;
        let spec = with_absolute_paths(spec?).map_err(|source| {
            let path = saved.folder().into();
            SavedMachineError::Unreadable { path, source }
        })?;
        let shown = self.copy.show();
        let wanted = || !self.outcome.has_ended() && !shown.is_cancelled();
        let prepared = Revert::prepare(saved, &spec, &wanted);
        if shown.is_cancelled() {
            return Err(RevertError::Cancelled);
        }
        let revert = prepared?;
        drop(shown);
        let answer = self.ask(|answer| Command::Revert(Box::new(revert), answer)).recv();
        answer.unwrap_or(Err(RevertError::Ended))
    }

    /// Whether everything that the guest can write moves with it.
    #[cfg(feature = "cli")]
    pub(crate) fn check_disks_move(&self, options: SaveOptions) -> Result<(), SaveError> {
        self.disks.check_move(options.copies_disks())
    }

    /// A machine that nobody has known of whether it runs elsewhere is let go on by somebody who has looked. It takes its disks first, which
    /// nobody may have written to.
    ///
    /// # Errors
    /// [`SaveError::DiskAway`], and it stays paused.
    pub(crate) fn come_home(&self) -> Result<(), SaveError> {
        #[cfg(feature = "cli")]
        if let Some(marks) = self.copy.away() {
            self.disks.take_back(Some(&marks), Duration::ZERO)?;
            self.leave(None)?;
            self.copy.set_away(None);
        }
        Ok(())
    }

    /// See [`Command::Leave`].
    #[cfg(feature = "cli")]
    pub(super) fn leave(&self, saved: Option<Weak<()>>) -> Result<(), SaveError> {
        self.ask(|answer| Command::Leave(saved, answer)).recv().unwrap_or(Err(SaveError::Ended))
    }

    /// Lets a machine go on that has come from elsewhere, and does not run there any more. Until then it rests, whoever wants it to go on.
    ///
    /// # Errors
    /// It has ended before, and its guest has not run here.
    #[cfg(feature = "cli")]
    pub(crate) fn arrive(&self) -> Result<(), SaveError> {
        self.leave(None)?;
        self.resume();
        self.nets.announce();
        Ok(())
    }

    /// See [`Command::EndLeft`].
    #[cfg(feature = "cli")]
    pub(super) fn end_left(&self) -> Result<(), SaveError> {
        self.ask(Command::EndLeft).recv().unwrap_or(Err(SaveError::Ended))
    }

    /// See [`Command::Save`].
    pub(super) fn ask_to_save(&self, copied: Vec<usize>) -> Result<SavedParts, SaveError> {
        self.ask(|answer| Command::Save(copied, answer)).recv().unwrap_or(Err(SaveError::Ended))
    }

    /// Whether the machine has rested since it was saved.
    pub(super) fn check_paused(&self, paused: &Weak<()>) -> Result<(), SaveError> {
        match paused.upgrade() {
            Some(_) => Ok(()),
            None if self.outcome.has_ended() => Err(SaveError::Ended),
            None => Err(SaveError::Resumed),
        }
    }

    /// Logs from now on which pages of memory the guest and its devices write, or no longer; [`Controls::take_written`] tells.
    /// So memory can be copied while the machine runs: all of it, then what was written meanwhile, again and again. A reset of
    /// the machine ends the log. It costs the guest a fault for each page that it writes.
    ///
    /// # Errors
    /// [`SaveError::Log`], [`SaveError::Ended`]; [`SaveError::LogInUse`] while the machine is copied for a save or a migration.
    pub fn log_writes(&self, on: bool) -> Result<(), SaveError> {
        let log = |answer| Command::LogWrites(LogUser::Library, on, answer);
        self.ask(log).recv().unwrap_or(Err(SaveError::Ended)).map(drop)
    }

    /// Guest addresses of what was written since the last call, or since [`Controls::log_writes`]: whole pages, in ascending order.
    /// What a device has in flight is in it once it is done; a paused machine has nothing in flight.
    ///
    /// # Errors
    /// [`SaveError::Log`] if the log is off, [`SaveError::Ended`].
    pub fn take_written(&self) -> Result<Vec<Range<u64>>, SaveError> {
        let take = |answer| Command::TakeWritten(LogUser::Library, answer);
        self.ask(take).recv().unwrap_or(Err(SaveError::Ended))
    }

    /// What the machine has done since its guest booted last; `None` once it has ended. One that boots just now answers when
    /// it has.
    pub fn stats(&self) -> Option<Stats> {
        self.ask(Command::Stats).recv().ok().map(UnfinishedStats::finish)
    }

    /// Whether the machine runs, rests or has ended.
    pub fn state(&self) -> MachineState {
        if self.outcome.has_ended() { MachineState::Ended } else { self.publisher.state() }
    }

    /// The disks, such as `vda`, for which the host has no room, and which have `on-full=pause`: the machine is paused, or about
    /// to be, and their requests are repeated when it is resumed.
    pub fn full_disks(&self) -> Vec<String> {
        self.publisher.full_disks()
    }

    /// As [`Controls::stats`], but `None` too if the machine takes longer to answer, because it is about to rest or to boot.
    pub(crate) fn stats_within(&self, limit: Duration) -> Option<Stats> {
        self.ask(Command::Stats).recv_timeout(limit).ok().map(UnfinishedStats::finish)
    }

    /// As [`Controls::resume`], but returns after `limit` if the machine does not go on by then; it will.
    pub(crate) fn resume_within(&self, limit: Duration) {
        if let Err(error) = self.come_home() {
            return log::warn!("{error}");
        }
        let _ = self.ask(Command::Resume).recv_timeout(limit);
    }

    /// What happens to the machine from now on.
    pub fn events(&self) -> Events {
        self.publisher.listen()
    }

    /// Where the answer comes, or the end.
    pub(super) fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Receiver<T> {
        let (answer, answered) = mpsc::channel();
        self.send(command(answer));
        answered
    }

    fn send(&self, command: Command) {
        let apart = matches!(command, Command::PowerButton | Command::Pause(_) | Command::Resume(_));
        // Nobody listens any more once the machine has ended, which is what makes it harmless.
        let _ = self.events.send(Event::Command(command));
        if apart {
            self.urgent.other();
        }
    }
}

/// A machine whose state, memory and disks are in the files of a folder that is not finished yet.
#[derive(Debug)]
struct SavedMachineParts {
    new: NewSavedMachine,
    spec: Spec,
    state: SavedState,
    marks: Vec<Option<DiskMark>>,
    paused: Weak<()>,
}

impl SavedMachineParts {
    /// Writes what changes when the machine goes on.
    fn write(
        controls: &Controls,
        folder: &Path,
        options: SaveOptions,
        shown: &Shown,
    ) -> Result<Self, SaveError> {
        // First: what is wrong with the folder is told before anything is written.
        let mut new = NewSavedMachine::create(folder)?;
        let mut parts = controls.ask_to_save(Vec::new())?;
        let spec = std::mem::replace(&mut parts.spec, Err(Unsaveable::Streams))?;
        controls.copy_disks(&parts, options, &mut new, shown)?;
        let SavedParts { state, ram, paused, marks, .. } = parts;
        let copied = precopy::copy_paused(shown, &ram, new.memory());
        let copied = copied.and_then(|()| controls.check_paused(&paused));
        copied.map_err(|error| of_folder(folder, error))?;
        Ok(SavedMachineParts { new, spec, state, marks, paused })
    }

    /// Brings it to the medium, and gives the folder its name. Gives what is gone once the machine does not rest any more.
    fn keep(self) -> Result<Weak<()>, SaveError> {
        self.new.keep(self.spec, &self.state, self.marks)?;
        Ok(self.paused)
    }
}

/// The error with the folder into which the memory should have gone.
fn of_folder(folder: &Path, error: SaveError) -> SaveError {
    match error {
        SaveError::Memory { source } => {
            SavedMachineError::Unwritable { folder: folder.into(), source }.into()
        }
        SaveError::DiskCopy { id: disk, source } => {
            SavedMachineError::Copy { folder: folder.into(), disk, source }.into()
        }
        error => error,
    }
}
