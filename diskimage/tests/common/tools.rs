//! QEMU's tools for images, of the host's version and of a newer one.

use std::path::{Path, PathBuf};

use super::run;

/// `qemu-img` and `qemu-io` of one version.
pub(crate) struct Tools {
    img: PathBuf,
}

impl Tools {
    /// The host's.
    pub(crate) fn of_host() -> Tools {
        Tools { img: "qemu-img".into() }
    }

    /// Those of version 10 or newer, which may be the host's.
    pub(crate) fn new() -> Tools {
        Tools { img: lab::qemu_img().unwrap_or_else(|error| panic!("{error}")) }
    }

    pub(crate) fn img(&self, words: &[&str]) -> String {
        run(self.img.to_str().unwrap(), words)
    }

    /// `qemu-io` with these commands on a qcow2 image.
    pub(crate) fn io(&self, path: &Path, commands: &[&str]) {
        let commands = commands.iter().flat_map(|command| ["-c", *command]);
        let words = ["-f", "qcow2"].into_iter().chain(commands).chain([path.to_str().unwrap()]);
        let said = run(self.img.with_file_name("qemu-io").to_str().unwrap(), words);
        assert!(!said.contains("failed"), "{said}");
    }

    /// The names of the options for a new qcow2 image.
    pub(crate) fn options(&self) -> Vec<String> {
        let help = self.img(&["create", "-f", "qcow2", "-o", "help"]);
        let options = help.lines().skip_while(|line| !line.contains("options:")).skip(1);
        let names =
            options.take_while(|line| line.contains('=')).filter_map(|line| line.trim().split_once('='));
        names.map(|(name, _)| name.to_owned()).collect()
    }

    /// No errors, no leaks.
    pub(crate) fn assert_clean(&self, path: &Path) {
        let said = self.img(&["check", "-f", "qcow2", path.to_str().unwrap()]);
        assert!(said.contains("No errors were found"), "{said}");
    }

    /// The bytes of a disk.
    pub(crate) fn read(&self, path: &Path) -> Vec<u8> {
        let raw = path.with_extension("read");
        self.img(&["convert", "-f", "qcow2", "-O", "raw", path.to_str().unwrap(), raw.to_str().unwrap()]);
        let bytes = std::fs::read(&raw).unwrap();
        std::fs::remove_file(raw).unwrap();
        bytes
    }
}
