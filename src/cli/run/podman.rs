//! Words of podman and docker in the command line of `minivmm run`: what to write in their place.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

use super::args::{is_volume, no_short_volume};

/// Options that `run` does not have, and what does their work. docs/ci.md has them among others.
const WORDS: [(&[&str], &str); 18] = [
    (&["--rm"], "leave it out: the guest is always discarded, and nothing of it is kept"),
    (
        &["-u", "--user"],
        "the command is root; as another user it is `-- su USER -c 'COMMAND'`, or `-- setpriv --reuid USER --regid GROUP \
         --clear-groups COMMAND`, with programs and users of --root",
    ),
    (&["-m"], "write `--mem`, as in `--mem 512M`"),
    (
        &["-d", "--detach"],
        "leave it out: a run ends with its command, and a machine that stays in the background is `minivmm -d`, without `run`",
    ),
    (
        &["--hostname"],
        "leave it out, or write `-- sh -c 'hostname NAME; COMMAND'`: the guest's host name is `minivmm`",
    ),
    (
        &["--mount"],
        "write `--volume DIR:/PATH` for type=bind, with `:ro` behind it for readonly; tmpfs is not needed, because the rest of the \
         guest is in its memory",
    ),
    (&["--tmpfs"], "leave it out: what the command writes outside of --volume is in the guest's memory"),
    (
        &["--entrypoint"],
        "write the program as the command, behind the options: no entry point of an image is known",
    ),
    (&["--env-file"], "write `-e NAME=VALUE` for each line of the file"),
    (
        &["--read-only"],
        "leave it out: no file of the host is changed but with --root-rw, and in a --volume without `:ro`",
    ),
    (
        &["--privileged", "--cap-add", "--cap-drop", "--security-opt"],
        "leave it out: the command is root in a kernel of its own, and has of the host what it is given",
    ),
    (
        &["--network"],
        "write `--net user` for a network; without that or -p there is none, and `--network none` can be left out",
    ),
    (&["--interactive"], "write `-i` or `--stdin`"),
    (&["--init"], "leave it out: the guest has an init"),
    (
        &["--pull", "--platform"],
        "leave it out: no images are fetched, and `--root DIR` is one that was unpacked",
    ),
    (&["-P", "--publish-all"], "write `-p HOST:GUEST` for each port"),
    (
        &["--device"],
        "leave it out: `--disk PATH` is for images and block devices, and other devices cannot be passed on",
    ),
    (&["--image"], "write `--root DIR`, the directory of an image that was unpacked"),
];

/// The same error, in words for who comes from podman. Clap's own advice, to put an option behind `--`, would make it the guest's command.
pub(in super::super) fn explain(mut error: Error, words: &[OsString]) -> Error {
    if let Some(volume) = attached_volume(&error, words) {
        return no_short_volume(volume);
    }
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    let option = text(&error, ContextKind::InvalidArg).unwrap_or_default();
    match WORDS.iter().find(|(names, _)| names.contains(&option)) {
        Some((_, cure)) => {
            Error::raw(ErrorKind::UnknownArgument, format!("`minivmm run` has no {option}: {cure}\n"))
        }
        None => {
            error.remove(ContextKind::Suggested);
            error
        }
    }
}

fn text(error: &Error, kind: ContextKind) -> Option<&str> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text),
        _ => None,
    }
}

/// The volume of `-v.:/work` and `-itv.:/work`, whose letters were taken for options: `error` is about one of these, or what followed it.
fn attached_volume<'a>(error: &Error, words: &'a [OsString]) -> Option<&'a OsStr> {
    let wrong = match error.kind() {
        ErrorKind::UnknownArgument => text(error, ContextKind::InvalidArg)?
            .strip_prefix('-')
            .filter(|letter| !letter.starts_with('-'))?,
        // Flags that were given before.
        ErrorKind::ArgumentConflict
            if matches!(text(error, ContextKind::InvalidArg), Some("--stdin" | "--tty" | "--verbose")) =>
        {
            ""
        }
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => text(error, ContextKind::InvalidValue)?,
        _ => return None,
    };
    let options = words.iter().skip(2).take_while(|word| *word != "--");
    options.filter_map(|word| volume_of(word)).find(|volume| {
        let volume = volume.as_bytes();
        wrong.is_empty() || volume.windows(wrong.len()).any(|part| part == wrong.as_bytes())
    })
}

fn volume_of(word: &OsStr) -> Option<&OsStr> {
    let letters = word.as_bytes().strip_prefix(b"-")?;
    let at = letters.iter().position(|letter| !b"it".contains(letter))?;
    let volume = letters.get(at..)?.strip_prefix(b"v").map(OsStr::from_bytes)?;
    is_volume(volume).then_some(volume)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::super::args::{ArgsError, parse};
    use super::*;

    fn refused(line: &str) -> String {
        match parse(["minivmm", "run"].into_iter().chain(line.split(' '))) {
            Err(ArgsError::Flags(error)) if error.use_stderr() => error.to_string(),
            other => panic!("{line} is not refused: {other:?}"),
        }
    }

    #[test]
    fn words_of_podman_are_answered_with_those_of_minivmm() {
        for (line, said) in [
            ("--rm -it debian bash", "has no --rm: leave it out"),
            ("-u 1000 id", "has no -u: the command is root"),
            ("-itu0 id", "has no -u: the command is root"),
            ("--user=1000 id", "has no --user: the command is root"),
            ("-m 512m id", "`--mem 512M`"),
            ("-dit id", "has no -d: leave it out"),
            ("--detach id", "`minivmm -d`"),
            ("--hostname a id", "hostname NAME"),
            ("--network=host id", "`--net user`"),
        ] {
            let told = refused(line);
            assert!(told.contains(said) && told.trim_end().lines().count() == 1, "{line}: {told}");
        }
        for option in WORDS.iter().flat_map(|(names, _)| *names) {
            assert!(refused(&format!("{option} true")).contains(&format!("has no {option}: ")), "{option}");
        }
        // What is behind the command is the command's.
        parse(["minivmm", "run", "docker", "run", "--rm"]).unwrap();
    }

    #[test]
    fn no_option_that_is_unknown_is_advised_to_be_the_command() {
        let told = refused("--nett true");
        assert!(told.contains("'--nett'") && told.contains("a similar argument exists: '--net'"), "{told}");
        for line in ["--nett true", "--foo true", "-z true", "--moun x true"] {
            let told = refused(line);
            assert!(!told.contains("as a value") && !told.contains("-- -"), "{line}: {told}");
        }
    }

    #[test]
    fn volume_without_a_blank_is_told_as_one_with_it() {
        let wanted = refused("-v .:/work ls").replace(".:/work", "X");
        for volume in [
            ".:/work",
            "/x/proj:/work",
            "data:/work",
            "proj:/work:ro",
            "work:/work",
            "etc:/etc",
            "test:/x",
            "it:/x",
        ] {
            for letters in ["-v", "-itv"] {
                let told = refused(&format!("{letters}{volume} -- ls"));
                assert_eq!(told.replace(volume, "X"), wanted, "{letters}{volume}");
            }
        }
        // Neither is about a volume.
        assert!(refused("-u 0 tool -va:/b").contains("has no -u"));
        assert!(refused("--foo tool -va:/b").contains("'--foo'"));
    }

    #[test]
    fn document_has_a_row_for_each_word_of_podman() {
        let text = fs::read_to_string("docs/ci.md").unwrap();
        for option in [
            "--rm",
            "-u",
            "--memory",
            "-d",
            "--hostname",
            "--mount",
            "--entrypoint",
            "--env-file",
            "--network",
        ] {
            assert!(text.contains(&format!("podman run {option}")), "{option}");
        }
    }
}
