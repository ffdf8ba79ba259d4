//! The command lines that start a machine, parsed without the definition of everything else, which costs a quarter of a millisecond and
//! the memory of all its words.

use std::ffi::OsString;

use clap::{Args, FromArgMatches, Parser};

use super::{ArgsError, Command, MachineArgs, RestoreArgs, RunArgs, ServiceArgs, machine};

/// A machine without a verb. Help and version are left to the whole definition, which has the words for them.
#[derive(Debug, Parser)]
#[command(name = "minivmm", disable_help_flag = true, disable_version_flag = true)]
struct Plain {
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    service: ServiceArgs,
}

/// What `words` say, whose first is the program's name. `None` if that is for the whole definition to say: another verb, a request for help,
/// flags that are wrong.
pub(super) fn parse(words: &[OsString]) -> Option<Result<Command, ArgsError>> {
    let (first, own) = (words.get(1)?.to_str()?, words.get(1..)?);
    match first {
        "restore" => {
            let matches = matches::<RestoreArgs>(own)?;
            Some(Ok(Command::Restore(Box::new(RestoreArgs::from_arg_matches(&matches).ok()?))))
        }
        "run" => {
            let matches = matches::<RunArgs>(own)?;
            let run = Box::new(RunArgs::from_arg_matches(&matches).ok()?);
            match run.spec(&matches) {
                Err(ArgsError::Flags(_)) => None,
                spec => Some(spec.map(|spec| Command::RunCommand(run, spec))),
            }
        }
        flag if flag.starts_with('-') => {
            let matches = matches::<Plain>(words)?;
            let Plain { machine: args, service } = Plain::from_arg_matches(&matches).ok()?;
            match machine(args, &matches) {
                Err(ArgsError::Flags(_)) => None,
                spec => Some(spec.map(|spec| Command::Run(spec, service))),
            }
        }
        _ => None,
    }
}

fn matches<T: Args>(words: &[OsString]) -> Option<clap::ArgMatches> {
    T::augment_args(clap::Command::new("minivmm")).try_get_matches_from(words).ok()
}

#[cfg(test)]
mod tests {
    use super::super::{parse_whole, tests::FLAGS};
    use super::*;

    fn words<'a>(words: impl IntoIterator<Item = &'a str>) -> Vec<OsString> {
        ["minivmm"].into_iter().chain(words).map(OsString::from).collect()
    }

    #[test]
    fn what_starts_a_machine_is_what_the_whole_definition_makes_of_it() {
        let config = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(config.path(), "kernel = \"k\"\nmem = 128\n").unwrap();
        let config = config.path().to_str().unwrap();
        let lines: [&[&str]; 13] = [
            &FLAGS,
            &["--disk", "a.raw"],
            &["--disk", "a.raw", "-d", "--name", "doctor"],
            &["--config", config, "--mem", "256"],
            &["--config", "/nonexistent/vm.toml"],
            &["--kernel", "k", "-d", "--pidfile", "p"],
            &["restore", "folder"],
            &["restore", "-d", "--name", "vm1", "--clock", "saved", "folder"],
            &["run", "--", "uname", "-a"],
            &["run", "-i", "--mem", "64", "--root", "r", "sh", "-c", "exit 3"],
            &["run", "-it", "-eA=1", "--volume", ".:/work:ro", "-w", "/work", "--out", "o", "make", "-j2"],
            &["run", "--kernel", "k", "--timeout", "5", "--verbose", "true"],
            &["run", "--config", "/nonexistent/vm.toml", "true"],
        ];
        for line in lines {
            let words = words(line.iter().copied());
            let quick = parse(&words).unwrap_or_else(|| panic!("{line:?} is not parsed here"));
            assert_eq!(format!("{quick:?}"), format!("{:?}", parse_whole(words)), "{line:?}");
        }
    }

    #[test]
    fn everything_else_is_left_to_the_whole_definition() {
        let lines: [&[&str]; 10] = [
            &["--help"],
            &["-V"],
            &["--kernel"],
            &["--kernle", "k"],
            &["--kernel", "k", "doctor"],
            &["restore"],
            &["restore", "--help"],
            &["run"],
            &["run", "--initrd", "i", "true"],
            &["ls"],
        ];
        for line in lines {
            assert!(parse(&words(line.iter().copied())).is_none(), "{line:?}");
        }
    }
}
