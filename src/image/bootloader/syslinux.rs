//! The default entry of an extlinux.conf or syslinux.cfg, with included files.

use super::{Entry, Files};
use crate::image::disk::ReadError;

/// Maximum files to read for one, and maximum labels.
const FILES: usize = 32;
const LABELS: usize = 1024;

/// A label.
#[derive(Debug, Default)]
struct Label {
    name: String,
    entry: Entry,
    /// Its `APPEND`; without one, the global `APPEND` applies.
    append: Option<String>,
    /// Options after the kernel's name, which come first.
    first: String,
    /// Another file to continue with, and the folder for that file's paths.
    config: Option<(String, Option<String>)>,
}

/// The content of a file and of the files that it includes.
#[derive(Debug, Default)]
struct Menu {
    labels: Vec<Label>,
    /// `DEFAULT`, `MENU DEFAULT`, `ONTIMEOUT`.
    default: Option<String>,
    menu_default: Option<String>,
    timeout: Option<String>,
    /// A menu is shown, so its own default applies.
    ui: bool,
    /// Options for labels without their own.
    options: String,
}

/// The default entry, or why there is none; `None` if the file names none. Relative paths start in `folder`.
pub(in crate::image) fn choose(
    files: &dyn Files,
    folder: &str,
    text: &str,
) -> Result<Option<Result<Entry, String>>, ReadError> {
    let (mut folder, mut text, mut left) = (folder.to_owned(), text.to_owned(), FILES);
    loop {
        let mut menu = Menu::default();
        menu.read(files, &folder, &text, &mut left)?;
        let common = std::mem::take(&mut menu.options);
        let label = match menu.choose(&folder) {
            Some(Ok(label)) => label,
            Some(Err(why)) => return Ok(Some(Err(why))),
            None => return Ok(None),
        };
        let Some((config, below)) = label.config else {
            let mut entry = label.entry;
            entry.options = format!("{} {}", label.first, label.append.unwrap_or(common)).trim().to_owned();
            return Ok(Some(Ok(finish(entry, &folder))));
        };
        left = left.saturating_sub(1);
        let path = absolute(&folder, &config);
        match files.text(&files.device(), &path)? {
            Some(next) if left > 0 => text = next,
            _ => {
                return Ok(Some(Err(format!(
                    "its default entry goes on with {config}, which cannot be read"
                ))));
            }
        }
        folder = below.map_or(folder.clone(), |below| absolute(&folder, &below));
    }
}

impl Menu {
    fn read(
        &mut self,
        files: &dyn Files,
        folder: &str,
        text: &str,
        left: &mut usize,
    ) -> Result<(), ReadError> {
        let mut in_text = false;
        for line in text.lines() {
            let (key, value) = words(line);
            // The help text of a label has no commands.
            if in_text || key == "text" {
                in_text = key != "endtext" && (in_text || words(value).0 == "help");
                continue;
            }
            let (key, value) = match key.as_str() {
                // `MENU INCLUDE` and `MENU DEFAULT`; the other menu keywords are irrelevant.
                "menu" => match words(value) {
                    (word, rest) if word == "include" => (word, rest),
                    (word, _) if word == "default" => ("menu default".to_owned(), ""),
                    _ => continue,
                },
                _ => (key, value),
            };
            if key == "include" {
                let name = value.split_whitespace().next().unwrap_or_default();
                *left = left.saturating_sub(1);
                let text =
                    if *left > 0 { files.text(&files.device(), &absolute(folder, name))? } else { None };
                if let Some(text) = text {
                    self.read(files, folder, &text, left)?;
                }
                continue;
            }
            self.line(&key, value, folder);
        }
        Ok(())
    }

    fn line(&mut self, key: &str, value: &str, folder: &str) {
        let room = self.labels.len() < LABELS;
        match (key, self.labels.last_mut()) {
            ("default", _) => self.default = Some(value.to_owned()),
            ("ontimeout", _) => self.timeout = Some(value.to_owned()),
            ("ui", _) => self.ui = true,
            ("label", _) if room => {
                let entry = Entry { title: value.to_owned(), ..Entry::default() };
                self.labels.push(Label { name: value.to_owned(), entry, ..Label::default() });
            }
            ("append", None) => value.clone_into(&mut self.options),
            (_, None) => {}
            ("menu default", Some(label)) => self.menu_default = Some(label.name.clone()),
            ("kernel" | "linux", Some(label)) => {
                let (file, options) = value.split_once(char::is_whitespace).unwrap_or((value, ""));
                label.entry.kernel = absolute(folder, file);
                options.trim().clone_into(&mut label.first);
            }
            ("config", Some(label)) => {
                let mut words = value.split_whitespace().map(str::to_owned);
                label.config = words.next().map(|file| (file, words.next()));
            }
            ("initrd", Some(label)) => {
                label.entry.initrds = value.split(',').map(|one| absolute(folder, one.trim())).collect();
            }
            ("append", Some(label)) => {
                label.append = Some(if value == "-" { String::new() } else { value.to_owned() });
            }
            _ => {}
        }
    }

    /// The default label. If none is named, it is the first that starts Linux.
    fn choose(mut self, folder: &str) -> Option<Result<Label, String>> {
        let default = self.default.unwrap_or_default();
        let first_word = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
        let is_menu = self.ui || first_word(&default).ends_with(".c32");
        let wanted = match (self.timeout, self.menu_default) {
            (Some(timeout), _) => timeout,
            (None, Some(label)) if is_menu || default.is_empty() => label,
            _ if is_menu => String::new(),
            _ => default,
        };
        let name = first_word(&wanted);
        let is_wanted = |label: &Label| label.name == wanted || label.name.eq_ignore_ascii_case(&name);
        let boots = |label: &Label| {
            let kernel = &label.entry.kernel;
            label.config.is_some() || !kernel.is_empty() && !kernel.ends_with(".c32")
        };
        if let Some(at) = self.labels.iter().position(is_wanted).filter(|_| !wanted.is_empty()) {
            let label = self.labels.swap_remove(at);
            return Some(if boots(&label) {
                Ok(label)
            } else {
                Err("its default entry starts no Linux".into())
            });
        }
        if let Some(at) = self.labels.iter().position(boots) {
            return Some(Ok(self.labels.swap_remove(at)));
        }
        // A default that is not a label is a kernel with its options.
        let options = wanted.split_once(char::is_whitespace).map_or("", |(_, options)| options.trim());
        let append = Some(options.to_owned());
        let entry = Entry { title: name.clone(), kernel: absolute(folder, &name), ..Entry::default() };
        (!name.is_empty() && self.labels.is_empty()).then_some(Ok(Label {
            name,
            entry,
            append,
            ..Label::default()
        }))
    }
}

/// Moves `initrd=` from the options into the entry.
fn finish(mut entry: Entry, folder: &str) -> Entry {
    let (initrd, options): (Vec<&str>, Vec<&str>) =
        entry.options.split(' ').partition(|word| word.starts_with("initrd="));
    let list = initrd.last().and_then(|word| word.strip_prefix("initrd="));
    if let (Some(list), true) = (list, entry.initrds.is_empty()) {
        entry.initrds = list.split(',').map(|one| absolute(folder, one)).collect();
    }
    entry.options = options.join(" ");
    entry
}

/// The first word of a line in lower case, and the rest.
fn words(line: &str) -> (String, &str) {
    let line = line.trim();
    let (key, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    (key.to_ascii_lowercase(), value.trim())
}

fn absolute(folder: &str, path: &str) -> String {
    // Two colons mean the file system itself.
    let path = path.strip_prefix("::").unwrap_or(path);
    if path.starts_with('/') { path.to_owned() } else { format!("{folder}/{path}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::bootloader::{DeviceAttribute, SearchBy};

    struct FakeFiles(&'static [(&'static str, &'static str)]);

    impl Files for FakeFiles {
        fn charge(&self, _: u64) -> Result<(), ReadError> {
            Ok(())
        }
        fn device(&self) -> String {
            String::new()
        }
        fn text(&self, _: &str, path: &str) -> Result<Option<String>, ReadError> {
            Ok(self.0.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned()))
        }
        fn has_device(&self, _: &str) -> bool {
            true
        }
        fn size(&self, _: &str, _: &str) -> Result<Option<u64>, ReadError> {
            Ok(None)
        }
        fn is_folder(&self, _: &str, _: &str) -> Result<bool, ReadError> {
            Ok(false)
        }
        fn entries(&self, _: &str) -> Result<Vec<(String, String)>, ReadError> {
            Ok(Vec::new())
        }
        fn search(&self, _: SearchBy, _: &str) -> Result<Option<String>, ReadError> {
            Ok(None)
        }
        fn attribute(&self, _: &str, _: DeviceAttribute) -> Option<String> {
            None
        }
    }

    fn parse(text: &str, folder: &str) -> Option<Entry> {
        choose(&FakeFiles(&[]), folder, text).unwrap().and_then(Result::ok)
    }

    #[test]
    fn alpines_file_is_read() {
        let text = "DEFAULT menu.c32\nPROMPT 0\nMENU TITLE Alpine\nLABEL lts\n  MENU DEFAULT\n  LINUX vmlinuz-lts\n  INITRD initramfs-lts\n  APPEND root=UUID=5 modules=ext4 quiet\n";
        let entry = parse(text, "/boot").unwrap();
        assert_eq!(
            (entry.kernel.as_str(), entry.initrds[0].as_str()),
            ("/boot/vmlinuz-lts", "/boot/initramfs-lts")
        );
        assert_eq!(entry.options, "root=UUID=5 modules=ext4 quiet");
    }

    #[test]
    fn default_label_and_an_initrd_among_the_options() {
        let text = "default b\nlabel a\nkernel /a\nlabel b\nkernel /b\nappend initrd=/u.img,/i.img ro\n";
        let entry = parse(text, "").unwrap();
        assert_eq!((entry.kernel.as_str(), entry.options.as_str()), ("/b", "ro"));
        assert_eq!(entry.initrds, ["/u.img", "/i.img"]);
        assert_eq!(parse("prompt 1\n", ""), None);
        let entry = parse("default linux ro quiet\n", "/syslinux").unwrap();
        assert_eq!((entry.kernel.as_str(), entry.options.as_str()), ("/syslinux/linux", "ro quiet"));
    }

    #[test]
    fn included_files_are_read_and_a_config_goes_on() {
        let files = FakeFiles(&[
            ("/s/menu.cfg", "LABEL menu\nLINUX /from-menu\nINCLUDE more.cfg\n"),
            ("/s/more.cfg", "LABEL more\n LINUX /k\n APPEND ro\nINCLUDE more.cfg\n"),
            ("/s/other.cfg", "DEFAULT x\nLABEL x\nLINUX k\n"),
        ]);
        let chosen = |text: &str| choose(&files, "/s", text).unwrap().unwrap();
        for text in ["DEFAULT more\nINCLUDE menu.cfg\n", "DEFAULT more\nMENU INCLUDE /s/menu.cfg Title\n"] {
            assert_eq!(chosen(text).unwrap().kernel, "/k", "{text}");
        }
        assert_eq!(chosen("LABEL a\nCONFIG /s/other.cfg /t\n").unwrap().kernel, "/t/k");
        assert_eq!(chosen("LABEL a\nCONFIG other.cfg\n").unwrap().kernel, "/s/k");
        // A file that continues with itself ends.
        let looping = FakeFiles(&[("/s/a.cfg", "LABEL a\nCONFIG a.cfg\n")]);
        let chosen = choose(&looping, "/s", "LABEL a\nCONFIG a.cfg\n").unwrap().unwrap();
        assert_eq!(chosen, Err("its default entry goes on with a.cfg, which cannot be read".into()));
    }

    #[test]
    fn help_holds_no_commands_and_options_may_stand_behind_the_kernel() {
        let text = "LABEL a\nKERNEL k root=/dev/vda  ro\nINITRD i\nTEXT HELP\nLinux is great\ninitrd too\n  append nothing\n\
            ENDTEXT\nAPPEND quiet\nText Help\nLABEL b\n endtext\n";
        let entry = parse(text, "/s").unwrap();
        assert_eq!((entry.kernel.as_str(), entry.initrds.as_slice()), ("/s/k", &["/s/i".to_owned()][..]));
        assert_eq!(entry.options, "root=/dev/vda  ro quiet");
        let entry = parse("LABEL a\nLINUX /k initrd=i,j x\nAPPEND -\n", "/s").unwrap();
        assert_eq!((entry.options.as_str(), entry.initrds.len()), ("x", 2));
        assert_eq!(parse("LABEL a\nLINUX ::/k\n", "/s").unwrap().kernel, "/k");
    }

    #[test]
    fn default_that_starts_no_linux_is_said() {
        let text = "DEFAULT local\nLABEL local\nLOCALBOOT 0\nLABEL install\nLINUX /k\n";
        let chosen = choose(&FakeFiles(&[]), "", text).unwrap().unwrap();
        assert_eq!(chosen, Err("its default entry starts no Linux".into()));
    }
}
