//! Commands in guests that wait for them: each in a clone of its own, with its own input, output, status and random bytes.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/embedded.rs"]
mod embedded;

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use embedded::LIMIT;
use minivmm::spec::Spec;
use minivmm::{CommandOutput, ExecError, Exit, FreezeError, GuestCommand, Machine, Template};
use tempfile::TempDir;
use tiny_guest::Guest;

fn spec(folder: &TempDir) -> Spec {
    let kernel = folder.path().join("command");
    fs::write(&kernel, tiny_guest::COMMAND).unwrap();
    Spec::new(kernel).with_mem("16".parse().unwrap())
}

fn template() -> Template {
    Template::boot(&spec(&tempfile::tempdir().unwrap()), LIMIT).unwrap()
}

fn run(template: &Template, words: &[&str]) -> CommandOutput {
    template.exec(&GuestCommand::new(words), LIMIT).unwrap()
}

fn text(output: &CommandOutput) -> &str {
    assert_eq!((output.status, &*output.stderr), (0, &b""[..]));
    std::str::from_utf8(&output.stdout).unwrap().trim_end()
}

#[test]
fn command_has_its_output_and_status_and_the_next_one_another_guest() {
    let template = template();
    for _ in 0..3 {
        assert_eq!(text(&run(&template, &["count"])), "1");
    }
    assert_eq!(text(&run(&template, &["say", "it's", "a b"])), "it's a b");
    let output = run(&template, &["complain", "loudly"]);
    assert_eq!((output.status, &*output.stdout, &*output.stderr), (0, &b""[..], &b"loudly\n"[..]));
    assert_eq!(run(&template, &["exit", "7"]).status, 7);
    assert_eq!(run(&template, &["no-such-command"]).status, 127);
}

#[test]
fn input_of_any_length_reaches_the_command_and_ends() {
    let template = template();
    for length in [0, 1, 5_000_000] {
        let bytes: Vec<u8> = (0..length).map(|at: u32| (at / 7).to_le_bytes()[0]).collect();
        let output = template.exec(&GuestCommand::new(["copy"]).input(bytes.clone()), LIMIT).unwrap();
        assert!(output.status == 0 && output.stdout == bytes, "{length}: {}", output.stdout.len());
    }
    // One that does not read it is not held up.
    let output = template.exec(&GuestCommand::new(["exit", "3"]).input(vec![0; 5_000_000]), LIMIT).unwrap();
    assert_eq!(output.status, 3);
}

#[test]
fn each_command_is_told_its_environment_the_time_and_other_random_bytes() {
    let template = template();
    let command = GuestCommand::new(["environment"]).env("A", "one two").env("B", "it's");
    let output = template.exec(&command, LIMIT).unwrap();
    assert_eq!(text(&output), r"; export A='one two'; export B='it'\''s'");
    let seeds: BTreeSet<_> = (0..8).map(|_| text(&run(&template, &["seed"])).to_owned()).collect();
    assert!(seeds.len() == 8 && seeds.iter().all(|seed| seed.len() == 64), "{seeds:?}");
    let now = UNIX_EPOCH + Duration::from_secs(text(&run(&template, &["now"])).parse().unwrap());
    assert!(SystemTime::now().duration_since(now).unwrap() < LIMIT);
}

#[test]
fn many_threads_have_commands_in_clones_of_one_template() {
    let template = template();
    thread::scope(|scope| {
        for thread in 0..4 {
            let template = &template;
            scope.spawn(move || {
                for number in 0..10 {
                    let word = format!("{thread} {number}");
                    assert_eq!(text(&run(template, &["say", &word])), word);
                }
            });
        }
    });
}

#[test]
fn command_that_does_not_end_well_says_why() {
    let template = template();
    let exec = |command: GuestCommand, limit| template.exec(&command, limit).unwrap_err();
    let short = Duration::from_millis(300);
    assert!(matches!(exec(GuestCommand::new(["hang"]), short), ExecError::TimedOut(limit) if limit == short));
    // The limit holds whatever the guest does meanwhile.
    assert!(matches!(exec(GuestCommand::new(["chatter"]), short), ExecError::TimedOut(_)));
    let error = exec(GuestCommand::new(["off"]), LIMIT);
    assert!(matches!(&error, ExecError::Ended(exit) if matches!(**exit, Exit::PoweredOff)), "{error}");
    let error = exec(GuestCommand::new(["flood"]).most_output(1 << 20), LIMIT);
    assert!(matches!(error, ExecError::TooMuchOutput(most) if most == 1 << 20), "{error}");
    assert!(matches!(exec(GuestCommand::new([""; 0]), LIMIT), ExecError::Empty));
    // Exactly as much as is kept.
    let output = template.exec(&GuestCommand::new(["say", "12345"]).most_output(6), LIMIT).unwrap();
    assert_eq!(output.stdout, b"12345\n");
}

#[test]
fn guest_that_takes_no_command_is_told_from_one_that_does() {
    let folder = tempfile::tempdir().unwrap();
    let mute = spec(&folder).with_append("mute=1");
    let error = Template::boot(&mute, Duration::from_millis(300)).unwrap_err();
    assert!(matches!(error, FreezeError::NotReady(_)), "{error}");
    let halts = embedded::spec(&folder, Guest::Ports);
    let error = Template::boot(&halts, LIMIT).unwrap_err();
    assert!(matches!(&error, FreezeError::Ended(exit) if matches!(**exit, Exit::PoweredOff)), "{error}");
    let machine = Machine::builder(&embedded::spec(&folder, Guest::EchoInterrupt)).start().unwrap();
    machine.console().expect("ready\n", LIMIT).unwrap();
    let other = Template::freeze(&machine, LIMIT).unwrap();
    let error = other.exec(&GuestCommand::new(["say"]), LIMIT).unwrap_err();
    assert!(matches!(error, ExecError::TakesNone) && error.to_string().contains("Template::boot"), "{error}");
    // A clone that nobody gives a command waits.
    let clone = template().spawn().unwrap();
    assert!(clone.wait_for(Duration::from_millis(100)).is_none());
}
