//! GRUB's choice, as distributions write it.

use super::*;

struct Some_(Vec<(&'static str, String)>);

impl Files for Some_ {
    fn text(&self, path: &str) -> Result<Option<String>, ReadError> {
        Ok(self.0.iter().find(|(name, _)| *name == path).map(|(_, text)| text.clone()))
    }
    fn entries(&self) -> Result<Vec<(String, String)>, ReadError> {
        let is = |(name, _): &&(&str, String)| name.ends_with(".conf");
        Ok(self.0.iter().filter(is).map(|(name, text)| ((*name).to_owned(), text.clone())).collect())
    }
}

fn env(lines: &str) -> (&'static str, String) {
    ("/boot/grub/grubenv", format!("# GRUB Environment Block\n{lines}\n########"))
}

const DEBIAN: &str = r#"
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="DEFAULT"
fi
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
set menuentry_id_option=--id
export menuentry_id_option
function gfxmode {
	set gfxpayload="${1}"
}
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'simple-1' {
	load_video
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	search --no-floppy --fs-uuid --set=root 0b5d
	linux	/boot/vmlinuz-2 root=UUID=0b5d ro  quiet $vt_handoff dyndbg="file x +p"
	initrd	/boot/ucode.img /boot/initrd-2
}
submenu 'Advanced options' $menuentry_id_option 'advanced-1' {
	menuentry 'two' --class os $menuentry_id_option 'a-2' {
		linux	/boot/vmlinuz-2
	}
	menuentry 'one' --class os $menuentry_id_option 'a-1' {
		linux	"/boot/vmlinuz-1" ro
		initrd	($root)/boot/initrd-1
	}
}
"#;

fn kernel(default: &str, lines: &str) -> String {
    let files = Some_(vec![env(lines)]);
    choose(&files, "/boot/grub", &DEBIAN.replace("DEFAULT", default)).unwrap().kernel
}

#[test]
fn default_entry_keeps_its_options_and_all_its_initrds() {
    let files = Some_(Vec::new());
    let entry = choose(&files, "/boot/grub", &DEBIAN.replace("DEFAULT", "0")).unwrap();
    assert_eq!(entry.options, "root=UUID=0b5d ro quiet \"dyndbg=file x +p\"");
    assert_eq!(entry.initrds, ["/boot/ucode.img", "/boot/initrd-2"]);
    assert_eq!(entry.title, "Debian GNU/Linux");
}

#[test]
fn default_is_a_number_a_path_an_id_a_title_or_what_was_saved() {
    for default in ["1>1", "advanced-1>a-1", "Advanced options>one", "${saved_entry}"] {
        assert_eq!(kernel(default, "saved_entry=advanced-1>a-1"), "/boot/vmlinuz-1", "{default}");
    }
    assert_eq!(kernel("0", "next_entry=1>one"), "/boot/vmlinuz-1");
    assert_eq!(kernel("nothing of that name", ""), "/boot/vmlinuz-2");
}

#[test]
fn fedoras_entries_take_their_options_from_the_environment() {
    let cfg = "load_env\nset default=\"${saved_entry}\"\nif [ -z \"${kernelopts}\" ]; then\n set kernelopts=wrong\nfi\ninsmod blscfg\nblscfg\n";
    let entry = |version: &str| {
        format!(
            "title Fedora {version}\nversion {version}\nlinux /vmlinuz-{version}\ninitrd /initramfs-{version}.img $tuned_initrd\noptions $kernelopts $tuned_params\n"
        )
    };
    let files = |saved: &str| {
        Some_(vec![
            ("/boot/grub/grubenv", format!("{saved}\nkernelopts=root=UUID=1 ro\n")),
            ("id-6.9.conf", entry("6.9")),
            ("id-6.10.conf", entry("6.10")),
        ])
    };
    let newest = choose(&files(""), "/boot/grub", cfg).unwrap();
    assert_eq!((newest.kernel.as_str(), newest.options.as_str()), ("/vmlinuz-6.10", "root=UUID=1 ro"));
    assert_eq!(newest.initrds, ["/initramfs-6.10.img"]);
    assert_eq!(choose(&files("saved_entry=id-6.9"), "/boot/grub", cfg).unwrap().kernel, "/vmlinuz-6.9");
}

#[test]
fn scripts_that_do_not_end_or_hold_together_are_left() {
    let files = Some_(vec![("/boot/grub/grub.cfg", "source /boot/grub/grub.cfg".into())]);
    let doubling = format!("set a=aaaaaaaa\n{}", "set a=\"$a$a\"\n".repeat(99));
    let deep = "if true; then\n".repeat(9999);
    for text in [
        "source /boot/grub/grub.cfg",
        "function f {\nf\nf\n}\nf\n",
        &doubling,
        &deep,
        "'",
        "}",
        "menuentry x {",
        "",
    ] {
        assert!(matches!(choose(&files, "/boot/grub", text), Err(Stop::Because(_))), "{text:.40}");
    }
}
