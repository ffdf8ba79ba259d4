//! The entry that GRUB would start by itself: its script is run, with a limit on steps and bytes.

mod script;

use std::collections::HashMap;

use super::{Entry, Files, bls};
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

/// Why a script is not followed.
#[derive(Debug)]
pub(in crate::image) enum Stop {
    /// The disk cannot be read.
    Read(ReadError),
    /// In words.
    Because(&'static str),
}

impl From<ReadError> for Stop {
    fn from(error: ReadError) -> Self {
        Stop::Read(error)
    }
}

impl From<&'static str> for Stop {
    fn from(why: &'static str) -> Self {
        Stop::Because(why)
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
}

/// The default entry of the grub.cfg with this text, in this folder.
pub(in crate::image) fn choose(files: &dyn Files, folder: &str, text: &str) -> Result<Entry, Stop> {
    let mut run = Run {
        files,
        variables: HashMap::new(),
        functions: HashMap::new(),
        items: Vec::new(),
        entry: Entry::default(),
        left: STEPS,
        depth: 0,
    };
    for (name, value) in [
        ("prefix", folder),
        ("config_directory", folder),
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
        Ok(())
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), Stop> {
        if value.len() > VALUE || name.len() > VALUE || self.variables.len() >= VARIABLES {
            return Err("its variables are too long".into());
        }
        self.variables.insert(name.to_owned(), value);
        Ok(())
    }

    fn get(&self, name: &str) -> &str {
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
                    if self.block(condition)? {
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
                }
                Ok(true)
            }
            Statement::Braces { words, body } => {
                let words = self.expand(words)?;
                self.braces(&words, body);
                Ok(true)
            }
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
                self.entry.kernel = path(kernel);
                let quoted = options.iter().map(|word| {
                    if word.contains([' ', '\t']) { format!("\"{word}\"") } else { (*word).to_owned() }
                });
                self.entry.options = quoted.collect::<Vec<_>>().join(" ");
            }
            ("initrd" | "initrd16" | "initrdefi", files) => {
                let files = files.iter().filter(|file| !file.starts_with("--"));
                self.entry.initrds = files.map(|file| path(file)).collect();
            }
            ("source" | "configfile" | ".", [file, ..]) => return self.source(&path(file)),
            ("blscfg", _) => self.blscfg()?,
            (name, _) => return self.other(name),
        }
        Ok(true)
    }

    fn other(&mut self, name: &str) -> Result<bool, Stop> {
        let Some(body) = self.functions.get(name).cloned() else {
            let fine =
                ["true", "insmod", "search", "export", "save_env", "load_video", "echo", "terminal_output"];
            return Ok(fine.contains(&name));
        };
        self.deeper(&body)
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
        let text = self.files.text(file)?;
        self.spend(text.as_ref().map_or(0, String::len))?;
        Ok(text)
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
            ["-s", file] => self.text(&path(file))?.is_some_and(|text| !text.is_empty()),
            ["-f" | "-e", file] => self.text(&path(file))?.is_some(),
            ["-n", text] => !text.is_empty(),
            ["-z", text] => text.is_empty(),
            ["-z"] => true,
            [text] => !text.is_empty(),
            _ => false,
        })
    }

    fn blscfg(&mut self) -> Result<(), Stop> {
        let mut entries: Vec<_> =
            self.files.entries()?.iter().filter_map(|(name, text)| bls::parse(name, text)).collect();
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
            let item = items.get(at.unwrap_or(0)).cloned().ok_or("it shows no entry")?;
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
            Err("its default entry starts no Linux".into())
        } else {
            Ok(self.entry)
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
        Ok(Entry { kernel: fill(&entry.kernel)?, initrds, options: fill(&entry.options)?, ..entry })
    }
}

/// A path without the device in front of it.
fn path(path: &str) -> String {
    let behind = path.strip_prefix('(').and_then(|rest| rest.split_once(')'));
    behind.map_or(path, |(_, path)| path).to_owned()
}

#[cfg(test)]
mod tests;
