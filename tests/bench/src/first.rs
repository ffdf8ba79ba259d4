//! From the start of `minivmm run` to the first byte of its command, beside virtme-ng's in the same interleaved rounds: the same kernel, and the same
//! directory as the guest's root. And what a share costs a run. With MINIVMM_BEFORE, another program than the one that was built, beside that too.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::{Cmd, Lab, LabConfig};

use crate::numbers::Series;
use crate::peers;

const ROUNDS: usize = 3;
/// For one command, twice.
const LIMIT: Duration = Duration::from_secs(900);
const RUN: &str = "run --time --mem 512 --boot-timeout 300 --kernel $(echo /peers/boot/vmlinuz-*)";
const SHARES: [(&str, &str); 3] =
    [("no share", ""), ("--volume", "--volume /trees:/work"), ("--root", "--root /peers")];
const VNG: &str = "chroot /peers vng --run /boot/$(cd /peers/boot && echo vmlinuz-*) --memory 512M --cpus 1 --quiet -- echo first";

/// What is counted, with its factor and number of decimals.
const COUNTED: [(&str, f64, usize); 8] = [
    ("first byte (s)", 1e-6, 2),
    ("end (s)", 1e-6, 2),
    ("system calls", 1.0, 0),
    ("exits", 1.0, 0),
    ("to user space", 1.0, 0),
    ("monitor (s)", 1e-3, 3),
    ("kernel (s)", 1e-3, 3),
    ("init (s)", 1e-3, 3),
];

/// One of them.
#[derive(Debug)]
struct Way {
    name: String,
    line: String,
    seen: Vec<Series>,
}

impl Way {
    fn new(name: String, line: String) -> Self {
        Way { name, line, seen: Vec::new() }
    }

    fn run(&mut self, lab: &Lab) -> Result<()> {
        let Way { name, line, seen } = self;
        let word = name.replace(' ', "-");
        let out = lab.exec(&Cmd::sh(format!("exec bash first.sh {word} {line}")).limit(LIMIT))?;
        let text = out.text();
        let numbers: Vec<f64> =
            text.split_whitespace().skip(1).map(str::parse).collect::<Result<_, _>>().unwrap_or_default();
        ensure!(numbers.len() >= 5, "{name}: {text}{}", out.err_text());
        seen.resize_with(numbers.len(), Series::default);
        seen.iter_mut().zip(numbers).for_each(|(series, number)| series.add(number));
        Ok(())
    }

    /// To another in the same rounds.
    fn to(&self, other: &Way) {
        let ratios = COUNTED.iter().zip(self.seen.iter().zip(&other.seen));
        let ratios: Vec<_> =
            ratios.map(|((what, ..), (own, other))| format!("{what} {:.2}", own.over(other))).collect();
        println!("  {} to {}: {}", self.name, other.name, ratios.join(", "));
    }
}

/// Prints a table; without virtme-ng, which takes most of the time, if `part` is `own`.
pub fn run(part: Option<&str>) -> Result<()> {
    let rival = match part {
        None => Some(Way::new("virtme-ng".into(), VNG.into())),
        Some("own") => None,
        Some(other) => bail!("no such part of the bench run: {other} (own)"),
    };
    let minivmm = std::env::current_exe()?.with_file_name("minivmm");
    let before = std::env::var_os("MINIVMM_BEFORE");
    let files = LabConfig::default().file(minivmm, "minivmm");
    let files = before.iter().fold(files, |files, before| files.file(before, "before"));
    let lab = peers::lab(files)?;
    lab.put("first.sh", include_str!("first.sh").as_bytes())?;
    let programs = [Some(("minivmm", "")), before.map(|_| ("before", " before"))];
    let ways = programs.into_iter().flatten().flat_map(|(program, behind)| {
        SHARES.map(|(name, share)| {
            Way::new(format!("{name}{behind}"), format!("./{program} {RUN} {share} -- echo first"))
        })
    });
    let mut ways: Vec<Way> = ways.chain(rival).collect();
    for _ in 0..ROUNDS {
        ways.iter_mut().try_for_each(|way| way.run(&lab))?;
    }
    println!(
        "A command in a guest of 512 MiB ({:?} lab), {ROUNDS} interleaved rounds, medians (least to most); Linux and the guest's root are Debian 13's:",
        lab.kind()
    );
    for Way { name, seen, .. } in &ways {
        let all = COUNTED.iter().zip(seen);
        let all = all.map(|((what, factor, decimals), series)| {
            format!("{what} {:.decimals$}", series.scaled(*factor))
        });
        println!("  {name}: {}", all.collect::<Vec<_>>().join(", "));
    }
    let find = |name: &str| ways.iter().find(|way| way.name == name);
    let plain = find("no share").context("no run")?;
    for (name, _) in &SHARES {
        let Some(own) = find(name).filter(|own| !std::ptr::eq(*own, plain)) else { continue };
        own.to(plain);
    }
    for (name, _) in &SHARES {
        let Some((own, before)) = find(name).zip(find(&format!("{name} before"))) else { continue };
        own.to(before);
    }
    // What a share costs now beside what a run without one cost then.
    for (name, _) in SHARES.iter().skip(1) {
        let Some((own, before)) = find(name).zip(find("no share before")) else { continue };
        own.to(before);
    }
    if let Some((own, rival)) = find("--root").zip(find("virtme-ng")) {
        own.to(rival);
    }
    Ok(())
}
