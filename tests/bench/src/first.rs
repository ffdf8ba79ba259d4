//! From the start of `minivmm run` to the first byte of its command, beside virtme-ng's in the same interleaved rounds: the same kernel, and the same
//! directory as the guest's root. And what a share costs a run.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Cmd, LabConfig};

use crate::numbers::Series;
use crate::peers;

const ROUNDS: usize = 3;
/// For one command, twice.
const LIMIT: Duration = Duration::from_secs(900);
const RUN: &str = "./minivmm run --mem 512 --boot-timeout 300 --kernel $(echo /peers/boot/vmlinuz-*)";

/// What one came to: ms to the first byte and to the end, system calls, exits, exits to user space.
type Seen = [Series; 5];

/// Prints a table.
pub fn run() -> Result<()> {
    let minivmm = std::env::current_exe()?.with_file_name("minivmm");
    let lab = peers::lab(LabConfig::default().file(minivmm, "minivmm"))?;
    lab.put("first.sh", include_str!("first.sh").as_bytes())?;
    let vng = "chroot /peers vng --run /boot/$(cd /peers/boot && echo vmlinuz-*) --memory 512M --cpus 1 --quiet -- echo first";
    let commands = [
        ("without", format!("{RUN} -- echo first")),
        ("volume", format!("{RUN} --volume /trees:/work -- echo first")),
        ("root", format!("{RUN} --root /peers -- echo first")),
        ("virtme-ng", vng.to_owned()),
    ];
    let mut seen: [Seen; 4] = Default::default();
    for _ in 0..ROUNDS {
        for ((name, line), seen) in commands.iter().zip(&mut seen) {
            let out = lab.exec(&Cmd::sh(format!("exec bash first.sh {name} {line}")).limit(LIMIT))?;
            let text = out.text();
            let numbers: Vec<f64> =
                text.split_whitespace().skip(1).map(str::parse).collect::<Result<_, _>>().unwrap_or_default();
            ensure!(numbers.len() == seen.len(), "{name}: {text}{}", out.err_text());
            seen.iter_mut().zip(numbers).for_each(|(series, number)| series.add(number));
        }
    }
    println!(
        "A command in a guest of 512 MiB ({:?} lab), {ROUNDS} interleaved rounds, medians (least to most); Linux and the guest's root are Debian 13's:",
        lab.kind()
    );
    for ((name, _), [first, whole, calls, exits, user_exits]) in commands.iter().zip(&seen) {
        println!(
            "  {name}: first byte after {:.2} s, end after {:.2} s; {calls:.0} system calls, {exits:.0} exits, {user_exits:.0} to user space",
            first.scaled(1e-6),
            whole.scaled(1e-6)
        );
    }
    let [without, volume, root, rival] = &seen;
    for (words, own, other) in [
        ("--volume to a run without a share", volume, without),
        ("--root to a run without a share", root, without),
        ("--root to virtme-ng", root, rival),
    ] {
        let ratios: Vec<String> =
            own.iter().zip(other).map(|(own, other)| format!("{:.2}", own.over(other))).collect();
        let [first, whole, calls, exits, user_exits] = ratios.as_slice() else { continue };
        println!(
            "  {words}: first byte {first}, end {whole}, system calls {calls}, exits {exits}, to user space {user_exits}"
        );
    }
    Ok(())
}
