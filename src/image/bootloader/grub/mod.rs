//! The entry that GRUB would start by itself: its script is run, with a limit on steps and bytes.

mod commands;
mod environment;
mod menu;
mod script;
mod test;

use std::borrow::Cow;
use std::collections::HashMap;

use super::{Entry, Files};
use crate::image::disk::{ReadError, SCRIPT_STEP_COST};
use menu::Item;
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
pub(in crate::image) enum GrubError {
    /// The disk cannot be read.
    Read(ReadError),
    /// In words.
    Message(Cow<'static, str>),
}

impl From<ReadError> for GrubError {
    fn from(error: ReadError) -> Self {
        GrubError::Read(error)
    }
}

impl From<&'static str> for GrubError {
    fn from(why: &'static str) -> Self {
        GrubError::Message(why.into())
    }
}
struct Interpreter<'a> {
    files: &'a dyn Files,
    variables: HashMap<String, String>,
    functions: HashMap<String, Block>,
    items: Vec<Item>,
    entry: Entry,
    remaining: usize,
    depth: usize,
    /// Arguments of the entry and the functions that run, the innermost last.
    arguments: Vec<Vec<String>>,
    /// Loops around the command that runs, within its function.
    loops: usize,
    /// The last command was successful.
    succeeded: bool,
    /// A condition is asked, whose answer decides.
    in_condition: bool,
    /// An entry of the menu runs.
    in_entry: bool,
    /// A `break`, `continue` or `return` is on its way out.
    unwinding: Option<Unwind>,
    /// A file system that the script looked for and that cannot be read here.
    missing: Option<String>,
    /// What of the script was not followed: a line each.
    notes: &'a mut Vec<String>,
}

/// What leaves blocks early. A loop is left so many levels up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unwind {
    Break(usize),
    Continue(usize),
    /// With success or without.
    Return(bool),
}

/// The default entry of the grub.cfg with this text, in this folder.
/// Parts that were passed over are named in `notes`.
pub(in crate::image) fn choose(
    files: &dyn Files,
    folder: &str,
    text: &str,
    notes: &mut Vec<String>,
) -> Result<Entry, GrubError> {
    let device = files.device();
    let prefix = format!("({device}){folder}");
    let mut run = Interpreter {
        files,
        variables: HashMap::new(),
        functions: HashMap::new(),
        items: Vec::new(),
        entry: Entry::default(),
        remaining: STEPS,
        depth: 0,
        arguments: Vec::new(),
        loops: 0,
        succeeded: true,
        in_condition: false,
        in_entry: false,
        unwinding: None,
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

impl Interpreter<'_> {
    fn charge(&mut self, cost: usize) -> Result<(), GrubError> {
        self.remaining = self.remaining.checked_sub(cost).ok_or("it does not end")?;
        Ok(self.files.charge((cost as u64).saturating_mul(SCRIPT_STEP_COST))?)
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), GrubError> {
        if value.len() > VALUE || name.len() > VALUE || self.variables.len() >= VARIABLES {
            return Err("its variables are too long".into());
        }
        self.variables.insert(name.to_owned(), value);
        Ok(())
    }

    /// The value of a variable, also of those that are made of others.
    fn value(&self, name: &str) -> String {
        match (name, self.arguments.last()) {
            ("?", _) => if self.succeeded { "0" } else { "1" }.to_owned(),
            ("#", Some(arguments)) => arguments.len().to_string(),
            ("@" | "*", Some(arguments)) => arguments.join(" "),
            _ => self.get(name).to_owned(),
        }
    }

    fn get(&self, name: &str) -> &str {
        let argument = name.parse().ok().and_then(|number: usize| number.checked_sub(1));
        if let (Some(at), Some(arguments)) = (argument, self.arguments.last()) {
            return arguments.get(at).map_or("", String::as_str);
        }
        self.variables.get(name).map_or("", String::as_str)
    }

    /// The words of a command. A variable outside of quotes is as many words as it has.
    fn expand(&mut self, words: &[Word]) -> Result<Vec<String>, GrubError> {
        let mut all = Vec::new();
        for word in words {
            let mut now: Option<String> = None;
            for piece in word {
                match piece {
                    Piece::Text(text) => {
                        self.charge(text.len())?;
                        now.get_or_insert_default().push_str(text);
                    }
                    Piece::Variable { name, quoted } => {
                        let value = self.value(name);
                        self.charge(value.len() + 1)?;
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
        // Each word is a text of its own, which costs more than its bytes.
        self.charge(all.len().saturating_mul(16))?;
        Ok(all)
    }

    /// Whether its last command was successful.
    fn block(&mut self, block: &Block) -> Result<bool, GrubError> {
        let mut success = true;
        for statement in block.iter() {
            self.charge(STEP)?;
            success = self.statement(statement)?;
            if self.unwinding.is_some() {
                break;
            }
        }
        Ok(success)
    }

    /// Whether a condition holds.
    fn condition_holds(&mut self, condition: &Block) -> Result<bool, GrubError> {
        let outside = std::mem::replace(&mut self.in_condition, true);
        let holds = self.block(condition);
        self.in_condition = outside;
        holds
    }

    fn statement(&mut self, statement: &Statement) -> Result<bool, GrubError> {
        match statement {
            Statement::Command(words) => {
                let words = self.expand(words)?;
                self.command(&words.iter().map(String::as_str).collect::<Vec<_>>())
            }
            Statement::If { arms, otherwise } => {
                for (condition, body) in arms {
                    let holds = self.condition_holds(condition)?;
                    if self.unwinding.is_some() {
                        return Ok(holds);
                    }
                    if holds {
                        return self.block(body);
                    }
                }
                self.block(otherwise)
            }
            Statement::For { variable, values, body } => {
                self.loops += 1;
                for value in self.expand(values)? {
                    self.charge(STEP)?;
                    if value.contains(['*', '?', '[']) {
                        self.note(format!("the wildcards of `{value}` are not followed"));
                    }
                    self.set(variable, value)?;
                    self.block(body)?;
                    if self.loop_ends() {
                        break;
                    }
                }
                self.loops = self.loops.saturating_sub(1);
                Ok(self.succeeded)
            }
            Statement::While { until, condition, body } => {
                self.loops += 1;
                let success = self.repeat(*until, condition, body);
                self.loops = self.loops.saturating_sub(1);
                success
            }
            Statement::Braces { words, body } => {
                let words = self.expand(words)?;
                self.braces(&words, body);
                Ok(true)
            }
        }
    }

    /// A loop with a condition. One that goes on for long waits for a key or a device that is not here.
    fn repeat(&mut self, until: bool, condition: &Block, body: &Block) -> Result<bool, GrubError> {
        for _ in 0..ROUNDS {
            let holds = self.condition_holds(condition)?;
            if self.loop_ends() || holds == until {
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
        let (ends, unwinding) = match self.unwinding {
            None | Some(Unwind::Continue(0 | 1)) => (false, None),
            Some(Unwind::Break(0 | 1)) => (true, None),
            Some(Unwind::Break(levels)) => (true, Some(Unwind::Break(levels - 1))),
            Some(Unwind::Continue(levels)) => (true, Some(Unwind::Continue(levels - 1))),
            Some(Unwind::Return(success)) => (true, Some(Unwind::Return(success))),
        };
        self.unwinding = unwinding;
        ends
    }

    fn note(&mut self, line: String) {
        if self.notes.len() < NOTES && !self.notes.contains(&line) {
            self.notes.push(line);
        }
    }
}

#[cfg(test)]
mod scripts;
#[cfg(test)]
mod tests;
