//! GRUB's choice in scripts as distributions write them.

use super::*;
use crate::image::bootloader::{DeviceAttribute, SearchBy};

pub(super) struct FakeFiles(pub(super) Vec<(&'static str, String)>);

impl Files for FakeFiles {
    fn charge(&self, _: u64) -> Result<(), ReadError> {
        Ok(())
    }
    fn device(&self) -> String {
        "hd0,1".to_owned()
    }
    fn text(&self, device: &str, path: &str) -> Result<Option<String>, ReadError> {
        let path = if device == "hd0,1" { path.to_owned() } else { format!("({device}){path}") };
        Ok(self.0.iter().find(|(name, _)| *name == path).map(|(_, text)| text.clone()))
    }
    fn has_device(&self, device: &str) -> bool {
        device.starts_with("hd0")
    }
    fn size(&self, device: &str, path: &str) -> Result<Option<u64>, ReadError> {
        Ok(self.text(device, path)?.map(|text| text.len() as u64))
    }
    fn is_folder(&self, _: &str, path: &str) -> Result<bool, ReadError> {
        Ok(path == "/boot")
    }
    fn entries(&self, _: &str) -> Result<Vec<(String, String)>, ReadError> {
        let is = |(name, _): &&(&str, String)| name.ends_with(".conf");
        Ok(self.0.iter().filter(is).map(|(name, text)| ((*name).to_owned(), text.clone())).collect())
    }
    fn search(&self, by: SearchBy, value: &str) -> Result<Option<String>, ReadError> {
        let here = [(SearchBy::Uuid, "2"), (SearchBy::Label, "two"), (SearchBy::File, "/is-two")];
        Ok(here.contains(&(by, value)).then(|| "hd0,2".to_owned()))
    }
    fn attribute(&self, device: &str, attribute: DeviceAttribute) -> Option<String> {
        (device == "hd0,1").then(|| format!("{attribute:?}-of-1"))
    }
}

/// The choice of a script, for tests that expect no notes.
fn choose(files: &dyn Files, folder: &str, text: &str) -> Result<Entry, GrubError> {
    let mut notes = Vec::new();
    let entry = super::choose(files, folder, text, &mut notes);
    assert_eq!(notes, Vec::<String>::new());
    entry
}

#[test]
fn what_is_searched_for_becomes_the_root() {
    let files = FakeFiles(vec![(
        "(hd0,2)/grub/grub.cfg",
        "menuentry x {\nlinux /k ro\ninitrd ($root)/i (hd0,1)/u\n}".into(),
    )]);
    for search in [
        "search.fs_uuid 2 root hd0,gpt2",
        "search --no-floppy --fs-uuid --set=root --hint-bios=hd0,msdos1 2",
        "search --no-floppy --label --set two",
        "search --file --set=root /is-two",
        "search -f -s root /is-two",
        "if search --set=dev -u 2; then\nset root=$dev\nfi",
    ] {
        let stub = format!("{search}\nset prefix=($root)'/grub'\nconfigfile $prefix/grub.cfg\n");
        let entry = choose(&files, "/EFI/debian", &stub).unwrap();
        assert_eq!(entry.kernel, "(hd0,2)/k", "{search}");
        assert_eq!(entry.initrds, ["(hd0,2)/i", "/u"], "{search}");
    }
    let stub = "search.fs_uuid 9 root\nset prefix=($root)'/grub'\nconfigfile $prefix/grub.cfg\n";
    let Err(GrubError::Message(why)) = choose(&files, "/EFI/debian", stub) else { panic!("it is followed") };
    assert!(why.contains("the file system 9"), "{why}");
}

#[test]
fn loops_run_and_are_left() {
    let text = "set n=\nwhile [ \"$n\" != aaa ]; do\nset n=a$n\nif [ $n = aa ]; then break; fi\ndone\n\
        until [ x$m = xbb ]; do\nset m=b$m\ncontinue\nset m=wrong\ndone\n\
        function f { set got=${1}-$2; return; set got=wrong; }\nf one two\n\
        for d in /no /boot; do if [ -d $d ]; then set dir=$d; break; fi; done\n\
        menuentry x {\nlinux $dir/k $n $m $got\n}\n";
    let entry = choose(&FakeFiles(Vec::new()), "/grub", text).unwrap();
    assert_eq!((entry.kernel.as_str(), entry.options.as_str()), ("/boot/k", "aa bb one-two"));
}

#[test]
fn loop_that_waits_for_a_key_is_left_with_a_note() {
    let text = "while ! keystatus --shift; do\nsleep 1\ndone\nmenuentry x {\nlinux /k\n}\n";
    let mut notes = Vec::new();
    let entry = super::choose(&FakeFiles(Vec::new()), "/grub", text, &mut notes).unwrap();
    assert_eq!(entry.kernel, "/k");
    assert_eq!(notes, ["a loop (`while`) was left after 256 rounds"]);
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
    let files = FakeFiles(vec![env(lines)]);
    choose(&files, "/boot/grub", &DEBIAN.replace("DEFAULT", default)).unwrap().kernel
}

#[test]
fn default_entry_keeps_its_options_and_all_its_initrds() {
    let files = FakeFiles(Vec::new());
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
        FakeFiles(vec![
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
    let files = FakeFiles(vec![("/boot/grub/grub.cfg", "source /boot/grub/grub.cfg".into())]);
    let doubling = format!("set a=aaaaaaaa\n{}", "set a=\"$a$a\"\n".repeat(99));
    let negated = format!("{} true\nmenuentry x {{\nlinux /k\n}}\n", "! ".repeat(20_001));
    assert_eq!(choose(&files, "/boot/grub", &negated).unwrap().kernel, "/k");
    let deep = "if true; then\n".repeat(9999);
    for text in [
        "source /boot/grub/grub.cfg",
        "function f {\nf\nf\n}\nf\n",
        &doubling,
        &deep,
        &format!("[ {} x ]", "! ".repeat(99_999)),
        "'",
        "}",
        "menuentry x {",
        "",
    ] {
        assert!(matches!(choose(&files, "/boot/grub", text), Err(GrubError::Message(_))), "{text:.40}");
    }
}
