//! Interrupts into the guest: pins of the I/O APIC (KVM api §4.25), eventfds that KVM turns into messages (§4.75, §4.52), and
//! messages sent by a call (§4.71) where the process has no descriptor left for an eventfd; and doorbells out of it (§4.59).
//!
//! The routing table belongs to this module. KVM takes it only whole, so a change of one message rewrites it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use devices::irq::{Irq, MsiAllocator, MsiIrq};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_msi,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use virtio::transport::Doorbells;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Pins of KVM's I/O APIC; messages get the numbers behind them.
const IOAPIC_PINS: u32 = 24;
/// Messages that a machine can have: KVM routes 4096 numbers (KVM_MAX_IRQ_ROUTES) at most.
const MAX_MESSAGES: usize = 4096 - IOAPIC_PINS as usize;

fn os_error(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

/// An edge on a pin of the I/O APIC, up and down by two calls. An eventfd would cost a call at the start, and KVM a kernel thread
/// for each edge.
#[derive(Debug)]
pub(crate) struct PinIrq {
    /// A terminal's way into a port outlives its VM.
    vm: Weak<VmFd>,
    pin: u32,
}

impl PinIrq {
    pub(super) fn new(vm: &Arc<VmFd>, pin: u32) -> Self {
        PinIrq { vm: Arc::downgrade(vm), pin }
    }
}

impl Irq for PinIrq {
    fn trigger(&self) -> io::Result<()> {
        let Some(vm) = self.vm.upgrade() else { return Ok(()) };
        vm.set_irq_line(self.pin, true).map_err(os_error)?;
        vm.set_irq_line(self.pin, false).map_err(os_error)
    }
}

/// A message: where it goes and what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Message {
    address: u64,
    data: u32,
}

#[derive(Debug, Default)]
struct Routes {
    /// By number less [`IOAPIC_PINS`]; `None` for one that is silent.
    messages: Vec<Option<Message>>,
}

/// Hands out message-signalled interrupts and keeps their routes.
#[derive(Debug)]
pub(crate) struct MsiRouter {
    vm: Arc<VmFd>,
    routes: Mutex<Routes>,
    /// Numbers of descriptors from which on there is no eventfd: those behind are for what cannot do without.
    most: usize,
    /// Whether it was said that there are interrupts without an eventfd.
    warned: AtomicBool,
}

impl MsiRouter {
    pub(super) fn new(vm: Arc<VmFd>, most: usize) -> Arc<Self> {
        Arc::new(MsiRouter { vm, routes: Mutex::default(), most, warned: AtomicBool::new(false) })
    }

    /// An interrupt that is an eventfd.
    fn routed(self: &Arc<Self>) -> io::Result<RoutedMsi> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        if usize::try_from(event.as_raw_fd()).is_ok_and(|number| number >= self.most) {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let mut routes = self.routes();
        let index = routes.messages.len();
        if index >= MAX_MESSAGES {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let gsi = u32::try_from(index).map_err(io::Error::other)? + IOAPIC_PINS;
        self.vm.register_irqfd(&event, gsi).map_err(os_error)?;
        routes.messages.push(None);
        drop(routes);
        Ok(RoutedMsi { router: self.clone(), index, event })
    }

    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes one message and tells KVM the whole table. The lock is held across the call so that two vCPUs that
    /// change two messages leave KVM with both.
    fn set(&self, index: usize, message: Option<Message>) -> io::Result<()> {
        let mut routes = self.routes();
        let slot = routes.messages.get_mut(index).ok_or(io::ErrorKind::InvalidInput)?;
        if *slot == message {
            return Ok(());
        }
        let before = std::mem::replace(slot, message);
        let result = self.publish(&routes);
        if result.is_err()
            && let Some(slot) = routes.messages.get_mut(index)
        {
            *slot = before;
        }
        result
    }

    fn publish(&self, routes: &Routes) -> io::Result<()> {
        let pins = (0..IOAPIC_PINS).map(|pin| {
            let mut entry =
                kvm_irq_routing_entry { gsi: pin, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
            entry.u.irqchip = kvm_bindings::kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin };
            entry
        });
        let messages = (IOAPIC_PINS..).zip(&routes.messages).filter_map(|(gsi, message)| {
            let Message { address, data } = (*message)?;
            let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
            entry.u.msi.address_lo = low_word(address);
            entry.u.msi.address_hi = low_word(address >> 32);
            entry.u.msi.data = data;
            Some(entry)
        });
        let entries: Vec<_> = pins.chain(messages).collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(io::Error::other)?;
        self.vm.set_gsi_routing(&table).map_err(os_error)
    }
}

fn low_word(value: u64) -> u32 {
    #[allow(clippy::cast_possible_truncation, reason = "masked to the low 32 bits")]
    let word = (value & 0xffff_ffff) as u32;
    word
}

/// [`MsiRouter`] as the capability that devices take.
#[derive(Debug, Clone)]
pub(crate) struct KvmMsi(pub(crate) Arc<MsiRouter>);

impl MsiAllocator for KvmMsi {
    /// Asked when the guest opens a vector, perhaps long after its start: what else the process has open by then takes no interrupt away.
    fn allocate(&self) -> io::Result<Arc<dyn MsiIrq>> {
        match self.0.routed() {
            Ok(routed) => Ok(Arc::new(routed)),
            Err(error) => {
                if !self.0.warned.swap(true, Ordering::Relaxed) {
                    log::warn!(
                        "interrupts of devices take longer, as KVM cannot be given an eventfd: {error}"
                    );
                    // A message that is sent needs no route, but where the pins go must not depend on whether there ever was one: KVM's own
                    // table has them at the PIC as well, a table of ours has not.
                    self.0.publish(&self.0.routes())?;
                }
                Ok(Arc::new(SentMsi { vm: self.0.vm.clone(), message: Mutex::new(None) }))
            }
        }
    }
}

#[derive(Debug)]
struct RoutedMsi {
    router: Arc<MsiRouter>,
    index: usize,
    event: EventFd,
}

impl Irq for RoutedMsi {
    fn trigger(&self) -> io::Result<()> {
        self.event.write(1)
    }

    fn event(&self) -> Option<RawFd> {
        Some(self.event.as_raw_fd())
    }
}

impl MsiIrq for RoutedMsi {
    fn set_route(&self, address: u64, data: u32) -> io::Result<()> {
        self.router.set(self.index, Some(Message { address, data }))
    }

    fn clear_route(&self) -> io::Result<()> {
        self.router.set(self.index, None)
    }
}

/// A message that is sent by a call: it needs neither a descriptor nor a route.
#[derive(Debug)]
struct SentMsi {
    vm: Arc<VmFd>,
    message: Mutex<Option<Message>>,
}

impl SentMsi {
    fn message(&self) -> MutexGuard<'_, Option<Message>> {
        self.message.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Irq for SentMsi {
    fn trigger(&self) -> io::Result<()> {
        // Held over the call: once a route has been changed nothing goes by the one before.
        let message = self.message();
        let Some(Message { address, data }) = *message else { return Ok(()) };
        let (address_lo, address_hi) = (low_word(address), low_word(address >> 32));
        match self.vm.signal_msi(kvm_msi { address_lo, address_hi, data, ..Default::default() }) {
            // A message that is to no processor is lost, as that of an eventfd is.
            Ok(_) => Ok(()),
            Err(error) if matches!(error.errno(), libc::EPERM | libc::EINVAL) => Ok(()),
            Err(error) => Err(os_error(error)),
        }
    }
}

impl MsiIrq for SentMsi {
    fn set_route(&self, address: u64, data: u32) -> io::Result<()> {
        *self.message() = Some(Message { address, data });
        Ok(())
    }

    fn clear_route(&self) -> io::Result<()> {
        *self.message() = None;
        Ok(())
    }
}

/// Writes of the guest that signal an eventfd without leaving the kernel. No datamatch and no width: an address is
/// one queue's, and so KVM need not decode the instruction.
#[derive(Debug)]
pub(crate) struct KvmDoorbells(pub(super) Arc<VmFd>);

impl Doorbells for KvmDoorbells {
    fn attach(&self, address: u64, event: &EventFd) -> io::Result<()> {
        self.0.register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch).map_err(os_error)
    }

    fn detach(&self, address: u64, event: &EventFd) -> io::Result<()> {
        self.0.unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch).map_err(os_error)
    }
}
