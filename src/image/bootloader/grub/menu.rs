//! The menu that a script makes, and its default entry.

use super::script::Block;
use super::{DEPTH, GrubError, ITEMS, Interpreter, STEP};
use crate::image::bootloader::{Entry, bls};

/// A line of the menu.
#[derive(Debug, Clone)]
pub(super) struct Item {
    title: String,
    id: String,
    /// The arguments of its body: the title, and the words after it.
    arguments: Vec<String>,
    body: Body,
}

#[derive(Debug, Clone)]
enum Body {
    Entry(Block),
    Submenu(Block),
    Bls(Entry),
}

impl Interpreter<'_> {
    pub(super) fn braces(&mut self, words: &[String], body: &Block) {
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
        let (mut arguments, mut id) = (Vec::new(), None);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.split_once('=').map_or((word.as_str(), None), |(name, value)| (name, Some(value))) {
                ("--id", Some(value)) => id = Some(value.to_owned()),
                ("--id", None) => id = words.next().cloned(),
                ("--class" | "--users" | "--hotkey", None) => drop(words.next()),
                _ if word.starts_with("--") => {}
                _ => arguments.push(word.clone()),
            }
        }
        let title = arguments.first().cloned().unwrap_or_default();
        if self.items.len() < ITEMS {
            self.items.push(Item { id: id.unwrap_or_else(|| title.clone()), title, arguments, body });
        }
    }

    pub(super) fn blscfg(&mut self) -> Result<(), GrubError> {
        let mut entries: Vec<_> = self
            .files
            .entries(self.get("root"))?
            .iter()
            .filter_map(|(name, text)| bls::parse(name, text))
            .collect();
        entries.sort_by(bls::order);
        for found in entries {
            let (title, arguments) = (found.entry.title.clone(), Vec::new());
            let item = Item { title, id: found.id, arguments, body: Body::Bls(found.entry) };
            if self.items.len() < ITEMS {
                self.items.push(item);
            }
        }
        Ok(())
    }

    /// Takes the default entry, or a fallback if that cannot be started.
    pub(super) fn default(mut self) -> Result<Entry, GrubError> {
        let (items, variables) = (std::mem::take(&mut self.items), self.variables.clone());
        let wanted = self.get("default").to_owned();
        self.descend(items.clone(), wanted)?;
        let others: Vec<_> = self.get("fallback").split([' ', '\t']).map(str::to_owned).collect();
        for other in others.iter().filter(|other| !other.is_empty()).take(DEPTH) {
            if self.boots()? {
                break;
            }
            let found = std::mem::take(&mut self.entry);
            self.variables.clone_from(&variables);
            let at = find(&items, other);
            if at.is_some() {
                self.descend(items.clone(), other.clone())?;
            }
            if self.boots()? {
                self.charge(STEP * 16)?;
                let said = if found.title.is_empty() {
                    "its default entry".into()
                } else {
                    format!("its entry {}", found.title)
                };
                self.note(format!("{said} cannot be started, and its fallback is taken"));
                break;
            }
            self.entry = found;
        }
        if self.entry.kernel.is_empty() {
            Err(self.nothing("its default entry starts no Linux"))
        } else {
            Ok(self.entry)
        }
    }

    /// Whether the entry has a kernel that exists.
    fn boots(&self) -> Result<bool, GrubError> {
        let (device, path) = match self.entry.kernel.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            Some((device, path)) => (device.to_owned(), path),
            None => (self.files.device(), self.entry.kernel.as_str()),
        };
        Ok(!path.is_empty() && self.files.size(&device, path)?.is_some())
    }

    /// Selects an entry of a menu, through submenus and through further menus that an entry shows.
    fn descend(&mut self, mut items: Vec<Item>, mut wanted: String) -> Result<(), GrubError> {
        for _ in 0..DEPTH {
            let (here, behind) = wanted.split_once('>').unwrap_or((&wanted, ""));
            let (at, behind) = match find(&items, &wanted) {
                Some(at) => (at, ""),
                None => find(&items, here).map_or((0, ""), |at| (at, behind)),
            };
            let behind = behind.to_owned();
            let item = items.get(at).cloned().ok_or_else(|| self.nothing("it shows no entry"))?;
            self.charge_bytes(items.len())?;
            wanted = behind;
            match item.body {
                Body::Submenu(body) => drop(self.call(item.arguments, &body)?),
                Body::Entry(body) => {
                    self.in_entry = true;
                    self.call(item.arguments, &body)?;
                    self.entry.title = item.title;
                    if !self.entry.kernel.is_empty() || self.items.is_empty() {
                        break;
                    }
                    self.get("default").clone_into(&mut wanted);
                }
                Body::Bls(entry) => {
                    self.entry = self.with_variables(entry)?;
                    break;
                }
            }
            items = std::mem::take(&mut self.items);
        }
        self.items.clear();
        Ok(())
    }

    /// Why there is nothing to boot.
    fn nothing(&self, why: &'static str) -> GrubError {
        match &self.missing {
            Some(missing) => GrubError::Message(
                format!("{why}, and the file system {missing} that it looks for cannot be read here").into(),
            ),
            None => why.into(),
        }
    }

    /// A BLS entry with GRUB's variables expanded.
    fn with_variables(&mut self, entry: Entry) -> Result<Entry, GrubError> {
        let mut fill = |text: &str| -> Result<String, GrubError> {
            // Quotes are left to the kernel: only variables are expanded here.
            let mut parts = text.split('$');
            let mut all = parts.next().unwrap_or_default().to_owned();
            for part in parts {
                let part = part.strip_prefix('{').unwrap_or(part);
                let end = part.find(|sign: char| !sign.is_ascii_alphanumeric() && sign != '_');
                let (name, rest) = part.split_at(end.unwrap_or(part.len()));
                let value = self.get(name).to_owned();
                self.charge(STEP)?;
                self.charge_bytes(value.len())?;
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

/// The index of an entry by its number, id or title. A number is never an id.
fn find(items: &[Item], name: &str) -> Option<usize> {
    let number = match name.strip_prefix("0x") {
        Some(hex) => usize::from_str_radix(hex, 16),
        None if name.starts_with('0') => usize::from_str_radix(name, 8),
        None => name.parse(),
    };
    match number {
        Ok(at) => Some(at).filter(|at| *at < items.len()),
        Err(_) => items.iter().position(|item| item.id == name || item.title == name),
    }
}
