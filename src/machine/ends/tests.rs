//! Plays the table of `docs/exit.md`.

use std::time::Duration;

use super::{Activity, BootLoop, ConsoleId, End, Ends, Line, Sample, TICK, panic_timeout};
use crate::cli::exit::Status;
use crate::machine::{Crash, Exit, GaveUp};

/// A line of the table.
#[derive(Debug)]
struct Row {
    guest: String,
    seen: Vec<String>,
    end: String,
    status: String,
}

fn document() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/exit.md")).unwrap()
}

fn rows() -> Vec<Row> {
    let document = document();
    let (_, table) = document.split_once("<!-- table of ends -->").unwrap();
    let lines = table.lines().skip_while(|line| !line.starts_with("|---"));
    let cells = lines.skip(1).take_while(|line| line.starts_with('|'));
    cells
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            let [guest, seen, end, status] = cells[..] else { panic!("{line}") };
            let seen = seen.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            Row { guest: guest.into(), seen, end: end.into(), status: status.into() }
        })
        .collect()
}

/// What came of a boot.
#[derive(Debug)]
enum Came {
    Nothing,
    End(End),
    Crash,
    Command,
}

/// A boot that plays what is seen.
#[derive(Debug)]
struct Boot {
    ends: Ends,
    now: Duration,
    said: [u64; 2],
    work: u64,
}

impl Boot {
    fn new(seen: &[String]) -> Self {
        let cmdline = seen.iter().find_map(|fact| fact.strip_prefix("cmdline: ")).unwrap_or_default();
        Boot { ends: Ends::new(panic_timeout(cmdline)), now: Duration::ZERO, said: [0; 2], work: 0 }
    }

    fn says(&mut self, console: ConsoleId, text: &str, ends: bool) {
        let said = &mut self.said[usize::from(console == ConsoleId::Hvc0)];
        *said += text.split_whitespace().map(|word| word.len() as u64).sum::<u64>();
        let said = *said;
        if let Some(line) = Line::of(text.as_bytes()).filter(|_| ends) {
            self.ends.line(self.now, console, line, said);
        }
    }

    /// Time passes, in which the guest does this.
    fn passes(&mut self, time: Duration, activity: Activity, works: bool) -> Option<End> {
        let until = self.now + time;
        while self.now < until {
            self.now += TICK;
            self.work += u64::from(works);
            if self.ends.wants_samples() {
                let sample = Sample { said: self.said, work: self.work, activity };
                if let Some(end) = self.ends.sample(self.now, sample) {
                    return Some(end);
                }
            }
        }
        None
    }

    fn sees(&mut self, fact: &str) -> Came {
        let end = match fact {
            "reset" => Some(self.ends.reset(self.now)),
            "triple fault" => match self.ends.triple_fault(self.now) {
                Some(end) => Some(end),
                None => return Came::Crash,
            },
            "power off" => Some(End::PoweredOff),
            "pvpanic 1" => Some(End::Panicked),
            "pvpanic 2" => {
                self.ends.crash_kernel();
                None
            }
            "KVM error" => return Came::Crash,
            "command" => return Came::Command,
            "button" => self.ends.button(),
            _ => self.hears_or_waits(fact),
        };
        end.map_or(Came::Nothing, Came::End)
    }

    fn hears_or_waits(&mut self, fact: &str) -> Option<End> {
        if let Some((console, text)) = fact.split_once([':', '>']) {
            match console {
                "cmdline" => {}
                "ttyS0" | "hvc0" => {
                    let id = if console == "hvc0" { ConsoleId::Hvc0 } else { ConsoleId::Ttys0 };
                    self.says(id, text, fact.as_bytes()[console.len()] == b':');
                }
                _ => panic!("{fact}"),
            }
            return None;
        }
        let words: Vec<&str> = fact.split(' ').collect();
        let (["times", _] | [_, _, "s"]) = words[..] else { panic!("{fact}") };
        if words[0] == "times" {
            return None;
        }
        let time = Duration::from_secs(words[1].parse().unwrap());
        match words[0] {
            "spins" => self.passes(time, Activity::Kernel, false),
            "halts" => self.passes(time, Activity::Halted, false),
            "idles" | "computes" => self.passes(time, Activity::Alive, false),
            "works" => self.passes(time, Activity::Kernel, true),
            // Time stands still, and nothing is looked at.
            "paused" => None,
            _ => panic!("{fact}"),
        }
    }
}

/// How the row ends, in the words of the table.
fn play(row: &Row) -> String {
    let times = row.seen.iter().find_map(|fact| fact.strip_prefix("times "));
    let mut boot_loop = BootLoop::default();
    let mut end = String::new();
    for _ in 0..times.map_or(1, |times| times.parse().unwrap()) {
        let mut boot = Boot::new(&row.seen);
        let mut came = Came::Nothing;
        for fact in &row.seen {
            assert!(
                matches!(came, Came::Nothing) || fact.starts_with("times "),
                "{row:?}: over before {fact}"
            );
            if matches!(came, Came::Nothing) {
                came = boot.sees(fact);
            }
        }
        end = match came {
            Came::Nothing => "runs on".into(),
            Came::Crash => "crashed".into(),
            Came::Command => {
                boot_loop.after_command();
                "boots again".into()
            }
            Came::End(End::PoweredOff) => "powered off".into(),
            Came::End(End::Panicked) => "panicked".into(),
            Came::End(End::GaveUp) => "gave up".into(),
            Came::End(End::Reset) => {
                match boot_loop.after_reset(boot.now, boot.ends.came_up(boot.said.iter().sum())) {
                    Some(_) => return "boot loop".into(),
                    None => "boots again".into(),
                }
            }
        };
    }
    end
}

fn status(end: &str) -> String {
    let exit = match end {
        "runs on" | "boots again" => return "–".into(),
        "powered off" => Exit::PoweredOff,
        "panicked" => Exit::Panicked,
        "gave up" => Exit::GaveUp(GaveUp::Initramfs),
        "boot loop" => Exit::GaveUp(GaveUp::BootLoop { boots: 5 }),
        "crashed" => Exit::Crashed(Crash { vcpu: 0, rip: None, reason: "x".into() }),
        _ => panic!("{end}"),
    };
    Status::of(&exit).unwrap().code().to_string()
}

#[test]
fn each_row_of_the_documents_table_is_so() {
    let rows = rows();
    assert!(rows.len() > 60, "{}", rows.len());
    let wrong: Vec<String> = rows
        .iter()
        .filter_map(|row| {
            let (end, number) = (play(row), status(&row.end));
            (end != row.end || number != row.status).then(|| format!("{}: {end}, {number}", row.guest))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn table_has_a_row_for_each_end() {
    let rows = rows();
    for end in ["powered off", "boots again", "panicked", "gave up", "boot loop", "crashed", "runs on"] {
        assert!(rows.iter().any(|row| row.end == end), "{end}");
    }
}

#[test]
fn document_has_the_exit_statuses_and_the_limits() {
    let document = document();
    assert!(document.contains(&crate::cli::exit::markdown()));
    let boots = format!("| {} boots in a row of less than {} s each |", super::boot_loop::BOOTS, 10);
    assert!(document.contains(&boots), "{boots}");
    assert_eq!(super::SHORT_BOOT.as_secs(), 10);
    for (what, limit) in [
        ("which the kernel prints if it will not reset | ", super::AFTER_LAST_LINE),
        ("without that last line | ", super::PATIENCE),
        ("if no reset follows | ", super::PATIENCE),
        ("to its reset | ", super::GIVING_UP),
    ] {
        let row = format!("{what}{} s", limit.as_secs());
        assert!(document.contains(&row), "{row}");
    }
}

#[test]
fn last_panic_of_the_command_line_counts_and_none_behind_two_dashes() {
    assert_eq!(panic_timeout("console=ttyS0 panic=-1 pci=noearly"), -1);
    assert_eq!(panic_timeout("panic=-1 quiet panic=30"), 30);
    assert_eq!(panic_timeout("quiet -- panic=30"), 0);
    assert_eq!(panic_timeout("panic= panic=x kernel.panic=5 panic_on_oops=1"), 0);
}

#[test]
fn machine_that_was_up_once_starts_to_count_anew() {
    let mut boot_loop = BootLoop::default();
    let second = Duration::from_secs(1);
    for _ in 0..3 {
        for _ in 1..super::boot_loop::BOOTS {
            assert_eq!(boot_loop.after_reset(second, false), None);
        }
        assert_eq!(boot_loop.after_reset(second, true), None);
    }
}
