//! `minivmm run`: a command in a Debian guest is as good as a command here.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/dose.rs"]
mod dose;

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use dose::{dose, soak};
use lab::{Cmd, Lab, LabConfig, Output, Status, kernels};

/// Time for a guest to boot under two emulations, on a busy machine, and to do a little.
const LIMIT: Duration = Duration::from_secs(240);

/// A lab with Debian's package of a kernel, unpacked as far as a run needs it.
fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| {
        let kernel = kernels().unwrap().cloud;
        let folder = tempfile::tempdir().unwrap();
        let mut config = LabConfig::default()
            .file(env!("CARGO_BIN_EXE_minivmm"), "minivmm")
            .file(&kernel.bzimage, "package/boot/vmlinuz");
        let names = [
            "virtio_pci",
            "virtio_console",
            "virtio_blk",
            "virtio_net",
            "pvpanic_mmio",
            "virtiofs",
            "overlay",
        ];
        for (name, content) in kernel.modules(&names).unwrap() {
            let file = folder.path().join(&name);
            std::fs::write(&file, content).unwrap();
            let place = Path::new("package/lib/modules").join(&kernel.version).join("kernel").join(name);
            config = config.file(file, place.to_str().unwrap());
        }
        Lab::start(&config).unwrap()
    })
}

/// Twice emulated, it takes longer to come up than anybody else gives it.
const UP: &str = "--boot-timeout 120";
const RUN: &str = "./minivmm run --kernel package/boot/vmlinuz --mem 256";

/// Runs a line of shell in the lab, in which `run` stands for the command with its kernel.
fn shell(line: &str) -> Output {
    shell_within(line, LIMIT)
}

fn shell_within(line: &str, limit: Duration) -> Output {
    lab().exec(&Cmd::sh(line.replace("run ", &format!("{RUN} {UP} "))).limit(limit)).unwrap()
}

#[track_caller]
fn ended(out: &Output, status: i32) {
    assert_eq!(out.status, Status::Exited(status), "{}{}", out.text(), out.err_text());
}

#[track_caller]
fn says(out: &Output, words: &[&str]) {
    for word in words {
        assert!(out.err_text().contains(word), "{word}: {}", out.err_text());
    }
}

#[test]
fn output_goes_through_apart_and_the_command_is_as_free_as_anywhere() {
    // Its devices can be opened again, what it leaves running holds nobody up, its words reach it as they are.
    let line = r#"run -- sh -c 'echo out; echo err >&2; echo one >/dev/stdout; echo two >/dev/stderr; sleep 1000 & echo "$1|$2|$#"; kill -9 $$' sh "it's  \$HOME" ''"#;
    let out = shell(line);
    ended(&out, 128 + 9);
    let said = (out.text(), out.err_text());
    assert_eq!(said, ("out\none\nit's  $HOME||2\n".to_owned(), "err\ntwo\n".to_owned()));
    if soak() {
        ended(&shell("run no-such-command"), 127);
    }
}

#[test]
fn megabytes_of_anything_come_through_both_ways() {
    let bytes = dose(30_000_000);
    let out = shell(&format!(
        "head -c {bytes} /dev/urandom >blob; sha1sum <blob
         run -i -- sh -c 'tee /tmp/blob; sha1sum </tmp/blob >&2; cat /tmp/blob >&2' <blob 2>err | sha1sum
         head -n 1 err; tail -n +2 err | sha1sum; rm blob err",
    ));
    ended(&out, 0);
    let text = out.text();
    let sums: Vec<&str> = text.lines().collect();
    assert_eq!(sums.len(), 4, "{text}");
    assert!(sums.iter().all(|sum| *sum == sums[0]), "{text}");
}

#[test]
fn slow_reader_and_one_that_leaves_lose_nothing_and_hold_nobody_up() {
    let out = shell(
        "run -- sh -c 'yes 0123456 | head -n 500000; exit 5' | { sleep 3; wc -c; }; echo ${PIPESTATUS:-}",
    );
    assert!(out.text().starts_with("4000000\n"), "{}{}", out.text(), out.err_text());
    if soak() {
        let out = shell("(run -- sh -c 'yes | head -n 2000000; exit 5'; echo status $? >&2) | head -n 1");
        assert_eq!(out.text(), "y\n");
        says(&out, &["status 5"]);
    }
}

/// Runs this into a reader that takes one line, and says what that was, and the status of the run.
fn into_head(command: &str) -> (String, String) {
    let out = shell(&format!("(run {command}; echo $? >&2) | head -n 1"));
    (out.text(), out.err_text())
}

#[test]
fn reader_that_leaves_ends_the_command_as_anywhere() {
    // One that says little hears of it when it says more.
    let line = "-- sh -c 'echo one; while sleep 1; do echo more; done; exit 3'";
    assert_eq!(into_head(line), ("one\n".into(), "141\n".into()));
    // One that says no more is not disturbed.
    assert_eq!(into_head("-- sh -c 'echo one; sleep 3; exit 3'"), ("one\n".into(), "3\n".into()));
    if soak() {
        // Nobody was ever there, and the command opens its output itself.
        let out = shell("(run -- sh -c 'while :; do echo one >/dev/stdout; done'; echo $? >&2) | true");
        assert_eq!(out.err_text(), "141\n");
        assert_eq!(into_head("yes"), ("y\n".into(), "141\n".into()));
        let out = shell(
            "(run -- sh -c 'while :; do echo one >&2; done' 2>&1 >/dev/null; echo $? >status) | head -n 1
             cat status; rm status",
        );
        assert_eq!((out.text().as_str(), out.err_text().as_str()), ("one\n141\n", ""));
    }
}

#[test]
fn output_that_the_host_does_not_take_ends_the_run_as_a_failure() {
    if !soak() {
        println!("in `make soak`: native_run has a tiny guest's");
        return;
    }
    let out = shell("run -- sh -c 'echo one; sleep 1000' >/dev/full");
    ended(&out, 125);
    says(&out, &["the command's standard output could not be written", "No space left on device"]);
    ended(&shell("run -- sh -c 'echo one >&2' 2>/dev/full"), 125);
}

#[test]
fn run_with_a_name_is_found_by_the_verbs() {
    if !soak() {
        println!("in `make soak`: native_run has a tiny guest's");
        return;
    }
    let out = shell(
        "run --name job -- sh -c 'echo up; exec sleep 1000' >up & until [ -s up ]; do sleep 1; done
         ./minivmm ls; ./minivmm info job | grep mem
         run --name job true; echo $?
         ./minivmm kill job; wait $!; echo $?; ./minivmm ls --json; rm up",
    );
    let text = out.text();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines.iter().any(|line| line.starts_with("job ")), "{text}{}", out.err_text());
    assert!(text.contains("256") && text.contains("\n125\n122\n"), "{text}{}", out.err_text());
    says(
        &out,
        &[
            "a machine called job runs already",
            "killed, with `minivmm kill` or `stop`, before its command had ended",
        ],
    );
}

#[test]
fn guest_that_ends_before_its_command_has_its_status_and_the_console_is_shown_where_that_is_wanted() {
    if !soak() {
        println!("in `make soak`: native_run has a tiny guest's");
        return;
    }
    let out = shell("run -v -- sh -c 'echo to the console >/dev/console; sleep 2; poweroff -f'");
    ended(&out, 122);
    says(&out, &["\nto the console\r\n", "the guest switched itself off before its command had ended"]);
    assert!(!out.err_text().contains("the console said"), "{}", out.err_text());
    let out = shell("run -- sh -c 'echo to the console >/dev/console; sleep 2; reboot -f'");
    ended(&out, 122);
    says(&out, &["the guest rebooted before its command had ended"]);
    says(&out, &["minivmm: the console said last:\n", "  | to the console\n"]);
}

#[test]
fn panic_has_its_status_and_the_consoles_last_words() {
    if !soak() {
        println!("in `make soak`: lab_readme has a panic in a run");
        return;
    }
    let out = shell("run -- sh -c 'echo before; sleep 1; echo c >/proc/sysrq-trigger; sleep 100'");
    ended(&out, 121);
    assert_eq!(out.text(), "before\n");
    says(&out, &["the guest's kernel panicked", "the console said last:", "Kernel panic - not syncing"]);
}

#[test]
fn time_limit_has_its_status_and_what_was_said_is_out() {
    if !soak() {
        println!("in `make soak`: lab_readme has a run with a time limit, and the next test one with output");
        return;
    }
    // A guest that is not up by then has the same status. On a busy host it takes longer.
    for seconds in [30, 120] {
        let out = shell(&format!("run --timeout {seconds} -- sh -c 'printf partly; sleep 1000'"));
        ended(&out, 124);
        if out.err_text().contains("the machine was not up after 30 s") {
            continue;
        }
        assert_eq!(out.text(), "partly");
        says(&out, &[&format!("the command had not ended after {seconds} s (--timeout)")]);
        return;
    }
}

#[test]
fn reader_that_stalls_does_not_hold_up_the_limit() {
    if !soak() {
        println!("in `make soak`: native_run has a tiny guest's");
        return;
    }
    let out = shell(
        "mkfifo stalled; sleep 1000 <stalled & run -v --timeout 25 -- sh -c 'yes >&2' 2>stalled; echo $?; kill $!; rm stalled",
    );
    assert_eq!(out.text(), "124\n", "{}", out.err_text());
    let out = shell(
        "mkfifo stalled; sleep 1000 <stalled & run --timeout 60 -- yes to nobody 2>stalled | head -n 1; kill $!; rm stalled",
    );
    assert_eq!(out.text(), "to nobody\n", "{}", out.err_text());
}

#[test]
fn machine_that_never_comes_up_has_its_status_and_the_reason() {
    let out = shell("run --append module_blacklist=virtio_console -- true");
    ended(&out, 123);
    says(
        &out,
        &[
            "switched itself off before it was up",
            "module virtio_console.ko",
            "the port minivmm.out did not appear",
        ],
    );
}

#[test]
fn directory_becomes_the_guests_files_and_a_disk_is_there() {
    // The kernel and its modules are those of a tree as `make` leaves it: without an index of modules.
    let out = lab().exec(&Cmd::sh(format!(
        "mkdir -p linux/arch/x86/boot linux/drivers/some && cp package/boot/vmlinuz linux/arch/x86/boot/bzImage
         cp package/lib/modules/*/kernel/*.ko linux/drivers/some && (cd linux && find drivers -name '*.ko' >modules.order)
         mkdir -p tree/bin tree/data && cp /bin/busybox tree/bin/busybox && ln tree/bin/busybox tree/bin/second
         ln -s busybox tree/bin/sh; ln -s busybox tree/bin/ls; ln -s busybox tree/bin/stat; echo content >tree/data/file; chmod 640 tree/data/file
         truncate -s 5M disk.raw
         mkdir own; echo mine >own/resolv.conf
         ./minivmm run --kernel linux --mem 256 {UP} --root tree --disk disk.raw --net user --volume own:/etc -- sh -c 'read -r line </data/file; echo $line; stat -c \"%a %u\" /data/file; stat -c %h /bin/second
             read -r sectors </sys/block/vda/size; echo $sectors; read -r line </etc/resolv.conf; echo $line; ls /'
         status=$?; cat own/resolv.conf; ls own; rm -r tree disk.raw linux own; exit $status",
    )).limit(LIMIT)).unwrap();
    ended(&out, 0);
    let text = out.text();
    let begin = "content\n640 0\n2\n10240\nmine\n";
    let is_right =
        text.starts_with(begin) && text.contains("data\n") && text.ends_with("\nmine\nresolv.conf\n");
    assert!(is_right, "{text}{}", out.err_text());
}

/// Says when it began, and when each line came; the lines of standard error that count; and its status.
const TIMED: &str = r#"
    export XDG_STATE_HOME=$PWD/state
    now() { read -r up rest </proc/uptime; echo "$up"; }
    echo from-outside >input
    timed() {
        echo "= $(now)"
        { "$@" <input 2>err; echo "status $?"; } | while read -r line; do echo "$(now) $line"; done
        grep -E '^err$|^minivmm: the warm machine' err | sed 's/^/! /'
    }"#;

#[test]
fn warm_run_is_a_cold_one_that_begins_sooner() {
    // A run of each kind, of which all have the same output, but for random numbers and the time.
    let command = r#"-i -v -- sh -c 'echo out; cat; echo err >&2; head -c 8 /dev/urandom | md5sum | cut -c 1-16; date +%s; exit 7'"#;
    let options = [
        "",
        "--warm box",
        "--warm box",
        "--warm box",
        "--warm box --append more",
        "--warm box --append more",
    ];
    let runs: String = options.iter().map(|options| format!("timed run {options} {command}\n")).collect();
    let script = format!(
        "{TIMED}\n{runs}\necho '='; date +%s; ./minivmm warm ls; ./minivmm warm rm box; ls -A state/minivmm/warm"
    );
    // Several boots.
    let out = shell_within(&script, 3 * LIMIT);
    ended(&out, 0);
    let text = out.text();
    let (runs, last) = text.rsplit_once("=\n").unwrap();
    let runs: Vec<Vec<&str>> = runs.split("= ").skip(1).map(|part| part.lines().collect()).collect();
    assert_eq!(runs.len(), options.len(), "{text}");
    let now: i64 = last.lines().next().unwrap().parse().unwrap();
    assert!(
        last.contains("\nNAME ") && last.contains("\nbox ") && last.trim_end().ends_with("256 MiB"),
        "{last}"
    );
    let (mut randoms, mut times) = (std::collections::BTreeSet::new(), Vec::new());
    let says =
        |part: &Vec<&str>, word: &str| part.iter().any(|line| line.starts_with("! ") && line.contains(word));
    for part in &runs {
        let said: Vec<(&str, &str)> = part[1..].iter().filter_map(|line| line.split_once(' ')).collect();
        let words: Vec<&str> = said.iter().filter(|(at, _)| *at != "!").map(|(_, word)| *word).collect();
        assert!(
            matches!(words[..], ["out", "from-outside", random, time, "status 7"]
                if randoms.insert(random.to_owned()) && (now - time.parse::<i64>().unwrap()).abs() < 600),
            "{text}"
        );
        assert!(part.contains(&"! err"), "{text}");
        times.push(said[0].0.parse::<f64>().unwrap() - part[0].parse::<f64>().unwrap());
    }
    let [cold, first, warm, again, other, other_warm] = &runs[..] else { panic!("{text}") };
    assert!(!says(cold, "warm machine"), "{text}");
    assert!(says(first, "there is none yet") && says(first, "it is saved"), "{text}");
    assert!([warm, again, other_warm].iter().all(|run| says(run, "runs in a clone of it")), "{text}");
    assert!(
        says(other, "made anew: the kernel, the guest's files, an option") && says(other, "it is saved"),
        "{text}"
    );
    println!("first bytes after {times:?} s");
}

#[test]
fn command_has_its_environment_its_folder_and_its_files_come_out() {
    let out = shell(
        r#"export HERE='it is' LEFT=x
         run -e HERE -e "A=a  b" -w /tmp --time --out got -- sh -c 'echo "$HERE|$A|$LEFT|$(pwd)|$HOME"
             cd $MINIVMM_OUT; mkdir sub; echo one >sub/one; ln -s sub/one link; ln -s /etc/passwd evil; mknod null c 1 3; head -c 3000000 /dev/zero >big; exit 5'
         echo "status $?"; cd got; find . | sort; cat link; wc -c <big; cd ..; rm -r got
         run --workdir /none true; echo "status $?"; ls -A | grep -c got"#,
    );
    let text = out.text();
    let expected =
        "it is|a  b||/tmp|/root\nstatus 5\n.\n./big\n./link\n./sub\n./sub/one\none\n3000000\nstatus 125\n0\n";
    assert_eq!(text, expected, "{}", out.err_text());
    says(
        &out,
        &[
            "2 of the files for --out were left out: ",
            "null",
            "evil",
            "the guest has no directory /none (--workdir)",
        ],
    );
    let err = out.err_text();
    let line = err.lines().find_map(|line| line.strip_prefix("minivmm: time: ")).unwrap();
    let parts: Vec<_> = line.split(", ").filter_map(|part| part.split_once(' ')).collect();
    let names: Vec<_> = parts.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["monitor", "kernel", "init", "command"], "{line}");
    println!("{line}");
}

#[test]
fn programs_of_this_host_work_on_a_folder_of_it_and_change_nothing_else() {
    let out = shell(
        r#"mkdir -p work data; echo before >work/source; echo data >data/file; mkdir -p /etc; echo host >/etc/own; rm -f /etc/new /new; mkdir -p /etc/lower
         run --root / --volume ./work:/work --volume ./data:/mnt/data:ro --workdir /work -- sh -c '
             pwd; cat source /mnt/data/file /etc/own; echo built >result; mkdir sub; mv source sub/moved
             echo changed >/etc/own; echo new >/etc/new; cat /etc/own; rm /etc/own && mkdir /new && echo layer
             number=$(stat -c %i /etc/lower); mv /etc/lower /etc/upper; [ $number = $(stat -c %i /etc/upper) ] && echo renamed
             echo x >/mnt/data/file || echo read-only; ls -A /tmp | wc -l; ls /run; test -d /proc/self && test -c /dev/null && test -d /sys/class && echo there
             echo out; exit 3'
         echo "status $?"; cat work/result work/sub/moved data/file /etc/own; stat -c %u work/result; ls /etc/new /new; rm -r work data; rmdir /etc/lower"#,
    );
    let expected = "/work\nbefore\ndata\nhost\nchanged\nlayer\nrenamed\nread-only\n0\nminivmm\nthere\nout\nstatus 3\nbuilt\nbefore\ndata\nhost\n0\n";
    assert_eq!(out.text(), expected, "{}", out.err_text());
}

#[test]
fn folder_as_root_can_be_written_to_and_several_runs_have_it_at_once() {
    let out = shell(
        r#"mkdir -p tree/bin && cp /bin/busybox tree/bin/ && ln -s busybox tree/bin/sh && ln -s busybox tree/bin/mkdir && ln -s busybox tree/bin/sleep
         run --root-rw --root tree -- sh -c 'echo one >/one; mkdir /kept' &
         run --root-rw --root tree -- sh -c 'echo other >/other' & run --root tree -- sh -c 'echo mine >/own; read -r line </own; echo $line'
         wait; ls tree; cat tree/one tree/other
         mkdir tree/etc; ln -s ../run/resolver/stub.conf tree/etc/resolv.conf
         mv tree/bin programs; mkdir tree/bin
         echo '#!/bin/sh
             echo two >two; busybox cat /etc/resolv.conf; busybox ip route | busybox grep -o default.via.10.0.2.2' >programs/date; chmod +x programs/date
         run --root-rw --root tree --net user --volume tree/kept:/deep/er --volume programs:/bin -w /deep/er -- date
         cat tree/kept/two; rm -r programs; test -e tree/etc/resolv.conf || echo a link; rm -r tree"#,
    );
    let text = out.text();
    assert!(
        text.contains("mine\n")
            && !text.contains("own\n")
            && text.contains("bin\n")
            && text.contains("kept\n")
            && text.contains("\none\nother\n")
            && text.ends_with("nameserver 10.0.2.3\ndefault via 10.0.2.2\ntwo\na link\n"),
        "{text}{}",
        out.err_text()
    );
}

#[test]
fn shell_at_a_terminal_has_its_size_its_keys_and_its_jobs() {
    let line = format!(
        "stty rows 33 cols 111; exec {RUN} {UP} -it -e TERM=vt220 -- sh -c 'tty; test -t 0 && test -t 1 && test -t 2 && echo all $TERM; exec sh'"
    );
    let mut shell = lab().spawn(&Cmd::sh(line).tty()).unwrap();
    let mut does = |typed: &str, answer: &str| {
        shell.send(typed).unwrap();
        shell.expect(answer, LIMIT).unwrap()
    };
    does("", "/dev/hvc1\r\nall vt220\r\n");
    // What is typed is shown as well, and no answer.
    let said = does("stty size; echo do''ne\n", "done\r\n");
    assert!(said.contains("33 111\r\n"), "{said}");
    // Each key is pressed when its command says that it runs.
    does("sh -c 'trap \"exit 9\" INT; echo on''e; while :; do sleep 1; done'; echo st''atus $?\n", "one\r\n");
    does("\x03", "status 9\r\n");
    does("sh -c 'echo tw''o; while :; do sleep 1; done'\n", "two\r\n");
    does("\x1a", "Stopped");
    does("kill -9 %1; wait %1; echo st''atus $?; (exit 5)\n", "status 137\r\n");
    does("", "# ");
    shell.send("\x04").unwrap();
    assert_eq!(shell.wait(LIMIT).unwrap().status, Status::Exited(5));
}

/// `interrupted CONDITION COMMAND...` runs it, sends it a SIGINT as soon as the condition holds, and says its status. From a subshell in the background
/// come no signals: such a command would have SIGINT ignored.
const INTERRUPTED: &str = r#"
    mkdir -p work
    interrupted() {
        condition=$1; shift; rm -f pid
        (until [ -s pid ] && eval "$condition"; do sleep 0.1; done; kill -INT "$(cat pid)") &
        sh -c 'echo $$ >pid; exec "$@"' sh "$@" 2>err
        echo "status $?"
        ls -A | grep -E '^\.?got'; ls work; rm -rf work/*; ./minivmm ls --json
        grep -v 'ended by signal 2' err
    }
"#;

#[test]
fn ctrl_c_ends_a_run_in_each_phase_and_nothing_is_left() {
    let command = "run --name job --volume ./work:/work --out got -- sh -c";
    let packing = "interrupted '[ -s .got.part/large ]'";
    let mut phases = vec![
        // The kernel boots. No command ends by itself, however late the signal comes.
        ("interrupted './minivmm ls | grep -q ^job'", "sleep 1000", ""),
        // A file that takes long to pack.
        (packing, "echo packed >/work/up; truncate -s 2G $MINIVMM_OUT/large", "up\n"),
    ];
    if soak() {
        phases.extend([
            ("interrupted true", "sleep 1000", ""),
            // Wherever it is by then.
            ("interrupted 'sleep 1'", "sleep 1000", ""),
            ("interrupted 'sleep 2'", "sleep 1000", ""),
            ("interrupted 'sleep 3'", "sleep 1000", ""),
            ("interrupted '[ -s work/up ]'", "echo up >/work/up; sleep 1000", "up\n"),
        ]);
    }
    let lines: String =
        phases.iter().map(|(interrupted, words, _)| format!("{interrupted} {command} '{words}'\n")).collect();
    let expected: String = phases.iter().map(|(_, _, left)| format!("status 130\n{left}[]\n")).collect();
    let out = shell(&format!("{INTERRUPTED}{lines}"));
    assert_eq!(out.text(), expected, "{}", out.err_text());
}
