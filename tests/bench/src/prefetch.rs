//! What `minivmm restore --prefetch` saves, in the lab: a Debian at its login, saved with its disk to a folder that is not in the
//! host's memory any more; from the start of `minivmm restore` to the guest's first answer, and the page faults of the process until then.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Cmd, Lab, LabConfig, Status};

use crate::numbers::Series;

const ROUNDS: usize = 5;
/// For a boot, and for all rounds, under two emulations.
const LIMIT: Duration = Duration::from_secs(1800);

/// Measures both, in turn.
pub fn run() -> Result<()> {
    let minivmm = std::env::current_exe()?.with_file_name("minivmm");
    let lab = Lab::start(&LabConfig::default().debian().file(minivmm, "minivmm"))?;
    let start = "exec ./minivmm --name vm0 --disk vm0.raw --mem 512 --net none";
    let mut machine = lab.spawn(&Cmd::sh(start).tty())?;
    machine.expect("vm0 login: ", LIMIT)?;
    let saved = lab.exec(&Cmd::sh("./minivmm save vm0 saved --with-disks").limit(LIMIT))?;
    ensure!(saved.status == Status::Exited(0), "{}", saved.err_text());
    machine.wait(LIMIT)?;
    // A newline has getty ask anew. The first colon is that of its question: the banner is on standard error.
    let script = format!(
        "now() {{ read -r up rest </proc/uptime; echo $up; }}
         restore() {{
             sync; echo 3 >/proc/sys/vm/drop_caches; rm -f in out; mkfifo in out
             exec 4<>in; echo >&4
             begin=$(now)
             ./minivmm restore saved --snapshot --pidfile pid $2 <in >out 2>err &
             exec 3<out
             read -r -d : line <&3
             end=$(now)
             vmm=$(cat pid); set -- $1 $(cat /proc/$vmm/stat)
             echo answer $1 $begin $end ${{11}} ${{13}}
             sleep 2; kill -9 $vmm; wait; exec 3<&- 4<&-
         }}
         restore first --prefetch
         for round in $(seq {ROUNDS}); do restore plain; restore ahead --prefetch; done"
    );
    let out = lab.exec(&Cmd::new("bash").arg("-c").arg(script).limit(LIMIT))?;
    let text = out.text();
    let mut plain: [Series; 3] = Default::default();
    let mut ahead: [Series; 3] = Default::default();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let ["answer", what, begin, end, minor, major] = words[..] else { continue };
        let of = match what {
            "plain" => &mut plain,
            "ahead" => &mut ahead,
            _ => continue,
        };
        let number = |word: &str| word.parse::<f64>().with_context(|| line.to_owned());
        let seen = [number(end)? - number(begin)?, number(minor)?, number(major)?];
        of.iter_mut().zip(seen).for_each(|(series, value)| series.add(value));
    }
    println!(
        "A Debian of 512 MiB restored in the lab from a folder on disk, {ROUNDS} rounds, until its first answer:"
    );
    for (name, [time, minor, major]) in [("without", &plain), ("with", &ahead)] {
        println!(
            "  {name} --prefetch: {time:.2} s, {minor:.0} page faults, and {major:.0} that waited for the disk"
        );
    }
    ensure!(text.lines().count() == 2 * ROUNDS + 1, "rounds have failed: {text}{}", out.err_text());
    Ok(())
}
