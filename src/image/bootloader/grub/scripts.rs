//! Scripts as people write them by hand.

use super::tests::FakeFiles;
use super::*;

/// Two entries that boot `/k0` and `/k1`, both with an initrd.
const TWO: &str =
    "menuentry zero {\nlinux /k0 ro\ninitrd /i0\n}\nmenuentry one --id 1st {\nlinux /k1 ro\ninitrd /i1\n}\n";

fn files() -> FakeFiles {
    let env = |entry: &str| format!("# GRUB Environment Block\nsaved_entry={entry}\nother=1\n###");
    FakeFiles(vec![
        ("/boot/grub/grubenv", env("0")),
        ("/boot/grub/mine", env("1")),
        ("/boot/grub/leaves.cfg", "return\nset sourced=1\n".into()),
        ("/boot/grub/broken.cfg", "if\n".into()),
        (
            "/boot/grub/more.cfg",
            "set default=1\nmenuentry a {\nlinux /a\n}\nmenuentry b {\nlinux /k1\n}\n".into(),
        ),
        ("/k0", "kernel".into()),
        ("/k1", "kernel".into()),
    ])
}

fn run(text: &str) -> (Result<Entry, GrubError>, Vec<String>) {
    let mut notes = Vec::new();
    let entry = choose(&files(), "/boot/grub", text, &mut notes);
    (entry, notes)
}

/// The kernel of the default entry of a script without notes, followed by `TWO`.
fn kernel(front: &str) -> String {
    let (entry, notes) = run(&format!("{front}\n{TWO}"));
    assert_eq!(notes, Vec::<String>::new(), "{front}");
    entry.unwrap().kernel
}

/// Whether a condition holds, as seen by the default entry.
fn holds(condition: &str) -> bool {
    kernel(&format!("if {condition}; then\nset default=1\nfi")) == "/k1"
}

#[test]
fn leaving_where_nothing_is_to_be_left_changes_nothing() {
    for word in ["return", "return 0", "break", "continue", "break 2", "source $prefix/leaves.cfg"] {
        let with = |text: String| run(&text).0.unwrap();
        for text in
            [format!("{word}\n{TWO}"), format!("{TWO}{word}\n"), format!("if true; then\n{word}\nfi\n{TWO}")]
        {
            let entry = with(text);
            assert_eq!(
                (entry.kernel.as_str(), entry.initrds.as_slice()),
                ("/k0", &["/i0".to_owned()][..]),
                "{word}"
            );
        }
    }
    assert_eq!(kernel("source $prefix/leaves.cfg\nset default=$sourced"), "/k1");
    assert_eq!(kernel("function f {\nbreak\n}\nfor n in 0 1; do\nf\nset default=$n\ndone"), "/k1");
    assert_eq!(kernel("while break; do\nset default=0\ndone\nset default=1"), "/k1");
}

#[test]
fn functions_return_what_they_say() {
    for (body, success) in [
        ("return 1", false),
        ("return 0", true),
        ("return", true),
        ("false\nreturn", false),
        ("for n in a b; do\nif [ $n = b ]; then return 3; fi\ndone", false),
        ("source $prefix/leaves.cfg\nfalse", true),
        ("return 1 2\ntrue", true),
    ] {
        assert_eq!(holds(&format!("function f {{\n{body}\n}}; f")), success, "{body}");
    }
    assert_eq!(kernel("function f\n\n{\nset default=1\n}\nf"), "/k1");
    assert!(holds("false; [ $? -ne 0 ]"));
}

#[test]
fn environment_is_that_of_the_named_file_and_only_the_named_variables() {
    for load in [
        "-f $prefix/mine",
        "--file ($root)/boot/grub/mine saved_entry",
        "--file=$prefix/mine",
        "-s -f $prefix/mine",
    ] {
        assert_eq!(kernel(&format!("load_env {load}\nset default=$saved_entry")), "/k1", "{load}");
    }
    assert_eq!(kernel("load_env -f $prefix/mine other\nset default=$saved_entry"), "/k0");
    assert!(holds("load_env other; [ x$other = x1 -a -z \"$saved_entry\" ]"));
    assert!(!holds("load_env -f $prefix/nothing"));
}

#[test]
fn machine_is_one_of_64_bits_and_devices_say_their_names() {
    assert!(holds("cpuid -l") && holds("cpuid --long-mode") && holds("cpuid -p"));
    let probed =
        |words: &str| run(&format!("probe {words}\nmenuentry x {{\nlinux /k x=$u\n}}\n")).0.unwrap().options;
    assert_eq!(probed("--set=u --fs-uuid ($root)"), "x=Uuid-of-1");
    assert_eq!(probed("--set u -u hd0,1"), "x=Uuid-of-1");
    assert_eq!(probed("--label --set=u $root"), "x=Label-of-1");
    assert_eq!(probed("--part-uuid -s u $root"), "x=PartUuid-of-1");
    assert!(!holds("probe -u hd7"));
}

#[test]
fn default_that_is_no_entry_is_the_first_and_a_fallback_is_for_what_does_not_start() {
    for (default, wanted) in
        [("7", "/k0"), ("nothing", "/k0"), ("0x1", "/k1"), ("01", "/k1"), ("1st", "/k1"), ("7>1", "/k0")]
    {
        let fallback = if wanted == "/k0" { "1" } else { "0" };
        assert_eq!(kernel(&format!("set fallback={fallback}\nset default='{default}'")), wanted, "{default}");
    }
    let gone = TWO.replace("/k0", "/gone");
    for fallback in ["1", "9 1st", "0 one"] {
        let (entry, notes) = run(&format!("set fallback='{fallback}'\n{gone}"));
        assert_eq!(entry.unwrap().kernel, "/k1", "{fallback}");
        assert_eq!(notes, ["its entry zero cannot be started, and its fallback is taken"]);
    }
}

#[test]
fn entries_have_arguments_and_can_go_on_with_another_menu() {
    let (entry, _) =
        run("menuentry t --class c 9 {\nlinux /k-$2 arg=$1 $# $@\nshift\nset x=$1\ninitrd /i-$x\n}\n");
    let entry = entry.unwrap();
    assert_eq!((entry.kernel.as_str(), entry.options.as_str()), ("/k-9", "arg=t 2 t 9"));
    assert_eq!(entry.initrds, ["/i-9"]);
    let (entry, notes) = run("menuentry x {\nconfigfile $prefix/more.cfg\n}\n");
    assert_eq!((entry.unwrap().title, notes), ("b".to_owned(), Vec::new()));
    let endless = run("menuentry x {\nconfigfile $prefix/grub.cfg\n}\n").0;
    assert!(matches!(endless, Err(GrubError::Message(_))));
}

#[test]
fn comparisons_are_joined_as_grub_does() {
    for (words, is) in [
        ("( a = b -o a = a ) -a b = b", true),
        ("( a = b -o a = b ) -a b = b", false),
        ("! ( a = b )", true),
        ("a = b -o a = a", true),
        ("a '<' b", true),
        ("b '>' c", false),
        ("b '>=' b", true),
        ("0x10 -eq 16", true),
        ("vmlinuz-6 -pgt initrd-5", true),
        ("! = x", false),
        ("a -a ''", false),
    ] {
        assert_eq!(holds(&format!("[ {words} ]")), is, "{words}");
    }
}

#[test]
fn what_is_not_followed_is_said_in_a_line_and_the_rest_is_followed() {
    for (text, said) in [
        ("for k in /boot/vmlinuz-*; do\ntrue\ndone", "the wildcards of `/boot/vmlinuz-*` are not followed"),
        (
            "if [ -f (hd1,1)/x ]; then\ntrue\nfi",
            "the device hd1,1 cannot be read here, and the script's own file system is used",
        ),
        ("regexp --set=1:v 'x(.*)' xy", "the command `regexp` is not known here and counts as failed"),
        ("if regexp a b; then\ntrue\nfi", "the command `regexp` is not known here and counts as failed"),
        (
            "if [ /a -nt /b ]; then\ntrue\nfi",
            "the comparison `-nt` of two files' times is not known here and counts as false",
        ),
        ("if cpuid -z; then\ntrue\nfi", "`cpuid -z` is not known here and counts as failed"),
        ("probe --set=x --fs $root", "`probe --fs` is not known here and counts as failed"),
        (
            "source $prefix/broken.cfg",
            "`(hd0,1)/boot/grub/broken.cfg` is not followed: an if or a loop is not closed",
        ),
    ] {
        let (entry, notes) = run(&format!("{text}\n{TWO}"));
        assert_eq!((entry.unwrap().kernel.as_str(), notes), ("/k0", vec![said.to_owned()]), "{text}");
    }
    assert_eq!(kernel("eval 'set default=1'"), "/k1");
    assert_eq!(kernel("unknown\nif keystatus --shift; then\nset default=1\nfi"), "/k0");
}

#[test]
fn script_with_too_many_words_is_refused_before_it_takes_memory() {
    for word in ["a ", "$a", ";", "{"] {
        let script = word.repeat((1 << 20) / word.len());
        assert_eq!(script::parse(&script).err(), Some("it has too many words"), "{word}");
    }
}

#[test]
fn quotes_reach_linux_as_grub_writes_them() {
    let options = |words: &str| run(&format!("menuentry x {{\nlinux /k {words}\n}}\n")).0.unwrap().options;
    assert_eq!(options(r#"dyndbg="file x +p" a='b'"#), r#""dyndbg=file x +p" a=b"#);
    assert_eq!(options(r#"bar=\"q\ r\""#), r#""bar=\"q r\"""#);
    assert_eq!(options(r#"a=\"b\" it\'s c\\d"#), r#"a=\"b\" it\'s c\\d"#);
    assert_eq!(options(r"a='b\x20c' d='\xzz'"), r"a=b\x20c d=\\xzz");
}
