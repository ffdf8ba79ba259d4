//! Each guest does on /dev/kvm what the catalogue says of it.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test crate: all of it is test, also outside #[test] functions"
)]

mod harness;

use harness::{End, Machine, Outcome};
use tiny_guest::Guest;

fn run(guest: Guest) -> Outcome {
    Machine::default().run(guest)
}

#[track_caller]
fn powers_off_after(outcome: &Outcome, output: &str) {
    assert_eq!(outcome.output, output, "{:?}", outcome.end);
    assert_eq!(outcome.end, End::PowerOff);
}

#[test]
fn ports_in_every_width() {
    let outcome = run(Guest::Ports);
    powers_off_after(&outcome, "in8=ff in16=ffff in32=ffffffff\nimm32=ffffffff\nscratch=5aa5\ndone\n");
    assert_eq!(outcome.ignored_writes, 6);
}

#[test]
fn string_io_in_every_width() {
    let outcome = run(Guest::StringIo);
    let said = "rep outsb says hello\nand backwards\ninsb=5a5a5a5a5a5a5a5a\nnone=ffffffffffffffff\ndone\n";
    powers_off_after(&outcome, said);
}

#[test]
fn memory_in_every_width() {
    let each = "8=ff 16=ffff 32=ffffffff 64=ffffffffffffffff";
    let outcome = run(Guest::Mmio);
    powers_off_after(&outcome, &format!("low  {each}\nhigh {each}\necam ffffffff\ndone\n"));
    assert_eq!(outcome.ignored_writes, 8);
}

fn echo(guest: Guest) -> String {
    let mut input: Vec<u8> = (0..10_000).map(|n| b' ' + (n % 95) as u8).collect();
    let text = String::from_utf8(input.clone()).unwrap();
    input.push(4);
    let outcome = Machine { input, ..Default::default() }.run(guest);
    assert_eq!(outcome.end, End::PowerOff, "{}", outcome.output);
    let said = outcome.output.strip_prefix(&format!("ready\n{text}\n")).expect("the whole text");
    said.to_owned()
}

#[test]
fn polling_echo_loses_nothing() {
    assert_eq!(echo(Guest::EchoPolled), "echoed=00002710\ndone\n");
}

#[test]
fn echo_by_interrupt_loses_nothing() {
    let said = echo(Guest::EchoInterrupt);
    let interrupts =
        said.strip_prefix("echoed=00002710 interrupts=").unwrap().strip_suffix("\ndone\n").unwrap();
    // At most one for each of the 10,001 bytes; fewer where bytes came while one was served.
    let interrupts = u32::from_str_radix(interrupts, 16).unwrap();
    assert!((1..=10_001).contains(&interrupts), "{interrupts}");
}

#[test]
fn a_guest_has_a_guest_where_the_processor_has_svm() {
    let outcome = Machine { input: b"ab\x04".to_vec(), ..Default::default() }.run(Guest::Svm);
    assert!(
        ["no svm\ndone\n", "ready\nab\nechoed=00000002\ndone\n"].contains(&outcome.output.as_str()),
        "{outcome:?}"
    );
    assert_eq!(outcome.end, End::PowerOff);
}

#[test]
fn timer_wakes_a_halted_cpu() {
    powers_off_after(&run(Guest::TimerWake), "woke\ndone\n");
    powers_off_after(&run(Guest::SlowTimer), "armed\nwoke\ndone\n");
}

#[test]
fn power_button_wakes_a_halted_cpu() {
    let machine = Machine { press_power_button: true, ..Default::default() };
    powers_off_after(&machine.run(Guest::PowerButton), "ready\nbutton\ndone\n");
}

#[test]
fn other_cpus_start() {
    for guest in [Guest::Smp, Guest::SmpX2apic] {
        powers_off_after(&run(guest), "aps=0000\ndone\n");
        let two = Machine { cpus: 2, cmdline: "cpus=2", ..Default::default() };
        powers_off_after(&two.run(guest), "aps=0001\ndone\n");
        let twelve = Machine { cpus: 12, cmdline: "quiet cpus=12 x", ..Default::default() };
        powers_off_after(&twelve.run(guest), "aps=000b\ndone\n");
    }
}

#[test]
fn msix_reaches_a_gate() {
    let machine = Machine { msix: true, ..Default::default() };
    powers_off_after(&machine.run(Guest::Msix), "msix device=03 function=0 bir=0\ninterrupt\ndone\n");
    powers_off_after(&run(Guest::Msix), "no msix\ndone\n");
}

#[test]
fn junk_reaches_everything_and_spares_the_machine() {
    let outcome = Machine { msix: true, ..Default::default() }.run(Guest::Junk);
    assert_eq!(outcome.end, End::PowerOff, "{}", outcome.output);
    assert_eq!(outcome.output, "\njunk functions=0001 bars=0001\ndone\n");
    // All but the 32 or so accesses that COM1 and the spared ports take.
    assert!(
        (3 * 0x1_0000 - 64..3 * 0x1_0000).contains(&outcome.ignored_writes),
        "{}",
        outcome.ignored_writes
    );
}

#[test]
fn reset_and_panic_and_triple_fault_end_as_they_say() {
    for (guest, end, output) in [
        (Guest::Reset, End::Reset, "resetting\n"),
        (Guest::KernelPanic, End::Reset, "Kernel panic - not syncing: test\n"),
        (Guest::Pvpanic, End::Panicked, "panicking\n"),
        (Guest::Mute, End::Reset, ""),
        (Guest::TripleFault, End::TripleFault, "faulting\n"),
    ] {
        let outcome = run(guest);
        assert_eq!((outcome.end, outcome.output.as_str()), (end, output));
    }
}

#[test]
fn obedient_guest_obeys() {
    let panic = "Kernel panic - not syncing: test\n";
    for (input, end, said) in
        [("xr", End::Reset, ""), ("k", End::Reset, panic), ("abcq", End::PowerOff, "done\n")]
    {
        let outcome = Machine { input: input.into(), ..Default::default() }.run(Guest::Obedient);
        assert_eq!((outcome.end, outcome.output), (end, format!("ready\n{said}")));
    }
}

#[test]
fn halt_and_busy_loop_stay() {
    for (guest, said) in
        [(Guest::Halt, "halting\n"), (Guest::Busy, "spinning\n"), (Guest::Pvpanic, "survived\n")]
    {
        let outcome =
            Machine { stop_after: Some(said), pvpanic_returns: true, ..Default::default() }.run(guest);
        assert_eq!(outcome.end, End::Stopped);
        assert!(outcome.output.ends_with(said));
    }
}

#[test]
fn boot_facts_are_those_of_boot_params() {
    let outcome = Machine { cmdline: "console=ttyS0 quiet", ..Default::default() }.run(Guest::BootFacts);
    let said = "e820=03 ram=000000000039fc00\ncmdline=console=ttyS0 quiet\n\
        initrd=003a0000 size=00001234 begins=74696e7974657374\nrsdp=000e0000 found\ndone\n";
    powers_off_after(&outcome, said);
}

#[test]
fn clock_is_read_and_its_absence_seen() {
    let machine = Machine { clock: true, ..Default::default() };
    powers_off_after(&machine.run(Guest::Time), "rtc=1999-12-31 23:59:59 b=02\ndone\n");
    powers_off_after(&run(Guest::Time), "rtc=absent\ndone\n");
}

#[test]
fn pvh_entry_finds_its_start_info() {
    let outcome = Machine { cmdline: "quiet", ..Default::default() }.run(Guest::Pvh);
    powers_off_after(
        &outcome,
        "magic=336ec578 entries=00000002 modules=00000001 rsdp=000e0000\ncmdline=quiet\ndone\n",
    );
}

#[test]
fn flood_prints_a_quarter_of_a_megabyte() {
    let outcome = run(Guest::Flood);
    let lines = (0..4096).map(|number| format!("{number:08x}{}\n", ".".repeat(55)));
    powers_off_after(&outcome, &lines.chain(["done\n".to_owned()]).collect::<String>());
}
