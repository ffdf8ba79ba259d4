//! The helper for guests without a driver for the VM generation ID, as a shell script that installs it.

/// The script.
pub(super) const INSTALLER: &str = include_str!("../../resources/guest/helper.sh");

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn installer_is_shell_and_what_it_installs_is_perl() {
        let checked = |program: &str, words: &[&str], text: &str| {
            let child =
                Command::new(program).args(words).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
            let mut child = child.ok()?;
            child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
            Some(())
        };
        checked("sh", &["-n"], INSTALLER).unwrap();
        let (_, rest) = INSTALLER.split_once("<<'END'\n").unwrap();
        let (helper, _) = rest.split_once("\nEND\n").unwrap();
        if checked("perl", &["-c"], helper).is_none() {
            return;
        }
        // What it takes for a line of the machine, and what not.
        let line = format!("generation={} random={}", "0a".repeat(16), "b1".repeat(64));
        let lines = format!(
            "\n{line} time=1700000000.000000001\n{}\n{line}\n{line}x\ngeneration=1 random=2\n",
            &line[..60]
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        fs::write(&path, lines).unwrap();
        // The same loop, which says what it has found instead of giving it to the kernel.
        let (before, _) = helper.split_once("    open(my $pool").unwrap();
        let port = format!("my $path = \"{}\";", path.display());
        let before = before.replace("my $path = \"/dev/virtio-ports/org.minivmm.generation\";", &port);
        let script =
            format!("{before}    print(\"$id \", length($hex), \" \", $time // \"none\", \"\\n\");\n}}\n");
        let output = Command::new("perl").args(["-e", &script]).output().unwrap();
        let id = "0a".repeat(16);
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            format!("{id} 128 1700000000.000000001\n{id} 128 none\n"),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
