//! A folder of the host in a guest: minivmm's `--share` beside virtiofsd behind QEMU, in the same interleaved rounds, on the same folder, with
//! the same kernel and programs.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab::{Cmd, Flavour, InitramfsSpec, Lab, LabConfig, initramfs, kernel};

use crate::numbers::Series;
use crate::peers;
use crate::rivals::{Guest, INIT, Rival};
use crate::setups::Setup;
use crate::window::{is_vcpu, name};

const ROUNDS: usize = 3;
/// For one piece of work on a busy host.
const LIMIT: Duration = Duration::from_secs(600);
const MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "virtiofs", "ext4"];
/// The guests' way to the folder, whose programs are Debian 13's.
const INSIDE: &str = "mkdir -p /share && mount -t virtiofs share /share && mount --bind /share /programs/mnt";

/// Something that a guest does, from caches that are empty.
struct Load {
    name: &'static str,
    /// What is done before it, by the guest. `OWN` stands for a folder of its own.
    before: &'static str,
    line: &'static str,
    /// How many operations it is, and what one is.
    count: f64,
    unit: &'static str,
}

/// Of the last one the number of files is asked of git, and its host's caches are filled by the host.
const LOADS: [Load; 5] = [
    Load {
        name: "sequential reads",
        before: "true",
        line: "files read /share/big",
        count: 64.0,
        unit: "MiB",
    },
    Load {
        name: "sequential writes",
        before: "rm -f OWN/new",
        line: "files write OWN/new 64",
        count: 64.0,
        unit: "MiB",
    },
    Load {
        name: "random reads of 4 KiB, direct",
        before: "true",
        line: "files random /share/big 2000",
        count: 2000.0,
        unit: "read",
    },
    Load {
        name: "new files",
        before: "rm -rf OWN/many",
        line: "files create OWN/many 1000",
        count: 1000.0,
        unit: "file",
    },
    Load {
        name: "git status of Linux's source",
        before: "true",
        line: "files run chroot /programs /usr/bin/env GIT_OPTIONAL_LOCKS=0 git -C /mnt/linux status --porcelain",
        count: 0.0,
        unit: "file",
    },
];

/// What one guest came to, over the rounds. Times in ns, all for one operation.
#[derive(Debug, Default)]
struct Tally {
    time: Series,
    /// Of all threads, and of those that are no processor of the guest.
    cpu: [Series; 2],
    calls: Series,
    exits: Series,
    user_exits: Series,
    by_name: String,
}

/// Prints a table.
pub fn run() -> Result<()> {
    let kernel = kernel(Flavour::Trixie)?;
    let program = |name| std::env::current_exe().map(|bench| bench.with_file_name(name));
    let modules = MODULES.map(String::from).to_vec();
    let files = vec![(program("files")?, "bin/files".into())];
    let spec = InitramfsSpec { init: INIT.into(), modules, files, ..InitramfsSpec::default() };
    let config = LabConfig::default()
        .file(program("minivmm")?, "minivmm")
        .file(&kernel.bzimage, "vmlinuz.bench")
        .file(initramfs(&kernel, &spec)?, "initrd.bench");
    let lab = peers::lab(config)?;
    lab.put("calls.sh", include_str!("calls.sh").as_bytes())?;
    let made = "cd /mnt && mkdir minivmm qemu && head -c 64M /dev/urandom >big && sync && test -z \"$(git -C linux status --porcelain)\" && git -C linux ls-files | wc -l";
    let out = lab.exec(&Cmd::sh(format!("chroot /peers /bin/bash -c '{made}'")).limit(LIMIT))?;
    let tracked: f64 = out.text().trim().parse().with_context(|| out.err_text())?;
    println!(
        "A shared folder in a guest (Linux {}, {:?} lab), interleaved rounds, medians (least to most), each from empty caches of the \
         guest and full ones of the host; {tracked} files in git; both with cache=auto, as they come:",
        kernel.version,
        lab.kind()
    );
    let mut guests = Vec::new();
    for setup in [minivmm(), qemu()] {
        guests.push(Guest::start(&lab, setup)?);
    }
    for load in LOADS {
        let load = if load.count == 0.0 { Load { count: tracked, ..load } } else { load };
        let mut tallies = [Tally::default(), Tally::default()];
        for _ in 0..ROUNDS {
            for (guest, tally) in guests.iter_mut().zip(&mut tallies) {
                measure(&lab, guest, &load, tally)
                    .with_context(|| format!("{}, {}", guest.name(), load.name))?;
            }
        }
        print(&guests, &load, &tallies);
    }
    Ok(())
}

fn minivmm() -> Setup {
    let line = "exec ./minivmm --kernel vmlinuz.bench --initrd initrd.bench --mem 512 --append quiet \
         --disk peers.root,ro --share /trees,tag=share --net none";
    setup(Rival::Minivmm, "minivmm", line, None)
}

fn qemu() -> Setup {
    let daemon = "rm -f fs.sock; exec chroot /peers /usr/libexec/virtiofsd --socket-path /lab/fs.sock --shared-dir /mnt --sandbox none";
    let line = "root=$(readlink -f peers.root); exec chroot /peers qemu-system-x86_64 -name guest,debug-threads=on -nodefaults -no-user-config \
         -display none -no-reboot -machine q35 -accel kvm -cpu host -m 512 -serial stdio \
         -object memory-backend-memfd,id=mem,size=512M,share=on -numa node,memdev=mem \
         -kernel /lab/vmlinuz.bench -initrd /lab/initrd.bench -append 'console=ttyS0 panic=-1 quiet' \
         -drive if=none,id=a,file=$root,format=raw,readonly=on,file.locking=off -device virtio-blk-pci,drive=a \
         -chardev socket,id=fs,path=/lab/fs.sock -device vhost-user-fs-pci,queue-size=1024,chardev=fs,tag=share";
    setup(Rival::Q35, "QEMU, virtiofsd", line, Some((daemon.into(), "[ -S fs.sock ]".into())))
}

fn setup(rival: Rival, name: &str, line: &str, helper: Option<(String, String)>) -> Setup {
    Setup {
        name: name.into(),
        line: Some(line.into()),
        before: "true".into(),
        after: "true".into(),
        helper,
        inside: INSIDE.into(),
        ..Setup::user(rival)
    }
}

/// Does it once; gives how many ns it took.
fn work(guest: &mut Guest<'_>, load: &Load) -> Result<f64> {
    let own = if guest.setup.rival == Rival::Minivmm { "/share/minivmm" } else { "/share/qemu" };
    let before = load.before.replace("OWN", own);
    guest.sh_within(&format!("{before}; sync; echo 3 >/proc/sys/vm/drop_caches"), LIMIT)?;
    let said = guest.sh_within(&load.line.replace("OWN", own), LIMIT)?;
    said.trim().parse().with_context(|| said.clone())
}

fn measure(lab: &Lab, guest: &mut Guest<'_>, load: &Load, tally: &mut Tally) -> Result<()> {
    let pids = guest.pids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    let cpu = || -> Result<Vec<f64>> {
        let said = lab.sh(&format!("bash calls.sh cpu {pids}"))?;
        said.split_whitespace().map(|word| word.parse().with_context(|| said.clone())).collect()
    };
    let begin = cpu()?;
    tally.time.add(work(guest, load)? / load.count);
    for ((series, end), begin) in tally.cpu.iter_mut().zip(cpu()?).zip(begin) {
        series.add((end - begin) / load.count);
    }
    // Again, as counting costs time.
    lab.sh("bash calls.sh begin")?;
    work(guest, load)?;
    let seen = Seen::parse(&lab.sh(&format!("bash calls.sh end {pids}"))?)?;
    let sum = |calls: &BTreeMap<(String, u32), u64>| calls.values().sum::<u64>() as f64 / load.count;
    tally.calls.add(sum(&seen.calls));
    tally.exits.add(seen.exits as f64 / load.count);
    tally.user_exits.add(seen.user_exits as f64 / load.count);
    tally.by_name = seen.by_name(load.count);
    Ok(())
}

/// What calls.sh saw.
#[derive(Debug, Default)]
struct Seen {
    /// By thread and number.
    calls: BTreeMap<(String, u32), u64>,
    exits: u64,
    user_exits: u64,
}

impl Seen {
    fn parse(text: &str) -> Result<Self> {
        let (mut seen, mut threads, mut histogram) = (Seen::default(), BTreeMap::new(), "");
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["thread", tid, name] => drop(threads.insert((*tid).to_owned(), (*name).to_owned())),
                ["histogram", name] => histogram = name,
                ["{", "common_pid:", tid, _, value, "}", "hitcount:", count] => {
                    let Some(thread) = threads.get(tid.trim_end_matches(',')) else { continue };
                    let (value, count): (u32, u64) = (value.parse()?, count.parse()?);
                    match histogram {
                        "raw_syscalls/sys_enter" => {
                            *seen.calls.entry((thread.clone(), value)).or_default() += count
                        }
                        "kvm/kvm_userspace_exit" => seen.user_exits += count,
                        _ => seen.exits += count,
                    }
                }
                _ => bail!("{line}"),
            }
        }
        Ok(seen)
    }

    /// Who makes which calls how often for an operation; what is rare is left out.
    fn by_name(&self, count: f64) -> String {
        let mut calls: Vec<_> = self.calls.iter().map(|(key, n)| (*n as f64 / count, key)).collect();
        calls.sort_by(|a, b| b.0.total_cmp(&a.0));
        let often = calls.iter().take_while(|(each, _)| *each >= 0.02);
        let word = |(each, (thread, call)): &(f64, &(String, u32))| {
            let thread = if is_vcpu(thread) { "vcpu" } else { thread };
            format!("{thread}:{} {each:.2}", name(*call))
        };
        often.map(word).collect::<Vec<_>>().join(", ")
    }
}

fn print(guests: &[Guest<'_>], load: &Load, tallies: &[Tally]) {
    println!("  {}, for each {}:", load.name, load.unit);
    let us = |series: &Series| series.scaled(1e-3);
    for (guest, tally) in guests.iter().zip(tallies) {
        println!(
            "    {}: {:.0} us; {:.2} system calls, {:.2} exits, {:.3} to user space; processor time {:.0} us, without the vCPU's {:.0} us",
            guest.name(),
            us(&tally.time),
            tally.calls,
            tally.exits,
            tally.user_exits,
            us(&tally.cpu[0]),
            us(&tally.cpu[1])
        );
        println!("      calls: {}", tally.by_name);
    }
    if let [own, other] = tallies {
        println!(
            "    minivmm to QEMU: time {:.2}, system calls {:.2}, exits {:.2}, processor time {:.2}, without the vCPU's {:.2}",
            own.time.over(&other.time),
            own.calls.over(&other.calls),
            own.exits.over(&other.exits),
            own.cpu[0].over(&other.cpu[0]),
            own.cpu[1].over(&other.cpu[1])
        );
    }
}
