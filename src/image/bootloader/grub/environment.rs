//! Commands that query the machine and the environment: `load_env`, `probe`, `cpuid`, and the arguments of
//! functions.

use super::{GrubError, Interpreter, STEP, script};
use crate::image::bootloader::DeviceAttribute;

/// Cost of parsing a byte, as a number of bytes: it may be a word of its own.
const PARSE: usize = 12;

impl Interpreter<'_> {
    /// Reads an environment block: lines of names and values, where a backslash escapes the next character.
    /// If variables are named, only those are set.
    pub(super) fn load_env(&mut self, words: &[&str]) -> Result<bool, GrubError> {
        let (mut file, mut names) = (format!("{}/grubenv", self.get("prefix")), Vec::new());
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "-f" | "--file" => words.next().copied().unwrap_or_default().clone_into(&mut file),
                word if word.starts_with("--file=") => {
                    word.trim_start_matches("--file=").clone_into(&mut file);
                }
                word if word.starts_with('-') => {}
                name => names.push(name),
            }
        }
        let Some(text) = self.text(&file)? else { return Ok(false) };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.split_once('=') else { continue };
            self.charge_bytes(names.len())?;
            if !names.is_empty() && !names.contains(&name) {
                continue;
            }
            let mut escaped = false;
            let value = value.chars().filter(|sign| {
                escaped = *sign == '\\' && !escaped;
                !escaped
            });
            self.set(name, value.collect())?;
        }
        Ok(true)
    }

    /// Queries an attribute of a device's file system or partition.
    pub(super) fn probe(&mut self, words: &[&str]) -> Result<bool, GrubError> {
        let (mut attribute, mut variable, mut device) = (None, None, None);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--fs-uuid" | "-u" => attribute = Some(DeviceAttribute::Uuid),
                "--label" | "-l" => attribute = Some(DeviceAttribute::Label),
                "--part-uuid" => attribute = Some(DeviceAttribute::PartUuid),
                "--set" | "-s" => variable = words.next().copied(),
                word if word.starts_with("--set=") => variable = word.strip_prefix("--set="),
                word if word.starts_with('-') => {
                    self.note(format!("`probe {word}` is not known here and counts as failed"));
                    return Ok(false);
                }
                word => device = Some(word.trim_start_matches('(').trim_end_matches(')')),
            }
        }
        self.charge(STEP)?;
        let (Some(attribute), Some(device)) = (attribute, device) else { return Ok(false) };
        let Some(value) = self.files.attribute(device, attribute) else { return Ok(false) };
        if let Some(variable) = variable {
            self.set(variable, value)?;
        }
        Ok(true)
    }

    /// Every processor here runs 64-bit code.
    pub(super) fn cpuid(&mut self, words: &[&str]) -> bool {
        let known = words.iter().all(|word| matches!(*word, "-l" | "--long-mode" | "-p" | "--pae"));
        if !known {
            self.note(format!("`cpuid {}` is not known here and counts as failed", words.join(" ")));
        }
        known && !words.is_empty()
    }

    pub(super) fn eval(&mut self, text: &str) -> Result<bool, GrubError> {
        self.script("eval", text)
    }

    /// Runs a text as a script of its own. A syntax error in it fails this command only.
    pub(super) fn script(&mut self, name: &str, text: &str) -> Result<bool, GrubError> {
        self.charge_bytes(text.len().saturating_mul(PARSE))?;
        match script::parse(text) {
            Ok(block) => self.nested(&block),
            Err(why) => {
                self.note(format!("`{name}` is not followed: {why}"));
                Ok(false)
            }
        }
    }

    pub(super) fn set_arguments(&mut self, words: &[&str]) {
        if let Some(arguments) = self.arguments.last_mut() {
            *arguments = words.iter().map(|word| (*word).to_owned()).collect();
        }
    }

    pub(super) fn shift(&mut self, counts: &[&str]) {
        let count = counts.first().map_or(Ok(1), |count| count.parse()).unwrap_or(usize::MAX);
        if let Some(arguments) = self.arguments.last_mut().filter(|arguments| count <= arguments.len()) {
            arguments.drain(..count);
        }
    }
}
