use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::component::{Component, State, StateError};
use proptest::prelude::*;
use serde_json::json;

#[derive(Debug, Default)]
struct Edges(AtomicUsize);

impl Irq for Edges {
    fn trigger(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[derive(Debug, Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl ConsoleSink for Screen {
    fn write(&mut self, bytes: &[u8]) {
        self.0.lock().unwrap().extend(bytes);
    }
}

struct Rig {
    port: Serial,
    input: Arc<ByteQueue>,
    edges: Arc<Edges>,
    screen: Screen,
}

fn rig() -> Rig {
    let (input, edges, screen) =
        (Arc::new(ByteQueue::new(4096)), Arc::new(Edges::default()), Screen::default());
    let port = Serial::new(edges.clone(), Box::new(screen.clone()), input.clone());
    Rig { port, input, edges, screen }
}

impl Rig {
    fn inb(&mut self, register: u8) -> u8 {
        let mut byte = [0];
        assert_eq!(self.port.read(register.into(), &mut byte), None);
        byte[0]
    }
    fn outb(&mut self, register: u8, value: u8) {
        assert_eq!(self.port.write(register.into(), &[value]), None);
    }
    fn type_in(&mut self, bytes: &[u8]) {
        self.input.push(bytes).unwrap();
        self.port.poke();
    }
    fn edges(&self) -> usize {
        self.edges.0.swap(0, Ordering::Relaxed)
    }
    /// The shape of Linux's interrupt handler: serve what IIR names until it names nothing, at most 256 bytes a turn
    /// (8250_port.c, serial8250_handle_irq and serial8250_rx_chars).
    fn linux_interrupt(&mut self) -> Vec<u8> {
        let mut got = Vec::new();
        while self.inb(IIR) & IIR_NONE == 0 {
            let mut budget = 256;
            while self.inb(LSR) & LSR_DATA_READY != 0 && budget > 0 {
                got.push(self.inb(DATA));
                budget -= 1;
            }
        }
        got
    }
}

#[test]
fn output_reaches_the_sink_in_order() {
    let mut rig = rig();
    for byte in b"hello" {
        rig.outb(DATA, *byte);
    }
    assert_eq!(*rig.screen.0.lock().unwrap(), b"hello");
}

#[test]
fn linux_finds_a_16550a_that_interrupts_when_its_transmitter_is_enabled() {
    let mut rig = rig();
    // autoconfig: IER keeps four bits, the loopback test sees RTS and OUT2 as CTS and DCD, the FIFO is there.
    rig.outb(IER, 0xff);
    assert_eq!(rig.inb(IER), 0x0f);
    rig.outb(IER, 0);
    rig.outb(MCR, MCR_LOOP | 0x0a);
    assert_eq!(rig.inb(6) & 0xf0, 0x90);
    rig.outb(MCR, 0x08);
    assert_eq!(rig.inb(6) & 0xb0, 0xb0, "carrier, data set ready, clear to send");
    rig.outb(2, 0x01);
    assert_eq!(rig.inb(IIR) >> 6, 3);
    // startup: THRE test (UART_BUG_THRE) and TX enable test (UART_BUG_TXEN).
    rig.edges();
    rig.outb(IER, IER_SENT);
    assert_eq!(rig.inb(IIR) & 0x3f, IIR_SENT);
    rig.outb(IER, 0);
    rig.outb(IER, IER_SENT);
    assert_eq!(rig.inb(LSR) & 0x60, 0x60);
    assert_eq!(rig.inb(IIR) & 0x3f, IIR_SENT);
    assert_eq!(rig.edges(), 2);
    rig.outb(IER, 0);
    assert_eq!(rig.inb(IIR) & 0x3f, IIR_NONE);
}

#[test]
fn ten_kilobytes_pasted_arrive_whole_through_the_interrupt() {
    for burst in [1usize, 63, 64, 65, 256, 257, 4096] {
        let mut rig = rig();
        rig.outb(IER, IER_RECEIVED);
        let sent: Vec<u8> = (0..10_240u32).map(|n| (n % 251) as u8).collect();
        let mut got = Vec::new();
        for part in sent.chunks(burst) {
            rig.edges();
            rig.type_in(part);
            assert_eq!(rig.edges(), 1, "one interrupt for a burst of {burst}");
            got.extend(rig.linux_interrupt());
        }
        assert_eq!(got, sent, "bursts of {burst}");
    }
}

#[test]
fn input_from_before_the_driver_survives_its_startup_and_shutdown() {
    let mut rig = rig();
    rig.type_in(b"echo early\n");
    for _ in 0..2 {
        rig.outb(2, 0x07); // clear both FIFOs
        for register in [LSR, DATA, IIR, 6] {
            rig.inb(register); // "clear the interrupt registers"
        }
        rig.outb(IER, IER_RECEIVED);
        assert_eq!(rig.edges(), 1);
        rig.outb(IER, 0);
        rig.inb(DATA);
    }
    rig.outb(IER, IER_RECEIVED);
    assert_eq!(rig.linux_interrupt(), b"echo early\n");
}

#[test]
fn a_guest_that_polls_gets_input_without_interrupts() {
    let mut rig = rig();
    rig.type_in(&[b'x'; 100]);
    let mut got = 0;
    for _ in 0..1000 {
        if rig.inb(LSR) & LSR_DATA_READY != 0 {
            assert_eq!(rig.inb(DATA), b'x');
            got += 1;
        }
    }
    assert_eq!((got, rig.edges()), (100, 0));
}

#[test]
fn loopback_returns_the_guests_bytes_and_keeps_the_hosts() {
    let mut rig = rig();
    rig.outb(IER, IER_RECEIVED);
    rig.type_in(&[b'h'; 70]);
    assert_eq!(rig.inb(DATA), b'h');
    rig.outb(MCR, MCR_LOOP);
    rig.type_in(b"late");
    for n in 0..80 {
        rig.outb(DATA, n);
    }
    assert_eq!((rig.inb(DATA), rig.inb(DATA)), (0, 1));
    rig.outb(MCR, 0x08);
    let expected = [&[b'h'; 69][..], b"late"].concat();
    assert_eq!(rig.linux_interrupt(), expected);
    assert!(rig.screen.0.lock().unwrap().is_empty());
}

#[test]
fn both_causes_are_told_one_after_the_other_by_priority() {
    let mut rig = rig();
    rig.outb(IER, IER_RECEIVED | IER_SENT);
    rig.type_in(b"a");
    assert_eq!(rig.inb(IIR), IIR_FIFO | IIR_RECEIVED);
    assert_eq!(rig.inb(IIR), IIR_FIFO | IIR_RECEIVED, "data in the FIFO is a level");
    rig.inb(DATA);
    assert_eq!(rig.inb(IIR), IIR_FIFO | IIR_SENT);
    assert_eq!(rig.inb(IIR), IIR_FIFO | IIR_NONE);
}

#[test]
fn restoring_the_interrupt_mask_with_data_waiting_interrupts_again() {
    let mut rig = rig();
    rig.outb(IER, IER_RECEIVED);
    rig.outb(IER, 0);
    rig.type_in(b"a");
    assert_eq!(rig.inb(IIR) & 0x3f, IIR_NONE);
    assert_eq!(rig.edges(), 0);
    rig.outb(IER, IER_RECEIVED);
    assert_eq!(rig.edges(), 1);
}

#[test]
fn a_wide_access_is_byte_accesses_at_successive_registers() {
    let mut rig = rig();
    rig.port.write(3, &[0x03, 0x0b]); // LCR, MCR
    let mut wide = [0; 4];
    rig.port.read(3, &mut wide);
    assert_eq!(wide, [0x03, 0x0b, 0x60, 0xb0]);
}

impl Rig {
    fn save(&mut self) -> State {
        self.port.quiesce();
        let state = self.port.save().unwrap();
        self.port.go();
        state
    }
}

#[test]
fn a_loaded_port_raises_its_interrupt_and_takes_input_when_it_goes() {
    let mut old = rig();
    old.outb(IER, IER_RECEIVED);
    old.type_in(b"ab");
    let state = old.save();
    let mut new = rig();
    new.port.quiesce();
    new.port.load(&state).unwrap();
    new.type_in(b"c");
    assert_eq!(new.edges(), 0, "quiesced");
    assert_eq!(new.port.save().unwrap(), state);
    new.port.go();
    assert!(new.edges() > 0);
    assert_eq!(new.linux_interrupt(), b"abc");
}

#[test]
fn a_state_that_no_port_has_is_refused_and_changes_nothing() {
    let mut rig = rig();
    let good = rig.save();
    assert_eq!(rig.port.load(&good), Err(StateError::Running { kind: "serial" }));
    assert_eq!(rig.port.save(), Err(StateError::Running { kind: "serial" }));
    rig.port.quiesce();
    for changes in [
        vec![("fifo", json!("00".repeat(65)))],
        vec![("fifo", json!("00".repeat(40))), ("held", json!("00".repeat(40)))],
        vec![("mcr", json!(-1))],
        vec![("polls", json!(null))],
    ] {
        let mut damaged = good.clone();
        for (field, value) in changes {
            damaged.data[field] = value;
        }
        assert!(matches!(rig.port.load(&damaged), Err(StateError::Damaged { .. })), "{damaged:?}");
        assert_eq!(rig.port.save().unwrap(), good);
    }
}

#[test]
fn a_sender_from_another_thread_waits_for_the_guest_and_ends_on_close() {
    let input = Arc::new(ByteQueue::new(16));
    let port = Arc::new(Mutex::new(Serial::new(
        Arc::new(Edges::default()),
        Box::new(Screen::default()),
        input.clone(),
    )));
    let sender = SerialInput::new(port.clone());
    let sent: Vec<u8> = (0..1000u32).map(|n| n as u8).collect();
    let thread = std::thread::spawn({
        let (sender, sent) = (sender.clone(), sent.clone());
        move || sender.send(&sent)
    });
    port.lock().unwrap().write(1, &[IER_RECEIVED]);
    let mut got = Vec::new();
    while got.len() < sent.len() {
        let mut byte = [0];
        let mut port = port.lock().unwrap();
        port.read(LSR.into(), &mut byte);
        if byte[0] & LSR_DATA_READY != 0 {
            port.read(DATA.into(), &mut byte);
            got.push(byte[0]);
        }
    }
    assert_eq!(thread.join().unwrap(), Ok(()));
    assert_eq!(got, sent);

    let stuck = std::thread::spawn(move || sender.send(&[0; 1000]));
    while input.waiting_producers() == 0 {
        std::thread::yield_now();
    }
    input.close();
    assert!(stuck.join().unwrap().is_err());
}

proptest! {
    /// Junk at the registers, in any width, with input coming in: no panic; and once the guest listens outside
    /// loopback, every byte it had not read is there, in order.
    #[test]
    fn junk_loses_no_input(ops in prop::collection::vec((0u64..8, any::<u8>(), 0u8..5), 0..400)) {
        let mut rig = rig();
        let (mut next_in, mut next_out) = (0u8, 0u8);
        let looped = |rig: &mut Rig| rig.inb(MCR) & MCR_LOOP != 0;
        for (register, value, op) in ops {
            match op {
                0 => { rig.port.write(register, &[value]); }
                1 => { rig.port.write(register & 6, &[value, value][..]); }
                2 if register == 0 => {
                    let host = !looped(&mut rig) && rig.inb(LCR) & LCR_DLAB == 0;
                    let before = rig.port.registers.state().in_buffer.len();
                    let byte = rig.inb(DATA);
                    if host && before > 0 && rig.port.registers_ier() & IER_RECEIVED != 0 {
                        prop_assert_eq!(byte, next_out);
                        next_out = next_out.wrapping_add(1);
                    }
                }
                2 => { rig.inb(register as u8); }
                3 => {
                    rig.type_in(&[next_in]);
                    next_in = next_in.wrapping_add(1);
                }
                _ => {
                    rig.port.quiesce();
                    let state = rig.port.save().unwrap();
                    let (irq, screen, input) = (rig.edges.clone(), rig.screen.clone(), rig.input.clone());
                    rig.port = Serial::new(irq, Box::new(screen), input);
                    rig.port.quiesce();
                    rig.port.load(&state).unwrap();
                    rig.port.go();
                    prop_assert!(rig.port.held.len() <= FIFO);
                }
            }
        }
        rig.outb(LCR, 3);
        rig.outb(MCR, 8);
        rig.outb(IER, IER_RECEIVED);
        let rest = rig.linux_interrupt();
        for byte in rest {
            prop_assert_eq!(byte, next_out);
            next_out = next_out.wrapping_add(1);
        }
        prop_assert_eq!(next_out, next_in);
    }
}
