//! The commands of a script.

use super::{Block, DEPTH, Leave, Run, STEP, Stop, TEST_WORDS, script};
use crate::image::bootloader::SearchBy;

impl Run<'_> {
    pub(super) fn command(&mut self, words: &[&str]) -> Result<bool, Stop> {
        let Some(at) = words.iter().position(|word| *word != "!") else { return Ok(true) };
        let (negations, words) = words.split_at(at);
        let success = self.run(words)?;
        Ok(success == (negations.len() % 2 == 0))
    }

    fn run(&mut self, words: &[&str]) -> Result<bool, Stop> {
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
            ("load_env", _) => self.load_env()?,
            ("[", [words @ .., "]"]) | ("test", words) => return self.test(words),
            ("false" | "[", _) => return Ok(false),
            ("linux" | "linux16" | "linuxefi", [kernel, options @ ..]) => {
                self.entry.kernel = self.absolute(kernel);
                let quoted = options.iter().map(|word| {
                    if word.contains([' ', '\t']) { format!("\"{word}\"") } else { (*word).to_owned() }
                });
                self.entry.options = quoted.collect::<Vec<_>>().join(" ");
            }
            ("initrd" | "initrd16" | "initrdefi", files) => {
                let files = files.iter().filter(|file| !file.starts_with("--"));
                self.entry.initrds = files.map(|file| self.absolute(file)).collect();
            }
            ("source" | "configfile" | ".", [file, ..]) => return self.source(file),
            ("blscfg", _) => self.blscfg()?,
            ("search", words) => return self.search(words),
            ("search.fs_uuid", [value, more @ ..]) => return self.found(SearchBy::Uuid, value, more.first()),
            ("search.fs_label", [value, more @ ..]) => {
                return self.found(SearchBy::Label, value, more.first());
            }
            ("search.file", [value, more @ ..]) => return self.found(SearchBy::File, value, more.first()),
            ("break", levels) => self.leaving = Some(Leave::Break(count(levels))),
            ("continue", levels) => self.leaving = Some(Leave::Continue(count(levels))),
            ("return", _) => self.leaving = Some(Leave::Return),
            (name, words) => return self.other(name, words),
        }
        Ok(true)
    }

    fn other(&mut self, name: &str, words: &[&str]) -> Result<bool, Stop> {
        let Some(body) = self.functions.get(name).cloned() else {
            let fine = ["true", "insmod", "export", "save_env", "load_video", "echo", "terminal_output"];
            return Ok(fine.contains(&name));
        };
        self.spend(words.iter().map(|word| word.len()).sum())?;
        self.arguments.push(words.iter().map(|word| (*word).to_owned()).collect());
        let success = self.deeper(&body);
        self.arguments.pop();
        self.leaving = None;
        success
    }

    /// Looks for a file system. Hints are not needed.
    fn search(&mut self, words: &[&str]) -> Result<bool, Stop> {
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
        // The name can also be a word of its own behind `--set`.
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

    /// Sets a variable to the device that has this; an empty name is none.
    fn found(&mut self, by: SearchBy, value: &str, variable: Option<&&str>) -> Result<bool, Stop> {
        self.spend(STEP * 16)?;
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

    fn deeper(&mut self, body: &Block) -> Result<bool, Stop> {
        if self.depth >= DEPTH {
            return Err("too many scripts or functions call each other".into());
        }
        self.depth += 1;
        let success = self.block(body);
        self.depth -= 1;
        success
    }

    fn source(&mut self, file: &str) -> Result<bool, Stop> {
        let Some(text) = self.text(file)? else { return Ok(false) };
        self.deeper(&script::parse(&text)?)
    }

    pub(super) fn text(&mut self, file: &str) -> Result<Option<String>, Stop> {
        self.spend(STEP * 16)?;
        let (device, path) = self.place(file);
        let text = self.files.text(device, path)?;
        self.spend(text.as_ref().map_or(0, String::len))?;
        Ok(text)
    }

    /// The device and the path of a file; without a device it is on `$root`.
    fn place<'p>(&'p self, file: &'p str) -> (&'p str, &'p str) {
        match file.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            Some(("", path)) => (self.get("root"), path),
            Some(found) => found,
            None => (self.get("root"), file),
        }
    }

    /// The path of a file that is to be loaded, behind its device if that is another one.
    pub(super) fn absolute(&self, file: &str) -> String {
        let (device, path) = self.place(file);
        if device == self.files.device() { path.to_owned() } else { format!("({device}){path}") }
    }

    fn size(&mut self, file: &str) -> Result<Option<u64>, Stop> {
        self.spend(STEP * 16)?;
        let (device, path) = self.place(file);
        Ok(self.files.size(device, path)?)
    }

    fn is_folder(&mut self, file: &str) -> Result<bool, Stop> {
        self.spend(STEP * 16)?;
        let (device, path) = self.place(file);
        Ok(self.files.is_folder(device, path)?)
    }

    /// Reads the environment block: lines of names and values, a backslash in front of what is no sign of its own.
    fn load_env(&mut self) -> Result<(), Stop> {
        let file = format!("{}/grubenv", self.get("prefix"));
        let Some(text) = self.text(&file)? else { return Ok(()) };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.split_once('=') else { continue };
            let mut escaped = false;
            let value = value.chars().filter(|sign| {
                escaped = *sign == '\\' && !escaped;
                !escaped
            });
            self.set(name, value.collect())?;
        }
        Ok(())
    }

    fn test(&mut self, words: &[&str]) -> Result<bool, Stop> {
        if words.len() > TEST_WORDS {
            return Err("it compares too many words".into());
        }
        for (joint, any) in [("-o", true), ("-a", false)] {
            if let Some(at) = words.iter().position(|word| *word == joint).filter(|at| *at > 0) {
                let (one, other) = words.split_at(at);
                let one = self.test(one)?;
                return if one == any { Ok(one) } else { self.test(other.get(1..).unwrap_or_default()) };
            }
        }
        let number = |text: &str| text.trim().parse::<i64>().unwrap_or(0);
        Ok(match words {
            ["!", rest @ ..] => !self.test(rest)?,
            [one, "=" | "==", other] => one == other,
            [one, "!=", other] => one != other,
            [one, "-eq", other] => number(one) == number(other),
            [one, "-ne", other] => number(one) != number(other),
            [one, "-lt", other] => number(one) < number(other),
            [one, "-le", other] => number(one) <= number(other),
            [one, "-gt", other] => number(one) > number(other),
            [one, "-ge", other] => number(one) >= number(other),
            ["-s", file] => self.size(file)?.is_some_and(|size| size > 0),
            ["-f", file] => self.size(file)?.is_some(),
            ["-d", file] => self.is_folder(file)?,
            ["-e", file] => self.size(file)?.is_some() || self.is_folder(file)?,
            ["-n", text] => !text.is_empty(),
            ["-z", text] => text.is_empty(),
            ["-z"] => true,
            [text] => !text.is_empty(),
            _ => false,
        })
    }
}

/// How many loops a `break` or a `continue` is for.
fn count(levels: &[&str]) -> usize {
    levels.first().and_then(|levels| levels.parse().ok()).unwrap_or(1)
}
