//! The commands of a script.

use super::{Block, DEPTH, GrubError, Interpreter, STEP, Unwind};
use crate::image::bootloader::SearchBy;

/// Commands without an effect on the kernel that is booted. They succeed.
const NO_OPS: [&str; 17] = [
    "true",
    "insmod",
    "export",
    "save_env",
    "load_video",
    "echo",
    "terminal_output",
    "terminal_input",
    "loadfont",
    "clear",
    "sleep",
    "rmmod",
    "serial",
    "play",
    "background_image",
    "background_color",
    "password_pbkdf2",
];
/// Commands that fail on this machine: no key is held, and the firmware is not EFI.
const ALWAYS_FAIL: [&str; 6] = ["keystatus", "hwmatch", "fwsetup", "lsefi", "chainloader", "authenticate"];

impl Interpreter<'_> {
    pub(super) fn command(&mut self, words: &[&str]) -> Result<bool, GrubError> {
        let Some(at) = words.iter().position(|word| *word != "!") else { return Ok(true) };
        let (negations, words) = words.split_at(at);
        let success = self.run(words)?;
        self.succeeded = success == (negations.len() % 2 == 0);
        Ok(self.succeeded)
    }

    fn run(&mut self, words: &[&str]) -> Result<bool, GrubError> {
        let Some((name, words)) = words.split_first() else { return Ok(true) };
        if let Some((variable, value)) = name.split_once('=') {
            self.set(variable, value.to_owned())?;
            return Ok(true);
        }
        match (*name, words) {
            ("set", [word, ..]) => {
                if let Some((name, value)) = word.split_once('=') {
                    self.set(name, value.to_owned())?;
                }
            }
            ("unset", names) => {
                for name in names {
                    self.variables.remove(*name);
                }
            }
            ("load_env", words) => return self.load_env(words),
            ("probe", words) => return self.probe(words),
            ("cpuid", words) => return Ok(self.cpuid(words)),
            ("eval", words) => return self.eval(&words.join(" ")),
            ("setparams", words) => self.set_arguments(words),
            ("shift", counts) => self.shift(counts),
            ("[", [words @ .., "]"]) | ("test", words) => return self.test(words),
            ("false" | "[", _) => return Ok(false),
            ("linux" | "linux16" | "linuxefi", [kernel, options @ ..]) => {
                self.entry.kernel = self.absolute(kernel);
                self.entry.options = options.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
                return Ok(self.size(kernel)?.is_some());
            }
            ("initrd" | "initrd16" | "initrdefi", files) => {
                let files = files.iter().filter(|file| !file.starts_with("--"));
                self.entry.initrds = files.map(|file| self.absolute(file)).collect();
            }
            ("source" | ".", [file, ..]) => return self.source(file),
            ("configfile" | "normal", [file, ..]) => return self.configfile(file),
            ("blscfg", _) => self.blscfg()?,
            ("search", words) => return self.search(words),
            ("search.fs_uuid", [value, more @ ..]) => return self.found(SearchBy::Uuid, value, more.first()),
            ("search.fs_label", [value, more @ ..]) => {
                return self.found(SearchBy::Label, value, more.first());
            }
            ("search.file", [value, more @ ..]) => return self.found(SearchBy::File, value, more.first()),
            ("break" | "continue" | "return", words) => return Ok(self.leave(name, words)),
            (name, words) => return self.other(name, words),
        }
        Ok(true)
    }

    /// `break`, `continue` or `return`. Outside of a loop the first two do nothing; outside of a function and
    /// of an entry the last one fails.
    fn leave(&mut self, name: &str, words: &[&str]) -> bool {
        let number = match words {
            [] => None,
            [word] => match word.parse::<usize>() {
                Ok(number) => Some(number),
                Err(_) => return false,
            },
            _ => return false,
        };
        match name {
            "return" if self.arguments.is_empty() => return false,
            "return" => {
                let success = number.map_or(self.succeeded, |number| number == 0);
                self.unwinding = Some(Unwind::Return(success));
                return success;
            }
            _ if number == Some(0) => return false,
            _ => {}
        }
        let levels = number.unwrap_or(1).min(self.loops);
        if levels > 0 {
            let leave = if name == "break" { Unwind::Break } else { Unwind::Continue };
            self.unwinding = Some(leave(levels));
        }
        true
    }

    fn other(&mut self, name: &str, words: &[&str]) -> Result<bool, GrubError> {
        let Some(body) = self.functions.get(name).cloned() else {
            if NO_OPS.contains(&name) {
                return Ok(true);
            }
            let sets = words.iter().any(|word| *word == "-s" || word.starts_with("--set"));
            if (self.in_condition || sets) && !ALWAYS_FAIL.contains(&name) {
                self.note(format!("the command `{name}` is not known here and counts as failed"));
            }
            return Ok(false);
        };
        self.charge_bytes(words.iter().map(|word| word.len()).sum())?;
        self.call(words.iter().map(|word| (*word).to_owned()).collect(), &body)
    }

    /// Runs the body of a function or of an entry, with its arguments.
    pub(super) fn call(&mut self, arguments: Vec<String>, body: &Block) -> Result<bool, GrubError> {
        self.arguments.push(arguments);
        let outside = (std::mem::take(&mut self.loops), std::mem::take(&mut self.in_condition));
        let success = self.nested(body);
        (self.loops, self.in_condition) = outside;
        self.arguments.pop();
        match self.unwinding.take() {
            Some(Unwind::Return(returned)) => success.map(|_| returned),
            _ => success,
        }
    }

    /// Searches for a file system. Hints are ignored.
    fn search(&mut self, words: &[&str]) -> Result<bool, GrubError> {
        let (mut by, mut variable, mut values) = (SearchBy::File, None, Vec::new());
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--fs-uuid" | "-u" => by = SearchBy::Uuid,
                "--label" | "-l" | "--fs-label" => by = SearchBy::Label,
                "--file" | "-f" => by = SearchBy::File,
                "--set" | "-s" => variable = variable.or(Some("root")),
                "--hint" => drop(words.next()),
                word if word.starts_with("--set=") => variable = word.strip_prefix("--set="),
                word if word.starts_with('-') => {}
                word => values.push(word),
            }
        }
        // The name may also be a separate word after `--set`.
        let value = match values.as_slice() {
            [] => return Ok(false),
            [name, value, ..] if variable == Some("root") => {
                variable = Some(name);
                value
            }
            [value, ..] => value,
        };
        self.found(by, value, variable.as_ref().map_or(Some(&""), Some))
    }

    /// Sets a variable to the device with this attribute; an empty name sets none.
    fn found(&mut self, by: SearchBy, value: &str, variable: Option<&&str>) -> Result<bool, GrubError> {
        self.charge(STEP * 16)?;
        let Some(device) = self.files.search(by, value)? else {
            if by != SearchBy::File {
                self.missing = Some(value.to_owned());
            }
            return Ok(false);
        };
        match variable {
            Some(&"") => {}
            Some(name) => self.set(name, device)?,
            None => self.set("root", device)?,
        }
        Ok(true)
    }

    pub(super) fn nested(&mut self, body: &Block) -> Result<bool, GrubError> {
        if self.depth >= DEPTH {
            return Err("too many scripts or functions call each other".into());
        }
        self.depth += 1;
        let success = self.block(body);
        self.depth -= 1;
        success
    }

    /// In an entry, the file's menu comes next; outside of a menu, its entries are added to this one.
    fn configfile(&mut self, file: &str) -> Result<bool, GrubError> {
        if self.in_entry {
            for name in ["default", "fallback"] {
                self.variables.remove(name);
            }
        }
        self.source(file)
    }

    fn source(&mut self, file: &str) -> Result<bool, GrubError> {
        let Some(text) = self.text(file)? else { return Ok(false) };
        self.script(file, &text)
    }

    /// The device and the path of a file, with a note about a device that cannot be read.
    fn readable_place<'p>(&mut self, file: &'p str) -> (String, &'p str) {
        let (device, _) = self.place(file);
        let device = device.to_owned();
        if !self.files.has_device(&device) {
            self.note(format!(
                "the device {device} cannot be read here, and the script's own file system is used"
            ));
        }
        let path =
            file.strip_prefix('(').and_then(|rest| rest.split_once(')')).map_or(file, |(_, path)| path);
        (device, path)
    }

    pub(super) fn text(&mut self, file: &str) -> Result<Option<String>, GrubError> {
        self.charge(STEP * 16)?;
        let (device, path) = self.readable_place(file);
        Ok(self.files.text(&device, path)?)
    }

    /// The device and the path of a file; without a device it is on `$root`.
    pub(super) fn place<'p>(&'p self, file: &'p str) -> (&'p str, &'p str) {
        match file.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            Some(("", path)) => (self.get("root"), path),
            Some(found) => found,
            None => (self.get("root"), file),
        }
    }

    /// The path of a file to load, with its device if that is another one.
    pub(super) fn absolute(&self, file: &str) -> String {
        let (device, path) = self.place(file);
        if device == self.files.device() { path.to_owned() } else { format!("({device}){path}") }
    }

    pub(super) fn size(&mut self, file: &str) -> Result<Option<u64>, GrubError> {
        self.charge(STEP * 16)?;
        let (device, path) = self.readable_place(file);
        Ok(self.files.size(&device, path)?)
    }

    pub(super) fn is_folder(&mut self, file: &str) -> Result<bool, GrubError> {
        self.charge(STEP * 16)?;
        let (device, path) = self.readable_place(file);
        Ok(self.files.is_folder(&device, path)?)
    }
}

/// A word as GRUB passes it to the kernel: quoted if it has spaces, with a backslash before each quote and
/// before each backslash that does not begin `\\xHH`.
fn quoted(word: &str) -> String {
    let mut all = String::new();
    for (at, sign) in word.char_indices() {
        let is_code = || {
            let code = word.get(at + 1..at + 4).and_then(|code| code.strip_prefix('x'));
            code.is_some_and(|code| code.bytes().all(|digit| digit.is_ascii_hexdigit()))
        };
        if matches!(sign, '"' | '\'') || sign == '\\' && !is_code() {
            all.push('\\');
        }
        all.push(sign);
    }
    if word.contains(' ') { format!("\"{all}\"") } else { all }
}
