//! The entry that GRUB would start by itself: its script is run, with a limit on steps and bytes.

mod script;

use std::borrow::Cow;
use std::collections::HashMap;

use super::{Entry, Files, SearchBy, bls};
use crate::image::disk::ReadError;
use script::{Block, Piece, Statement, Word};

/// Steps of all scripts of a disk's GRUB; a byte of a word counts as a part of one.
const STEPS: usize = 1 << 24;
const STEP: usize = 128;
/// Longest value of a variable, and most of them.
const VALUE: usize = 16 << 10;
const VARIABLES: usize = 1024;
/// Most entries of one menu, and scripts and functions within each other.
const ITEMS: usize = 1024;
const DEPTH: usize = 16;
/// Most words of one comparison, which may lie within each other.
const TEST_WORDS: usize = 128;
/// Rounds of a loop with a condition.
const ROUNDS: usize = 256;
/// Most lines of what was not followed.
const NOTES: usize = 8;

/// Why a script is not followed.
#[derive(Debug)]
pub(in crate::image) enum Stop {
    /// The disk cannot be read.
    Read(ReadError),
    /// In words.
    Because(Cow<'static, str>),
}

impl From<ReadError> for Stop {
    fn from(error: ReadError) -> Self {
        Stop::Read(error)
    }
}

impl From<&'static str> for Stop {
    fn from(why: &'static str) -> Self {
        Stop::Because(why.into())
    }
}

/// A line of the menu.
#[derive(Debug, Clone)]
struct Item {
    title: String,
    id: String,
    body: Body,
}

#[derive(Debug, Clone)]
enum Body {
    Entry(Block),
    Submenu(Block),
    Bls(Entry),
}

struct Run<'a> {
    files: &'a dyn Files,
    variables: HashMap<String, String>,
    functions: HashMap<String, Block>,
    items: Vec<Item>,
    entry: Entry,
    left: usize,
    depth: usize,
    /// Arguments of the functions that run, the innermost last.
    arguments: Vec<Vec<String>>,
    /// A `break`, `continue` or `return` is on its way out.
    leaving: Option<Leave>,
    /// A file system that the script looked for and that cannot be read here.
    missing: Option<String>,
    /// What of the script was not followed: a line each.
    notes: &'a mut Vec<String>,
}

/// What leaves blocks early. A loop is left so many levels up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    Break(usize),
    Continue(usize),
    Return,
}

/// The default entry of the grub.cfg with this text, in this folder.
/// Parts that were passed over are named in `notes`.
pub(in crate::image) fn choose(
    files: &dyn Files,
    folder: &str,
    text: &str,
    notes: &mut Vec<String>,
) -> Result<Entry, Stop> {
    let device = files.device();
    let prefix = format!("({device}){folder}");
    let mut run = Run {
        files,
        variables: HashMap::new(),
        functions: HashMap::new(),
        items: Vec::new(),
        entry: Entry::default(),
        left: STEPS,
        depth: 0,
        arguments: Vec::new(),
        leaving: None,
        missing: None,
        notes,
    };
    for (name, value) in [
        ("root", device.as_str()),
        ("prefix", &prefix),
        ("config_directory", &prefix),
        ("grub_platform", "pc"),
        ("grub_cpu", "i386"),
        ("feature_menuentry_id", "y"),
        ("feature_platform_search_hint", "y"),
        ("feature_timeout_style", "y"),
    ] {
        run.set(name, value.to_owned())?;
    }
    run.block(&script::parse(text)?)?;
    run.default()
}

impl Run<'_> {
    fn spend(&mut self, cost: usize) -> Result<(), Stop> {
        self.left = self.left.checked_sub(cost).ok_or("it does not end")?;
        Ok(self.files.charge(cost as u64)?)
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), Stop> {
        if value.len() > VALUE || name.len() > VALUE || self.variables.len() >= VARIABLES {
            return Err("its variables are too long".into());
        }
        self.variables.insert(name.to_owned(), value);
        Ok(())
    }

    fn get(&self, name: &str) -> &str {
        let argument = name.parse().ok().and_then(|number: usize| number.checked_sub(1));
        if let (Some(at), Some(arguments)) = (argument, self.arguments.last()) {
            return arguments.get(at).map_or("", String::as_str);
        }
        self.variables.get(name).map_or("", String::as_str)
    }

    /// The words of a command. A variable outside of quotes is as many words as it has.
    fn expand(&mut self, words: &[Word]) -> Result<Vec<String>, Stop> {
        let mut all = Vec::new();
        for word in words {
            let mut now: Option<String> = None;
            for piece in word {
                match piece {
                    Piece::Text(text) => {
                        self.spend(text.len())?;
                        now.get_or_insert_default().push_str(text);
                    }
                    Piece::Variable { name, quoted } => {
                        let value = self.get(name).to_owned();
                        self.spend(value.len() + 1)?;
                        if *quoted {
                            now.get_or_insert_default().push_str(&value);
                            continue;
                        }
                        for (count, part) in value.split([' ', '\t', '\n']).enumerate() {
                            if count > 0 {
                                all.extend(now.take());
                            }
                            if !part.is_empty() {
                                now.get_or_insert_default().push_str(part);
                            }
                        }
                    }
                }
            }
            all.extend(now);
        }
        Ok(all)
    }

    /// Whether its last command was successful.
    fn block(&mut self, block: &Block) -> Result<bool, Stop> {
        let mut success = true;
        for statement in block.iter() {
            self.spend(STEP)?;
            success = self.statement(statement)?;
            if self.leaving.is_some() {
                break;
            }
        }
        Ok(success)
    }

    fn statement(&mut self, statement: &Statement) -> Result<bool, Stop> {
        match statement {
            Statement::Command(words) => {
                let words = self.expand(words)?;
                self.command(&words.iter().map(String::as_str).collect::<Vec<_>>())
            }
            Statement::If { arms, otherwise } => {
                for (condition, body) in arms {
                    let holds = self.block(condition)?;
                    if self.leaving.is_some() {
                        return Ok(holds);
                    }
                    if holds {
                        return self.block(body);
                    }
                }
                self.block(otherwise)
            }
            Statement::For { variable, values, body } => {
                for value in self.expand(values)? {
                    self.spend(STEP)?;
                    self.set(variable, value)?;
                    self.block(body)?;
                    if self.loop_ends() {
                        break;
                    }
                }
                Ok(true)
            }
            Statement::While { until, condition, body } => self.repeat(*until, condition, body),
            Statement::Braces { words, body } => {
                let words = self.expand(words)?;
                self.braces(&words, body);
                Ok(true)
            }
        }
    }

    /// A loop with a condition. One that goes on for long waits for a key or a device that is not here.
    fn repeat(&mut self, until: bool, condition: &Block, body: &Block) -> Result<bool, Stop> {
        for _ in 0..ROUNDS {
            let holds = self.block(condition)?;
            if holds == until || self.leaving.is_some() {
                return Ok(true);
            }
            self.block(body)?;
            if self.loop_ends() {
                return Ok(true);
            }
        }
        let word = if until { "until" } else { "while" };
        self.note(format!("a loop (`{word}`) was left after {ROUNDS} rounds"));
        Ok(true)
    }

    /// Whether a `break`, `continue` or `return` ends the loop whose body just ran.
    fn loop_ends(&mut self) -> bool {
        let (ends, leaving) = match self.leaving {
            None | Some(Leave::Continue(0 | 1)) => (false, None),
            Some(Leave::Break(0 | 1)) => (true, None),
            Some(Leave::Break(levels)) => (true, Some(Leave::Break(levels - 1))),
            Some(Leave::Continue(levels)) => (true, Some(Leave::Continue(levels - 1))),
            Some(Leave::Return) => (true, Some(Leave::Return)),
        };
        self.leaving = leaving;
        ends
    }

    fn note(&mut self, line: String) {
        if self.notes.len() < NOTES && !self.notes.contains(&line) {
            self.notes.push(line);
        }
    }

    fn braces(&mut self, words: &[String], body: &Block) {
        let Some((kind, words)) = words.split_first() else { return };
        if kind == "function" {
            if let Some(name) = words.first() {
                self.functions.insert(name.clone(), body.clone());
            }
            return;
        }
        let body = match kind.as_str() {
            "menuentry" => Body::Entry(body.clone()),
            "submenu" => Body::Submenu(body.clone()),
            _ => return,
        };
        let (mut title, mut id) = (None, None);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.split_once('=').map_or((word.as_str(), None), |(name, value)| (name, Some(value))) {
                ("--id", Some(value)) => id = Some(value.to_owned()),
                ("--id", None) => id = words.next().cloned(),
                ("--class" | "--users" | "--hotkey", None) => drop(words.next()),
                _ if word.starts_with("--") => {}
                _ => title = title.or(Some(word.clone())),
            }
        }
        let title = title.unwrap_or_default();
        if self.items.len() < ITEMS {
            self.items.push(Item { id: id.unwrap_or_else(|| title.clone()), title, body });
        }
    }

    fn command(&mut self, words: &[&str]) -> Result<bool, Stop> {
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

    fn text(&mut self, file: &str) -> Result<Option<String>, Stop> {
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
    fn absolute(&self, file: &str) -> String {
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

    fn blscfg(&mut self) -> Result<(), Stop> {
        let mut entries: Vec<_> = self
            .files
            .entries(self.get("root"))?
            .iter()
            .filter_map(|(name, text)| bls::parse(name, text))
            .collect();
        entries.sort_by(bls::order);
        for found in entries {
            let item = Item { title: found.entry.title.clone(), id: found.id, body: Body::Bls(found.entry) };
            if self.items.len() < ITEMS {
                self.items.push(item);
            }
        }
        Ok(())
    }

    /// Takes the default entry, through submenus.
    fn default(mut self) -> Result<Entry, Stop> {
        let mut wanted = self.get("default").to_owned();
        for _ in 0..DEPTH {
            let items = std::mem::take(&mut self.items);
            let find = |name: &str| {
                let named = |item: &Item| item.id == name || item.title == name;
                let by_number = name.parse().ok().filter(|at: &usize| *at < items.len());
                by_number.or_else(|| items.iter().position(named))
            };
            let (here, behind) = wanted.split_once('>').unwrap_or((&wanted, ""));
            let (at, behind) = match find(&wanted) {
                Some(at) => (Some(at), ""),
                None => (find(here).or_else(|| find(self.get("fallback"))), behind),
            };
            let behind = behind.to_owned();
            let item = items.get(at.unwrap_or(0)).cloned();
            let item = item.ok_or_else(|| self.nothing("it shows no entry"))?;
            wanted = behind;
            match item.body {
                Body::Submenu(body) => drop(self.block(&body)?),
                Body::Entry(body) => {
                    self.block(&body)?;
                    self.entry.title = item.title;
                    break;
                }
                Body::Bls(entry) => {
                    self.entry = self.with_variables(entry)?;
                    break;
                }
            }
        }
        if self.entry.kernel.is_empty() {
            Err(self.nothing("its default entry starts no Linux"))
        } else {
            Ok(self.entry)
        }
    }

    /// Why there is nothing to boot.
    fn nothing(&self, why: &'static str) -> Stop {
        match &self.missing {
            Some(missing) => Stop::Because(
                format!("{why}, and the file system {missing} that it looks for cannot be read here").into(),
            ),
            None => why.into(),
        }
    }

    /// An entry of the specification with GRUB's variables filled in.
    fn with_variables(&mut self, entry: Entry) -> Result<Entry, Stop> {
        let mut fill = |text: &str| -> Result<String, Stop> {
            // Quotes are the kernel's: only variables are GRUB's here.
            let mut parts = text.split('$');
            let mut all = parts.next().unwrap_or_default().to_owned();
            for part in parts {
                let part = part.strip_prefix('{').unwrap_or(part);
                let end = part.find(|sign: char| !sign.is_ascii_alphanumeric() && sign != '_');
                let (name, rest) = part.split_at(end.unwrap_or(part.len()));
                let value = self.get(name).to_owned();
                self.spend(value.len() + STEP)?;
                all.push_str(&value);
                all.push_str(rest.strip_prefix('}').unwrap_or(rest));
            }
            Ok(all.trim().to_owned())
        };
        let mut initrds = Vec::new();
        for initrd in &entry.initrds {
            initrds.extend(fill(initrd)?.split_whitespace().map(str::to_owned));
        }
        let (kernel, options) = (fill(&entry.kernel)?, fill(&entry.options)?);
        let initrds = initrds.iter().map(|initrd| self.absolute(initrd)).collect();
        Ok(Entry { kernel: self.absolute(&kernel), initrds, options, ..entry })
    }
}

/// How many loops a `break` or a `continue` is for.
fn count(levels: &[&str]) -> usize {
    levels.first().and_then(|levels| levels.parse().ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests;
