//! The default entry of an extlinux.conf or syslinux.cfg.

use super::Entry;

/// The entry that `DEFAULT`, `MENU DEFAULT` or `ONTIMEOUT` name; without them the first. Relative paths start in `folder`.
pub(in crate::image) fn parse(text: &str, folder: &str) -> Option<Entry> {
    let (mut default, mut labels) = (None, Vec::<(String, Entry)>::new());
    let mut global = String::new();
    let path = |path: &str| if path.starts_with('/') { path.to_owned() } else { format!("{folder}/{path}") };
    for line in text.lines() {
        let (key, value) = line.trim().split_once(char::is_whitespace).unwrap_or_default();
        let (key, value) = (key.to_ascii_lowercase(), value.trim());
        let label = labels.last_mut();
        match (key.as_str(), label) {
            ("default" | "ontimeout", _) => default = Some(value.to_owned()),
            ("label", _) => {
                let entry = Entry { title: value.to_owned(), options: global.clone(), ..Entry::default() };
                labels.push((value.to_owned(), entry));
            }
            ("menu", Some((name, _))) if value.eq_ignore_ascii_case("default") => {
                default = Some(name.clone())
            }
            ("kernel" | "linux", Some((_, entry))) => entry.kernel = path(value),
            ("initrd", Some((_, entry))) => {
                entry.initrds = value.split(',').map(|one| path(one.trim())).collect()
            }
            ("append", Some((_, entry))) => {
                entry.options = if value == "-" { String::new() } else { value.to_owned() };
            }
            ("append", None) => global = value.to_owned(),
            _ => {}
        }
    }
    labels.retain(|(_, entry)| !entry.kernel.is_empty() && !entry.kernel.ends_with(".c32"));
    let wanted = default.as_deref().unwrap_or_default();
    let name = wanted.split_whitespace().next().unwrap_or_default();
    let at = labels.iter().position(|(label, _)| label == wanted || label == name).unwrap_or(0);
    let (_, mut entry) = (at < labels.len()).then(|| labels.swap_remove(at))?;
    // The initrd can stand among the options.
    let (initrd, options): (Vec<&str>, Vec<&str>) =
        entry.options.split(' ').partition(|word| word.starts_with("initrd="));
    if let (Some(list), true) =
        (initrd.last().and_then(|word| word.strip_prefix("initrd=")), entry.initrds.is_empty())
    {
        entry.initrds = list.split(',').map(path).collect();
    }
    entry.options = options.join(" ");
    Some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(parse("default x\n", ""), None);
    }
}
