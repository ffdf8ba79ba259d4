//! The meaning of exit statuses of verbs that start no machine, for their manual pages.

use crate::cli::exit::Status;

/// Each status of a verb that starts no machine, with its meaning; `None` for any other verb.
pub(in crate::cli) fn exits(verb: &str) -> Option<Vec<(Status, &'static str)>> {
    let done = match verb {
        "ls" => "the machines are listed, also if there are none",
        "info" | "stats" => "it is printed",
        "stop" => "the machine has ended, by itself or, after the time of `--timeout`, by force",
        "kill" => "the machine has ended",
        "console" => "the machine has ended, or this terminal was detached from it and it runs on",
        "forward" => "the forwards are printed, or one was added or removed",
        "capture" => "the capture has ended, by itself, by Ctrl-C or with its reader or the machine",
        "pause" => "the machine rests",
        "clone" => "the clone runs, or, of a machine that is off, is made",
        "migrate" => "the machine runs at its target, and has ended here",
        "save" => "the machine is saved, and has ended; with `--keep-running` it runs on",
        "snapshot" => "the snapshot is there and the machine goes on, or it is deleted",
        "snapshots" => "the snapshots are listed, also if there are none",
        "revert" => "the machine goes on from the snapshot",
        "resume" => "the machine goes on",
        "reset" => "the machine boots again",
        "doctor" => "machines can be started here",
        "switch" => "the switch has ended as it should, or the verb did its work",
        "disk" => "the verb did its work, and what was checked has no errors",
        "warm" => "the machines are listed, also if there are none, or they are removed",
        "guest-helper" => "it is printed",
        "balloon" => "the guest is asked, and does what it can in its own time",
        _ => return None,
    };
    let failed = match verb {
        "ls" => "the list cannot be printed",
        "guest-helper" => "it cannot be printed",
        "snapshots" => "the list cannot be printed",
        "switch" => "the switch could not run, or none of this name does: what is printed says why",
        "clone" => "there is no clone, and the original is as it was: what is printed says why",
        "disk" => "it was not done, or what was checked has errors: what is printed says why",
        "warm" => "the list cannot be printed, or there is no such machine",
        "doctor" => "none can: what is printed says what is missing",
        "stop" | "kill" => "no machine of this name runs, or it has not ended: what is printed says why",
        _ => "no machine of this name runs, or it was not done: what is printed says why",
    };
    let mut rows =
        vec![(Status::Done, done), (Status::Failed, failed), (Status::Usage, "the command line is wrong")];
    match verb {
        "console" => rows.push((Status::Signal(0), "the command was ended by signal n; the machine runs on")),
        "save" => {
            rows.push((Status::Signal(0), "ended by signal n; the machine is not saved, and as it was"))
        }
        "migrate" => rows.push((
            Status::Signal(0),
            "ended by signal n; the machine has not migrated, and is here as it was",
        )),
        "clone" => rows.push((Status::Signal(0), "ended by signal n; there is no clone")),
        "disk" => rows.push((Status::Signal(0), "ended by signal n; the work was not done")),
        _ => {}
    }
    Some(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_says_its_own_and_none_speaks_of_a_start() {
        use clap::Subcommand;
        let verbs = super::super::NameVerb::augment_subcommands(clap::Command::new("minivmm"));
        assert!(exits("doctor").is_some() && exits("disk").is_some() && exits("run").is_none());
        let of_its_own = |verb: &&str| *verb != "wait";
        let verbs: Vec<_> = verbs.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
        assert!(verbs.len() > 10);
        for verb in verbs.iter().map(String::as_str).filter(of_its_own) {
            let rows = crate::cli::exit::rows_of(Some(verb));
            assert!(rows.len() >= 3, "{verb}");
            for (_, meaning) in rows {
                assert!(
                    !meaning.contains("started") && !meaning.contains("powered off"),
                    "{verb}: {meaning}"
                );
            }
        }
        // Its status is the machine's.
        assert!(exits("wait").is_none());
    }
}
