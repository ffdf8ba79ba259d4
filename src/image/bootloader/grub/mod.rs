//! The default entry of GRUB: its script is interpreted, with a limit on its work.

mod commands;
mod environment;
mod menu;
mod script;
mod test;

use std::borrow::Cow;
use std::collections::HashMap;

use super::{Entry, Files};
use crate::image::disk::{ReadError, SCRIPT_BUDGET, SCRIPT_BYTE_COST};
use menu::Item;
use script::{Block, Piece, Statement, Word};

/// Cost of a step of a script, such as a command, in the disk budget's unit.
const STEP: u64 = 128 * SCRIPT_BYTE_COST;
/// Maximum length of a variable's value, and number of variables.
const VALUE: usize = 16 << 10;
const VARIABLES: usize = 1024;
/// Maximum entries of one menu, and nesting of scripts and functions.
const ITEMS: usize = 1024;
const DEPTH: usize = 16;
/// Maximum words of one comparison, which may be nested.
const TEST_WORDS: usize = 128;
/// Maximum rounds of a loop with a condition.
const ROUNDS: usize = 256;
/// Maximum notes about parts that are not followed.
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
    /// Work that the scripts may still do, in the disk budget's unit.
    remaining: u64,
    depth: usize,
    /// Arguments of the running entry and functions, the innermost last.
    arguments: Vec<Vec<String>>,
    /// Loops around the current command, within its function.
    loops: usize,
    /// The last command succeeded.
    succeeded: bool,
    /// A condition is being evaluated.
    in_condition: bool,
    /// An entry of the menu is running.
    in_entry: bool,
    /// A `break`, `continue` or `return` in progress.
    unwinding: Option<Unwind>,
    /// A file system that the script searched for and that cannot be read here.
    missing: Option<String>,
    /// Parts of the script that were not followed, a line each.
    notes: &'a mut Vec<String>,
}

/// Ways to leave blocks early, with the number of loops to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unwind {
    Break(usize),
    Continue(usize),
    /// With success or failure.
    Return(bool),
}

/// The default entry of the grub.cfg with this text, in this folder. Parts that are not followed are reported
/// in `notes`.
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
        remaining: SCRIPT_BUDGET,
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
    fn charge(&mut self, cost: u64) -> Result<(), GrubError> {
        self.remaining = self.remaining.checked_sub(cost).ok_or("it takes too many steps")?;
        Ok(self.files.charge(cost)?)
    }

    fn charge_bytes(&mut self, count: usize) -> Result<(), GrubError> {
        self.charge((count as u64).saturating_mul(SCRIPT_BYTE_COST))
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), GrubError> {
        if value.len() > VALUE || name.len() > VALUE || self.variables.len() >= VARIABLES {
            return Err("its variables are too long".into());
        }
        self.variables.insert(name.to_owned(), value);
        Ok(())
    }

    /// The value of a variable, including the special ones.
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

    /// The words of a command. An unquoted variable is split into words.
    fn expand(&mut self, words: &[Word]) -> Result<Vec<String>, GrubError> {
        let mut all = Vec::new();
        for word in words {
            let mut now: Option<String> = None;
            for piece in word {
                match piece {
                    Piece::Text(text) => {
                        self.charge_bytes(text.len())?;
                        now.get_or_insert_default().push_str(text);
                    }
                    Piece::Variable { name, quoted } => {
                        let value = self.value(name);
                        self.charge_bytes(value.len() + 1)?;
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
        // Each word is a separate allocation, which costs more than its bytes.
        self.charge_bytes(all.len().saturating_mul(16))?;
        Ok(all)
    }

    /// Runs a block; whether its last command succeeded.
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

    /// Evaluates a condition.
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

    /// A loop with a condition. A long loop waits for a key or a device that does not exist here.
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
