use super::super::config::{ConfigSpace, Identity};
use super::super::testing::{TestMsi, TestMsiAllocator};
use super::*;
use crate::irq::Irq;
use proptest::prelude::*;

struct Rig {
    config: ConfigSpace,
    msix: Msix,
    host: Arc<TestMsiAllocator>,
}

const BAR: BarIndex = BarIndex::new(0).unwrap();
const LAYOUT: MsixLayout = MsixLayout { bar: BAR, table: 0, pending: 0x800 };

fn identity() -> Identity {
    Identity { vendor: 1, device: 2, revision: 0, class: 0xff_0000, subsystem_vendor: 0, subsystem: 0 }
}

fn rig(vectors: u16) -> Rig {
    let mut config = ConfigSpace::new(identity());
    let host = Arc::new(TestMsiAllocator::default());
    let allocator: Arc<dyn MsiAllocator> = host.clone();
    let msix = Msix::new(&mut config, vectors, LAYOUT, &allocator).unwrap();
    let mut rig = Rig { config, msix, host };
    rig.command(reg::COMMAND_MEMORY | reg::COMMAND_MASTER);
    rig
}

impl Rig {
    fn control(&mut self, value: u16) {
        let at = self.msix.control;
        self.config.guest_write(at, &value.to_le_bytes());
        self.msix.config_written(&self.config, &(at..at + 2));
    }
    fn command(&mut self, value: u16) {
        self.config.guest_write(reg::COMMAND, &value.to_le_bytes());
        self.msix.config_written(&self.config, &(reg::COMMAND..reg::COMMAND + 2));
    }
    fn set(&mut self, vector: u64, address: u64, data: u32, masked: bool) {
        self.msix.write(vector * 16, &address.to_le_bytes());
        let rest = u64::from(data) | u64::from(masked) << 32;
        self.msix.write(vector * 16 + 8, &rest.to_le_bytes());
    }
    fn mask(&mut self, vector: u64, masked: bool) {
        self.msix.write(vector * 16 + 12, &u32::from(masked).to_le_bytes());
    }
    fn trigger(&self, vector: u16) {
        self.msix.vector(vector).unwrap().trigger().unwrap();
    }
    fn pending(&self) -> u64 {
        let mut bits = [0; 8];
        self.msix.read(0x800, &mut bits);
        u64::from_le_bytes(bits)
    }
}

#[test]
fn a_message_is_delivered_only_enabled_and_unmasked() {
    let mut rig = rig(2);
    rig.trigger(0);
    assert_eq!(rig.pending(), 0, "with MSI-X off nothing is owed");
    rig.control(CONTROL_ENABLE | CONTROL_MASK_ALL);
    assert!(rig.host.all().is_empty(), "an unused vector costs the host nothing");
    rig.set(0, 0xfee0_1000, 0x41, false);
    rig.trigger(0);
    assert_eq!(rig.pending(), 1);
    rig.control(CONTROL_ENABLE);
    assert_eq!(rig.pending(), 0);
    let irqs = rig.host.all();
    assert_eq!(irqs.len(), 1);
    assert_eq!(irqs[0].delivered(), [(0xfee0_1000, 0x41)], "delivered on unmask");
    rig.trigger(0);
    rig.mask(0, true);
    rig.trigger(0);
    rig.trigger(0);
    assert_eq!((irqs[0].delivered().len(), rig.pending()), (2, 1));
    rig.mask(0, false);
    assert_eq!((irqs[0].delivered().len(), rig.pending()), (3, 0), "two triggers, one pending bit");
}

#[test]
fn a_function_that_is_no_bus_master_sends_no_message_until_it_is_one() {
    let mut rig = rig(1);
    rig.control(CONTROL_ENABLE);
    rig.set(0, 0xfee0_1000, 0x41, false);
    rig.command(reg::COMMAND_MEMORY);
    rig.trigger(0);
    rig.control(CONTROL_ENABLE | CONTROL_MASK_ALL);
    rig.control(CONTROL_ENABLE);
    let irqs = rig.host.all();
    assert_eq!((irqs[0].delivered_count(), rig.pending()), (0, 1), "owed, not sent");
    rig.command(reg::COMMAND_MEMORY | reg::COMMAND_MASTER);
    assert_eq!((irqs[0].delivered_count(), rig.pending()), (1, 0));
}

#[test]
fn masking_alone_changes_no_route() {
    let mut rig = rig(1);
    rig.control(CONTROL_ENABLE);
    rig.set(0, 0xfee0_0000, 1, false);
    for _ in 0..10 {
        rig.mask(0, true);
        rig.mask(0, false);
    }
    let irq = rig.host.all().remove(0);
    assert_eq!(irq.routes_set(), 1);
    rig.mask(0, true);
    rig.set(0, 0xfee0_2000, 2, true);
    assert_eq!(irq.routes_set(), 1, "a masked vector's new message waits");
    rig.trigger(0);
    rig.mask(0, false);
    assert_eq!(irq.routes_set(), 2);
    assert_eq!(irq.delivered(), [(0xfee0_2000, 2)]);
}

#[test]
fn disabling_drops_what_was_pending() {
    let mut rig = rig(1);
    rig.control(CONTROL_ENABLE);
    rig.trigger(0);
    assert_eq!(rig.pending(), 1);
    rig.control(0);
    rig.control(CONTROL_ENABLE);
    rig.set(0, 0xfee0_0000, 1, false);
    assert!(rig.host.all()[0].delivered().is_empty());
}

#[test]
fn an_interrupt_that_the_host_refuses_is_an_error_and_comes_when_there_is_room() {
    let mut rig = rig(1);
    rig.host.refuse(true);
    rig.control(CONTROL_ENABLE);
    rig.set(0, 0xfee0_0000, 1, false);
    let vector = rig.msix.vector(0).unwrap();
    assert_eq!(vector.trigger().unwrap_err().kind(), std::io::ErrorKind::QuotaExceeded);
    assert_eq!(rig.pending(), 1);
    rig.host.refuse(false);
    rig.mask(0, false);
    assert_eq!(rig.host.all()[0].delivered().len(), 1);
    let mut other = self::rig(1);
    other.host.refuse(true);
    other.control(CONTROL_ENABLE);
    other.set(0, 0xfee0_0000, 1, false);
    other.host.refuse(false);
    other.trigger(0);
    assert_eq!((other.pending(), other.host.all()[0].delivered().len()), (0, 1), "without the guest's doing");
}

#[test]
fn only_aligned_words_and_double_words_of_the_table_are_written() {
    let mut rig = rig(2);
    let before = rig.msix.state();
    for (offset, len) in
        [(0, 1), (0, 2), (2, 4), (4, 8), (12, 8), (0x800, 8), (0x20, 8), (0x808, 4), (u64::MAX, 4)]
    {
        rig.msix.write(offset, &vec![0xff; len]);
        assert_eq!(rig.msix.state(), before, "{len} bytes at {offset:#x}");
    }
    rig.msix.write(0, &[0xff; 8]);
    rig.msix.write(12, &[0xff; 4]);
    let mut entry = [0; 16];
    rig.msix.read(0, &mut entry);
    assert_eq!(u128::from_le_bytes(entry), 1 << 96 | 0xffff_ffff_ffff_fffc);
}

#[test]
fn impossible_tables_are_refused() {
    let allocator: Arc<dyn MsiAllocator> = Arc::new(TestMsiAllocator::default());
    let new = |vectors, layout| {
        Msix::new(&mut ConfigSpace::new(identity()), vectors, layout, &allocator).map(|_| ())
    };
    assert_eq!(new(0, LAYOUT), Err(MsixError::Vectors(0)));
    assert_eq!(new(2049, LAYOUT), Err(MsixError::Vectors(2049)));
    assert_eq!(new(129, LAYOUT), Err(MsixError::Layout));
    assert_eq!(new(1, MsixLayout { table: 4, ..LAYOUT }), Err(MsixError::Layout));
    assert_eq!(new(128, LAYOUT), Ok(()));
}

#[test]
fn a_saved_table_comes_back_with_its_pending_messages() {
    let mut old = rig(2);
    old.control(CONTROL_ENABLE);
    old.set(0, 0xfee0_0000, 7, true);
    old.trigger(0);
    old.set(1, 0xfee0_1000, 8, false);
    let mut new = rig(2);
    new.config.load(old.config.bytes());
    new.msix.load(&old.msix.state());
    assert_eq!(new.msix.state(), old.msix.state());
    assert!(new.host.all().is_empty(), "silent until it goes");
    new.msix.go(&new.config);
    assert_eq!(new.pending(), 1);
    new.trigger(1);
    new.mask(0, false);
    let mut delivered: Vec<_> =
        new.host.all().iter().flat_map(|irq: &Arc<TestMsi>| irq.delivered()).collect();
    delivered.sort_unstable();
    assert_eq!(delivered, [(0xfee0_0000, 7), (0xfee0_1000, 8)]);
}

#[test]
fn no_trigger_is_lost_while_the_guest_masks_and_unmasks() {
    let mut rig = rig(1);
    rig.control(CONTROL_ENABLE);
    rig.set(0, 0xfee0_0000, 1, false);
    let irq = rig.host.all().remove(0);
    let vector = rig.msix.vector(0).unwrap();
    let thread = std::thread::spawn(move || {
        for _ in 0..2_000 {
            let before = irq.delivered_count();
            vector.trigger().unwrap();
            // The other thread always unmasks again, so this must end.
            while irq.delivered_count() == before {
                std::thread::yield_now();
            }
        }
    });
    while !thread.is_finished() {
        rig.mask(0, true);
        rig.mask(0, false);
    }
    thread.join().unwrap();
}

proptest! {
    /// Against a model: a vector delivers at once when it can, else once when it can again.
    #[test]
    fn masks_and_pending_bits_follow_the_specification(
        ops in prop::collection::vec((0u8..5, 0u16..3, any::<bool>()), 1..200)
    ) {
        let mut rig = rig(3);
        let (mut enabled, mut open) = (false, true);
        let (mut masked, mut pending, mut sent) = ([true; 3], [false; 3], [0usize; 3]);
        for n in 0..3 {
            rig.set(n, 0xfee0_0000, n as u32, true);
        }
        for (op, vector, flag) in ops {
            let v = usize::from(vector);
            match op {
                0 => enabled = flag,
                1 => open = flag,
                2 => masked[v] = flag,
                _ if enabled => pending[v] = true,
                _ => {}
            }
            match op {
                0 | 1 => {
                    let all = if open { 0 } else { CONTROL_MASK_ALL };
                    rig.control(if enabled { CONTROL_ENABLE } else { 0 } | all);
                }
                2 => rig.mask(u64::from(vector), flag),
                _ => rig.trigger(vector),
            }
            for n in 0..3 {
                pending[n] &= enabled;
                if pending[n] && enabled && open && !masked[n] {
                    pending[n] = false;
                    sent[n] += 1;
                }
            }
            let bits = pending.iter().enumerate().map(|(n, p)| u64::from(*p) << n).sum::<u64>();
            prop_assert_eq!(rig.pending(), bits);
        }
        let mut delivered = [0usize; 3];
        for irq in rig.host.all() {
            for (_, data) in irq.delivered() {
                delivered[data as usize] += 1;
            }
        }
        prop_assert_eq!(delivered, sent);
    }
}
