//! A guest that waits for a command over the ports of `minivmm run`, as that one's init does, and is its command too. It says `booted` on
//! the console when it boots. What it does is the command's first word:
//!
//! - `say WORD...` and `complain WORD...`: prints the words on standard output or standard error.
//! - `exit N`: ends with that status.
//! - `copy`: copies its input to its output, to the end.
//! - `pack [N]`: sends its input as the archive of its files, and says that a tar has ended with status N.
//! - `show`: shows what is typed at its terminal, and the lines in which the host says the size of it, until a `q`.
//! - `pour N`: prints N times 4096 bytes at its terminal, as Linux does: it runs on only when the device has them.
//! - `folder` and `size`: prints where it is to run, and the size of its terminal.
//! - `environment`, `seed` and `now`: prints what it was told of them.
//! - `count`: prints how many commands this guest has had.
//! - `generation`: prints what the machine says on its port of that name.
//! - `flood` and `chatter`: prints for ever, on standard output or to the host's program.
//! - `hang`: does nothing for ever. `off`: powers off.
//!
//! In the folder `/none` no command runs. With `mute` on the command line it never says that it waits. Freestanding, as the hostile guest, of which it has its platform.
#![no_std]
#![no_main]

#[path = "../hostile/platform.rs"]
#[macro_use]
#[allow(dead_code, reason = "the hostile guest uses the rest")]
mod platform;
#[path = "../hostile/device.rs"]
#[allow(dead_code, reason = "the hostile guest uses the rest")]
mod device;
mod ports;
mod task;

use device::{Device, Kind};
use platform::power_off;
use ports::Ports;
use task::Task;

/// What comparisons of slices become, which a program has from its C library.
///
/// # Safety
/// As everywhere: both have `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(one: *const u8, other: *const u8, len: usize) -> i32 {
    // SAFETY: as the caller says. Volatile, so that it does not become a call of itself.
    let differs = |at| unsafe { one.add(at).read_volatile() != other.add(at).read_volatile() };
    i32::from((0..len).any(differs))
}

fn hang() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

fn number(digits: &[u8]) -> u32 {
    digits.iter().fold(0, |number: u32, digit| number.wrapping_mul(10).wrapping_add(u32::from(digit - b'0')))
}

/// Does it, and returns its status.
fn run(ports: &mut Ports, task: &Task, count: u8) -> u8 {
    let say = |ports: &mut Ports, port: &[u8], text: &[u8]| {
        ports.send(port, text);
        ports.send(port, b"\n");
    };
    let words = |ports: &mut Ports, port: &[u8]| {
        for number in 1..task.count {
            if number > 1 {
                ports.send(port, b" ");
            }
            ports.send(port, task.word(number));
        }
        ports.send(port, b"\n");
    };
    match task.word(0) {
        b"say" => words(ports, ports::OUT),
        b"complain" => words(ports, ports::ERR),
        b"exit" => return number(task.word(1)) as u8,
        b"copy" => ports.copy_input(ports::OUT),
        b"pack" => {
            ports.copy_input(ports::FILES);
            ports.send(ports::RUN, b"packed ");
            ports.send(ports::RUN, if task.word(1).is_empty() { b"0" } else { task.word(1) });
            ports.send(ports::RUN, b"\n");
        }
        b"show" => ports.show(),
        b"pour" => ports.pour(number(task.word(1))),
        b"folder" => say(ports, ports::OUT, task.between(b"workdir='", b"'")),
        b"size" => say(ports, ports::OUT, task.between(b"terminal=1; size='", b"'")),
        b"environment" => say(ports, ports::OUT, task.between(b"environment() { :", b"; }; set --")),
        b"seed" => say(ports, ports::OUT, task.between(b"seed=", b";")),
        b"now" => say(ports, ports::OUT, task.between(b"now=", b";")),
        b"count" => say(ports, ports::OUT, &[b'0' + count]),
        b"generation" => ports.copy_generation(),
        b"flood" => loop {
            ports.send(ports::OUT, &[b'x'; 4096]);
        },
        b"chatter" => loop {
            ports.send(ports::RUN, &[b'x'; 4096]);
        },
        b"hang" => hang(),
        b"off" => power_off(),
        _ => return 127,
    }
    0
}

/// Where ring 3 begins.
#[unsafe(no_mangle)]
extern "C" fn ring3(boot_params: u64) -> ! {
    say!("booted");
    let device = (0..32).filter_map(Device::find).find(|device| device.kind == Kind::Console);
    let mut ports = Ports::open(device.unwrap_or_else(|| panic!("there is no console")));
    if platform::option(boot_params, b"mute").is_some() {
        hang();
    }
    let mut count = 0;
    loop {
        count += 1;
        ports.send(ports::RUN, b"\nready\n");
        let task = Task::read(ports.line());
        if task.between(b"workdir='", b"'") == b"/none" {
            ports.send(ports::RUN, b"nodir\n");
            hang();
        }
        ports.send(ports::RUN, b"up\n");
        let status = run(&mut ports, &task, count);
        let token = task.between(b"token=", b";");
        ports.send(ports::OUT, token);
        ports.send(ports::ERR, token);
        ports.exit(status);
    }
}
