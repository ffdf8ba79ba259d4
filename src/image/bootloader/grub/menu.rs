//! The menu that a script makes, and its default entry.

use super::script::Block;
use super::{DEPTH, ITEMS, Run, STEP, Stop};
use crate::image::bootloader::{Entry, bls};

/// A line of the menu.
#[derive(Debug, Clone)]
pub(super) struct Item {
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

impl Run<'_> {
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
    pub(super) fn blscfg(&mut self) -> Result<(), Stop> {
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
    pub(super) fn default(mut self) -> Result<Entry, Stop> {
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
