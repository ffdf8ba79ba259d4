//! Transport and worker with a device that can go wrong in every way.

use std::num::NonZeroU16;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use devices::component::{Component, State, StateError};
use devices::pci::function::PciFunction;
use serde_json::json;

use super::*;
use crate::DeviceKind;
use crate::config_space::ConfigSpace as DeviceConfig;
use crate::device::{Context, DeviceInfo, TIMER};
use crate::poll::{Epoll, Interest, Token};
use crate::queue::{Chain, QueueFault};
use crate::testing::Guest;
use crate::testing::conformance::{Subject, epoll};
use crate::worker::MakePoller;

/// What the test sees and steers.
#[derive(Debug, Default)]
struct Strings {
    fail_start: AtomicBool,
    panic: AtomicBool,
    /// Work that takes so many milliseconds.
    slow: AtomicU32,
    /// It works as long as this is set.
    held: AtomicBool,
    kicks: AtomicU32,
}

/// Queue 0 is echoed at once; chains of queue 1 are held until its bell rings, or it stops.
#[derive(Debug)]
struct Probe {
    strings: Arc<Strings>,
    config: Arc<DeviceConfig>,
    bell: Arc<EventFd>,
    held: Vec<Chain>,
}

const BELL: Token = 7;
const QUEUES: [NonZeroU16; 2] = [NonZeroU16::new(256).unwrap(), NonZeroU16::new(64).unwrap()];

impl Probe {
    fn new(strings: &Arc<Strings>, bell: &Arc<EventFd>) -> Self {
        let config = DeviceConfig::with_writable(vec![1, 2, 3, 4, 5], vec![0, 0xff, 0x0f]);
        Probe { strings: strings.clone(), config: Arc::new(config), bell: bell.clone(), held: Vec::new() }
    }
}

fn echo(chain: &mut Chain, memory: &Memory) {
    let mut bytes = [0; 64];
    let len = chain.reader(memory).read(&mut bytes);
    chain.writer(memory).write(&bytes[..len]);
}

impl Device for Probe {
    type Poller = Epoll;

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            kind: DeviceKind::Balloon,
            name: "probe".into(),
            features: 0b101,
            queues: QUEUES.to_vec(),
            config: self.config.clone(),
        }
    }

    fn start(&mut self, cx: &mut Context<'_, Epoll>) -> io::Result<()> {
        cx.watch(self.bell.as_raw_fd(), BELL, Interest::Read)?;
        if self.strings.fail_start.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(())
    }

    fn kicked(&mut self, index: u16, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        self.strings.kicks.fetch_add(1, Ordering::SeqCst);
        assert!(!self.strings.panic.load(Ordering::SeqCst), "a test's device breaks down, on purpose");
        std::thread::sleep(Duration::from_millis(self.strings.slow.load(Ordering::SeqCst).into()));
        while self.strings.held.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let Some(queue) = cx.queue(index) else { return Ok(()) };
        if index == 0 {
            // A driver that adds as fast as it is served waits for other devices and commands.
            for _ in 0..queue.size() {
                let Some(mut chain) = queue.pop()? else { break };
                echo(&mut chain, queue.memory());
                queue.complete(chain)?;
            }
            queue.notify()?;
            if queue.enable_kicks()? {
                cx.wake_at(Some(Instant::now()));
            }
            return Ok(());
        }
        while let Some(chain) = queue.pop()? {
            self.held.push(chain);
        }
        queue.enable_kicks().map(|_| ())
    }

    fn ready(&mut self, token: Token, cx: &mut Context<'_, Epoll>) -> Result<(), QueueFault> {
        if token == TIMER {
            return self.kicked(0, cx);
        }
        assert_eq!(token, BELL, "nothing else was asked for");
        let Some(queue) = cx.queue(1) else { return Ok(()) };
        for mut chain in self.held.drain(..) {
            echo(&mut chain, queue.memory());
            queue.complete(chain)?;
        }
        queue.notify()
    }

    /// Half of what it holds it completes, without a notification: as a disk whose requests come back while it stops.
    fn stop(&mut self, cx: &mut Context<'_, Epoll>) {
        let Some(queue) = cx.queue(1) else { return self.held.clear() };
        while let Some(chain) = self.held.pop() {
            if self.held.is_empty() {
                queue.complete(chain).unwrap();
            } else {
                queue.put_back(chain);
            }
        }
    }

    fn save(&self) -> Result<State, StateError> {
        let mut config = [0; 5];
        self.config.read(0, &mut config);
        State::new("probe", 1, &config)
    }

    fn load(&mut self, state: &State) -> Result<(), StateError> {
        self.config.load(0, &state.open::<[u8; 5]>("probe", 1)?);
        Ok(())
    }
}

struct Rig {
    strings: Arc<Strings>,
    bell: Arc<EventFd>,
}

impl Rig {
    fn new() -> Self {
        let bell = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        Rig { strings: Arc::default(), bell }
    }

    fn guest(&self) -> Guest<Epoll> {
        Guest::new(Box::new(Probe::new(&self.strings, &self.bell)), epoll())
    }

    fn started(&self) -> Guest<Epoll> {
        let mut guest = self.guest();
        guest.start(u64::MAX, 16);
        guest
    }
}

impl Subject for Rig {
    type Poller = Epoll;

    fn device(&mut self) -> Box<dyn Device<Poller = Epoll>> {
        Box::new(Probe::new(&self.strings, &self.bell))
    }

    fn poller(&self) -> MakePoller<Epoll> {
        epoll()
    }

    fn work(&mut self, guest: &mut Guest<Epoll>) {
        self.work_without(0, guest);
        self.work_without(1, guest);
    }

    fn work_without(&mut self, broken: usize, guest: &mut Guest<Epoll>) {
        if broken == 1 {
            return assert_eq!(guest.request(0, &[b"hello"], &[2, 30]).1[1][..3], *b"llo");
        }
        let (head, _) = guest.add(1, &[b"hello"], &[10]);
        guest.kick(1);
        let deadline = Instant::now() + Duration::from_secs(60);
        while guest.rings[1].poll_used().is_none_or(|used| used.head != head) {
            assert!(Instant::now() < deadline, "the bell brings the answer");
            self.bell.write(1).unwrap();
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// The chains of queue 1 it takes, and holds.
    fn answers_at_once(&self, queue: usize) -> bool {
        queue == 0
    }
}

crate::testing::conformance!(Rig::new());

#[test]
fn a_device_that_cannot_start_says_so_and_hears_nothing() {
    let rig = Rig::new();
    rig.strings.fail_start.store(true, Ordering::SeqCst);
    let mut guest = rig.started();
    guest.wait_until("it needs a reset", |guest| guest.status() == 0x4f && guest.config_interrupts() == 1);
    assert!(guest.failures.all()[0].1.starts_with("the host refused what it needs: "));
    guest.add(0, &[b"?"], &[1]);
    guest.kick(0);
    // `ready` and `kicked` would fail this test. The worker has looked at both before it obeys a command.
    rig.bell.write(1).unwrap();
    guest.function.quiesce();
    guest.function.go();
    assert_eq!(rig.strings.kicks.load(Ordering::SeqCst), 0);
    rig.strings.fail_start.store(false, Ordering::SeqCst);
    guest.start(0, 16);
    assert_eq!(guest.request(0, &[b"ok"], &[2]).1[0], b"ok");
}

#[test]
fn each_failure_is_told_once_in_words_however_much_goes_wrong() {
    let rig = Rig::new();
    let mut guest = rig.started();
    for round in 1..=20 {
        // Both queues, of which the second finds the device failed already.
        for queue in [0, 1] {
            guest.rings[queue].set_available_index(u16::MAX);
            guest.kick(queue);
        }
        guest.wait_until("it needs a reset", |guest| guest.status() == 0x4f);
        // A device that was stopped has heard all of its kicks.
        guest.function.quiesce();
        guest.function.go();
        let told = guest.failures.all();
        assert_eq!(told.len() as u64, round);
        let (device, reason) = told.last().unwrap();
        assert_eq!(device, "probe");
        assert!(reason.contains("the available ring's index jumped"), "{reason}");
        guest.start(u64::MAX, 16);
    }
    rig.strings.panic.store(true, Ordering::SeqCst);
    guest.add(0, &[b"?"], &[1]);
    guest.kick(0);
    // The status changes before the machine is told.
    guest.wait_until("it is told", |guest| guest.status() == 0x4f && guest.failures.all().len() == 21);
    assert_eq!(guest.failures.all()[20..], [("probe".to_owned(), "its thread has ended".to_owned())]);
}

#[test]
fn the_driver_of_a_device_whose_thread_died_is_told_and_gives_up() {
    let rig = Rig::new();
    let mut guest = rig.started();
    rig.strings.panic.store(true, Ordering::SeqCst);
    guest.add(0, &[b"?"], &[1]);
    guest.kick(0);
    guest.wait_until("it needs a reset", |guest| guest.status() == 0x4f && guest.config_interrupts() == 1);
    let tell = |guest: &mut Guest<Epoll>| guest.function().tell(Message::BalloonStatistics);
    guest.wait_until("the machine is told as well", |guest| tell(guest) == Err(TellError::Gone));
    guest.reset();
    assert_eq!(tell(&mut guest), Err(TellError::Gone));
    guest.set_status(3);
    guest.accept(FEATURE_VERSION_1);
    guest.set_status(0xb);
    assert_eq!(guest.status(), 3, "no features are good enough");
    guest.function.quiesce();
    assert!(matches!(guest.function.save(), Err(StateError::Refused { .. })));
}

#[test]
fn a_driver_that_never_stops_adding_holds_up_neither_reset_nor_pause() {
    let rig = Rig::new();
    let mut guest = rig.started();
    let over = Arc::new(AtomicBool::new(false));
    let mut ring = guest.rings.remove(0);
    guest.rings.insert(0, crate::testing::DriverRing::new(&guest.memory, 0x20_0000, 16, 16));
    let adding = std::thread::spawn({
        let over = over.clone();
        move || {
            ring.set_descriptor(
                0,
                crate::testing::RawDescriptor { address: 0x40_0000, ..Default::default() },
            );
            while !over.load(Ordering::Relaxed) {
                let used = ring.used_index();
                ring.set_available_index(used.wrapping_add(16));
            }
        }
    });
    guest.kick(0);
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(1));
        let began = Instant::now();
        guest.function.quiesce();
        guest.function.go();
        assert!(began.elapsed() < Duration::from_secs(30));
    }
    let began = Instant::now();
    guest.reset();
    assert!(began.elapsed() < Duration::from_secs(30));
    over.store(true, Ordering::Relaxed);
    adding.join().unwrap();
}

#[test]
fn a_driver_writes_the_bits_that_are_its_own() {
    let mut guest = Rig::new().started();
    guest.set_config(0, &[0xff; 5]);
    assert_eq!(guest.config(0, 5), [1, 0xff, 0x0f, 4, 5]);
}

#[test]
fn what_was_completed_while_it_stopped_is_interrupted_for() {
    let rig = Rig::new();
    let mut guest = rig.started();
    guest.wait_until("it was looked at", |_| rig.strings.kicks.load(Ordering::SeqCst) == 2);
    for text in [b"first", b"other"] {
        guest.add(1, &[text], &[5]);
    }
    guest.kick(1);
    guest.wait_until("they are held", |_| rig.strings.kicks.load(Ordering::SeqCst) == 3);
    assert_eq!(guest.interrupts(1), 0);
    guest.function.quiesce();
    assert_eq!((guest.rings[1].used_index(), guest.interrupts(1)), (1, 1));
    guest.function.go();
    guest.rings[1].wait_used();
    guest.wait_until("it has the rest", |_| rig.strings.kicks.load(Ordering::SeqCst) >= 5);
    rig.bell.write(1).unwrap();
    guest.rings[1].wait_used();
}

#[test]
fn a_slow_device_shows_its_reset_until_it_is_over() {
    let rig = Rig::new();
    let mut guest = rig.started();
    rig.strings.slow.store(120, Ordering::SeqCst);
    guest.kick(0);
    guest.wait_until("it is busy", |_| rig.strings.kicks.load(Ordering::SeqCst) >= 1);
    guest.kick(0);
    guest.set_status(0);
    guest.wait_until("the reset is over", |guest| guest.status() == 0);
    rig.strings.slow.store(0, Ordering::SeqCst);
    guest.start(0, 16);
    assert_eq!(guest.request(0, &[b"ok"], &[2]).1[0], b"ok");
}

/// Offset of the window's capability: the last vendor capability with type 5.
fn window(guest: &Guest<Epoll>) -> u16 {
    let function = guest.function();
    let config = function.config();
    let mut at = config.read_u16(0x34) & 0xff;
    while at != 0 {
        if config.read_u16(at) & 0xff == 9 && config.read_u32(at) >> 24 == 5 {
            return at;
        }
        at = config.read_u16(at) >> 8;
    }
    panic!("no window");
}

fn set(guest: &mut Guest<Epoll>, at: u16, data: &[u8]) {
    guest.function().config_mut().guest_write(at, data);
    guest.function().config_written(at..at + data.len() as u16);
}

#[test]
fn the_window_reaches_registers_and_a_load_does_not_use_it() {
    let mut guest = Rig::new().started();
    let at = window(&guest);
    // Device configuration, two bytes at 1; then the status.
    set(&mut guest, at + 12, &2u32.to_le_bytes());
    set(&mut guest, at + 8, &0x2002u32.to_le_bytes());
    assert_eq!(guest.function().config().read_u16(at + 16), 0x0403);
    set(&mut guest, at + 12, &1u32.to_le_bytes());
    set(&mut guest, at + 8, &0x14u32.to_le_bytes());
    assert_eq!(guest.function().config().read_u16(at + 16) & 0xff, 0xf);
    set(&mut guest, at + 16, &[0]);
    assert_eq!(guest.status(), 0, "reset through the window");
    guest.start(0, 16);
    let config = *guest.function().config().bytes();
    guest.function().config_mut().load(&config);
    guest.function().config_written(0..256);
    assert_eq!(guest.status(), 0xf, "the last write is not made again");
    // Misaligned, too wide, of another BAR, behind the end: nothing.
    for (bar, offset, len) in
        [(0u8, 0x15u32, 2u32), (0, 0x14, 8), (0, 0x14, 0), (3, 0x14, 1), (0, u32::MAX, 1)]
    {
        set(&mut guest, at + 4, &[bar]);
        set(&mut guest, at + 12, &len.to_le_bytes());
        set(&mut guest, at + 8, &offset.to_le_bytes());
        set(&mut guest, at + 16, &[0; 4]);
        assert_eq!(guest.status(), 0xf);
    }
}

#[test]
fn the_window_shows_isr_bits_and_leaves_them() {
    let mut guest = Rig::new().started();
    let at = window(&guest);
    guest.function().shared_registers().config();
    for _ in 0..2 {
        set(&mut guest, at + 4, &[0]);
        set(&mut guest, at + 8, &0x1000u32.to_le_bytes());
        set(&mut guest, at + 12, &1u32.to_le_bytes());
        assert_eq!(guest.function().config().read_u16(at + 16) & 0xff, 2);
    }
    assert_eq!(guest.config_interrupts(), 1);
    assert_eq!((guest.isr(), guest.isr()), (2, 0), "a read of the register itself clears it");
}

#[test]
fn without_msi_x_the_isr_register_says_all_whatever_the_vector_numbers() {
    let mut guest = Rig::new().started();
    let mut control = guest.function().config().read_u16(0x34) & 0xff;
    while guest.function().config().read_u16(control) & 0xff != 0x11 {
        control = guest.function().config().read_u16(control) >> 8;
    }
    set(&mut guest, control + 2, &0u16.to_le_bytes());
    guest.function().shared_registers().queue(0);
    assert_eq!(guest.isr(), 1);
    guest.function().shared_registers().config();
    assert_eq!(guest.isr(), 2);
    assert_eq!((guest.interrupts(0), guest.config_interrupts()), (0, 0));
}

#[test]
fn an_interrupt_that_the_host_refuses_is_a_failure_of_the_device() {
    let mut guest = Rig::new().guest();
    guest.refuse_interrupts(true);
    guest.start(u64::MAX, 16);
    guest.function().shared_registers().queue(0);
    assert_eq!(guest.status(), 0x4f);
    guest.function().shared_registers().queue(0);
    let told = guest.failures.all();
    assert_eq!(told.len(), 1);
    assert!(told[0].1.starts_with("the host refused an interrupt: "), "{}", told[0].1);
    // The host has room again: the next interrupt comes, without the guest's doing.
    guest.refuse_interrupts(false);
    guest.function().shared_registers().queue(0);
    assert_eq!(guest.interrupts(0), 1);
}

#[test]
fn states_that_cannot_be_are_refused_and_change_nothing() {
    let mut guest = Rig::new().started();
    guest.function.quiesce();
    let config = *guest.function().config().bytes();
    let good = guest.function.save().unwrap();
    for (field, value, reason) in [
        ("status", json!(7), "status 0x07"),
        ("status", json!(0x10), "status 0x10"),
        ("status", json!(4), "status 0x04"),
        ("accepted", json!(1), "status 0x0f"),
        ("accepted", json!(u64::MAX), "not offered here"),
        ("queues", json!([]), "other queues"),
        ("msix", json!([]), "other interrupt vectors"),
        ("isr", json!(4), "interrupt status"),
        ("generation", json!(256), "damaged"),
        ("device", json!(null), "damaged"),
        ("more", json!(0), "unknown field"),
    ] {
        let mut bad = good.clone();
        bad.data[field] = value;
        let error = guest.load(&config, &bad).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        assert_eq!(guest.function.save().unwrap(), good);
    }
    guest.load(&config, &good).unwrap();
    let mut running = Rig::new().started();
    assert_eq!(running.function.load(&good), Err(StateError::Running { kind: "virtio-pci" }));
}

#[test]
fn a_saved_queue_is_checked_like_a_drivers() {
    let mut guest = Rig::new().started();
    guest.function.quiesce();
    let config = *guest.function().config().bytes();
    let mut state = guest.function.save().unwrap();
    state.data["queues"][0]["config"]["size"] = 77.into();
    guest.load(&config, &state).unwrap();
    guest.function.go();
    assert_eq!(guest.status(), 0x4f);
}

#[test]
fn interrupt_status_and_generation_are_in_the_state() {
    let mut probe = Rig::new();
    let guest = probe.started();
    guest.function().shared_registers().config();
    guest.function().info().config.set(0, &[9]);
    let generation = guest.function().info().config.generation();
    let mut moved = guest.moved(probe.device(), probe.poller());
    assert_eq!(moved.function().info().config.generation(), generation);
    assert_eq!(moved.isr(), 2);
}

#[test]
fn a_driver_is_interrupted_again_for_what_may_have_been_on_its_way() {
    let mut probe = Rig::new();
    let mut guest = probe.started();
    guest.request(0, &[b"hello"], &[10]);
    let mut moved = guest.moved(probe.device(), probe.poller());
    moved.wait_until("an interrupt", |moved| moved.interrupts(0) > 0);
}

#[test]
fn a_running_devices_queues_cannot_be_moved() {
    let mut guest = Rig::new().started();
    let common = |guest: &mut Guest<Epoll>, at: u64| guest.common_u16(at);
    guest.write(0x16, &0u16.to_le_bytes());
    let before = [0x18, 0x1c, 0x20, 0x28, 0x30].map(|at| common(&mut guest, at));
    for at in [0x20u64, 0x28, 0x30] {
        guest.write(at, &u64::MAX.to_le_bytes());
    }
    guest.write(0x18, &64u16.to_le_bytes());
    guest.write(0x1c, &0u16.to_le_bytes());
    assert_eq!([0x18, 0x1c, 0x20, 0x28, 0x30].map(|at| common(&mut guest, at)), before);
    // Vectors that there are not read back as none.
    guest.write(0x1a, &3u16.to_le_bytes());
    assert_eq!(common(&mut guest, 0x1a), 0xffff);
    guest.write(0x10, &2u16.to_le_bytes());
    assert_eq!(common(&mut guest, 0x10), 2);
    // Nor does a queue exist behind the last.
    guest.write(0x16, &2u16.to_le_bytes());
    assert_eq!([0x18, 0x1c, 0x20].map(|at| common(&mut guest, at)), [0; 3]);
}

#[test]
fn a_device_that_is_no_bus_master_goes_on_with_what_it_was_given_meanwhile() {
    let mut guest = Rig::new().started();
    guest.set_bus_master(false);
    guest.add(0, &[b"hello"], &[10]);
    guest.kick(0);
    guest.function.quiesce();
    guest.function.go();
    assert_eq!(guest.rings[0].used_index(), 0);
    guest.set_bus_master(true);
    assert_eq!(guest.rings[0].wait_used().len, 5);
}

#[test]
fn a_device_that_hangs_does_not_hold_its_driver_and_obeys_when_it_can() {
    let mut probe = Rig::new();
    let mut guest = probe.started();
    let kicks = || probe.strings.kicks.load(Ordering::SeqCst);
    guest.wait_until("it looks at both queues once", |_| kicks() == 2);
    probe.strings.held.store(true, Ordering::SeqCst);
    guest.add(0, &[b"hello"], &[10]);
    guest.kick(0);
    guest.wait_until("it hangs", |_| kicks() == 3);
    // Returns while the device hangs, or the test never ends.
    guest.set_bus_master(false);
    guest.set_bus_master(true);
    guest.set_bus_master(false);
    probe.strings.held.store(false, Ordering::SeqCst);
    guest.set_bus_master(true);
    guest.rings[0].wait_used();
    probe.work(&mut guest);
}
