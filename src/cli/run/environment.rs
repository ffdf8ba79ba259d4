//! The environment of a command.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::args::RunArgs;
use crate::machine::commands::is_variable;

/// A variable of `-e`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    name: OsString,
    /// `None`: that of this process, if it has one.
    value: Option<OsString>,
}

impl Variable {
    /// `NAME=VALUE` or `NAME`.
    pub(super) fn parse(text: OsString) -> Result<Self, String> {
        let bytes = text.into_vec();
        let (name, value) = match bytes.iter().position(|byte| *byte == b'=') {
            Some(at) => (bytes.get(..at).unwrap_or_default(), bytes.get(at + 1..)),
            None => (&bytes[..], None),
        };
        let own = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let name = own(name);
        if !is_variable(&name) {
            return Err("names of variables have A-Z a-z 0-9 _ and begin with no digit".to_owned());
        }
        Ok(Variable { name, value: value.map(own) })
    }
}

/// Variables that say something of this process, its user or its shell, or that a shell of the guest would not have set.
const OF_THE_HOST: [&str; 12] =
    ["PATH", "HOME", "PWD", "OLDPWD", "SHLVL", "_", "IFS", "OPTIND", "UID", "EUID", "PPID", "BASHOPTS"];

/// The variables for the command, the last one of a name counts. `host` are those of this process.
pub(super) fn of(
    args: &RunArgs,
    host: impl Iterator<Item = (OsString, OsString)>,
) -> Vec<(OsString, OsString)> {
    let host: Vec<_> = host.filter(|(name, _)| is_variable(name)).collect();
    let of_host =
        |wanted: &OsString| host.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
    let is_passed = |name: &OsString| OF_THE_HOST.iter().all(|own| name.as_bytes() != own.as_bytes());
    let mut all: Vec<_> = host.iter().filter(|(name, _)| args.env_host && is_passed(name)).cloned().collect();
    // A terminal here is the command's.
    let term = OsString::from("TERM");
    all.extend(of_host(&term).filter(|_| args.tty).map(|value| (term, value)));
    for Variable { name, value } in &args.env {
        all.extend(value.clone().or_else(|| of_host(name)).map(|value| (name.clone(), value)));
    }
    all
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: RunArgs,
    }

    fn words(line: &[&str]) -> Result<String, clap::Error> {
        let line = ["run"].iter().chain(line).chain(&["true"]);
        let host = [
            ("LANG", "C"),
            ("TERM", "vt220"),
            ("PATH", "/host"),
            ("PWD", "/here"),
            ("BASH_FUNC_f%%", "()"),
            ("A", "host's"),
        ];
        let host = host.map(|(name, value)| (name.into(), value.into()));
        let all = of(&Line::try_parse_from(line)?.args, host.into_iter());
        let words: Vec<_> =
            all.iter().map(|(name, value)| format!("{}={}", name.display(), value.display())).collect();
        Ok(words.join(" "))
    }

    #[test]
    fn variables_are_those_that_were_asked_for_in_their_order() {
        assert_eq!(words(&[]).unwrap(), "");
        let line = ["-e", "B=x=y", "-e", "A", "-e", "NONE", "--env", "C=", "-ePATH"];
        assert_eq!(words(&line).unwrap(), "B=x=y A=host's C= PATH=/host");
        assert_eq!(words(&["--env-host", "-e", "A=mine"]).unwrap(), "LANG=C TERM=vt220 A=host's A=mine");
        assert_eq!(words(&["-t", "-e", "A=mine"]).unwrap(), "TERM=vt220 A=mine");
    }

    #[test]
    fn name_that_no_shell_can_set_is_refused() {
        for wrong in ["", "=x", "1A=x", "A-B", "A;reboot=x"] {
            let error = words(&["-e", wrong]).unwrap_err().to_string();
            assert!(wrong.is_empty() || error.contains("names of variables have"), "{wrong}: {error}");
        }
        let error = words(&["--workdir", "work"]).unwrap_err().to_string();
        assert!(error.contains("begins with `/`"), "{error}");
    }
}
