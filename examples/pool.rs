//! A pool of machines under load: `pool SPEC.toml MACHINES JOBS READY LINE ANSWER` keeps MACHINES machines at work until JOBS jobs
//! are done. A machine is ready when its guest has printed READY. A job types LINE and waits for ANSWER. A machine that
//! fails at a job is replaced. The slowest job is most likely one that waited for a boot.
//!
//! ```text
//! cargo run --release --example pool -- vm.toml 8 1000 '# ' 'echo $((6 * 7))' 42
//! ```
//! where vm.toml has a Linux kernel, its initrd and `append = "quiet rdinit=/bin/sh"`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is a program for people")]

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use minivmm::spec::Spec;
use minivmm::{GuestConsole, Machine};

/// Time for a guest to come up, and for a job.
const LIMIT: Duration = Duration::from_secs(300);
type Failure = Box<dyn Error + Send + Sync>;

/// What the machines are, and what they do.
struct Work<'a> {
    spec: Spec,
    ready: &'a str,
    line: &'a str,
    answer: &'a str,
}

/// A machine whose guest is ready.
fn start(work: &Work<'_>) -> Result<(Machine, GuestConsole), Failure> {
    let machine = Machine::builder(&work.spec).start()?;
    let mut console = machine.console();
    console.expect(work.ready, LIMIT)?;
    Ok((machine, console))
}

/// Does one job on the machine in `place`, or on a new one. Returns the time it took.
fn serve(work: &Work<'_>, place: &mut Option<(Machine, GuestConsole)>) -> Result<Duration, Failure> {
    let begin = Instant::now();
    let (machine, mut console) = place.take().map_or_else(|| start(work), Ok)?;
    let asked = writeln!(console, "{}", work.line).map_err(Failure::from);
    if let Err(error) = asked.and_then(|()| Ok(console.expect(work.answer, LIMIT)?)) {
        // If the machine has ended or is about to end, the way it ended says more.
        return match machine.wait_for(Duration::from_secs(1)) {
            Some(exit) => Err(format!("{exit}: {error}").into()),
            None => Err(error),
        };
    }
    // Only a machine that has done its job gets another one. The others are dropped here, which ends them.
    *place = Some((machine, console));
    Ok(begin.elapsed())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    run(&args).unwrap_or_else(|error| {
        eprintln!("pool: {error}");
        ExitCode::FAILURE
    })
}

fn run(args: &[String]) -> Result<ExitCode, Failure> {
    let [spec, machines, jobs, ready, line, answer] = args else {
        return Err("usage: pool SPEC.toml MACHINES JOBS READY LINE ANSWER".into());
    };
    let work = Work { spec: Spec::from_file(spec)?, ready, line, answer };
    let count: usize = jobs.parse()?;
    let (jobs, (report, reports)) = (Mutex::new(0..count), mpsc::channel());
    let (begin, mut done) = (Instant::now(), Vec::new());
    thread::scope(|scope| {
        for _ in 0..machines.parse::<u32>()? {
            let (work, jobs, report) = (&work, &jobs, report.clone());
            scope.spawn(move || {
                let mut place = None;
                while jobs.lock().unwrap_or_else(PoisonError::into_inner).next().is_some() {
                    // The receiver lives longer than this thread.
                    let _ = report.send(serve(work, &mut place));
                }
            });
        }
        drop(report);
        for outcome in reports {
            match outcome {
                Ok(time) => done.push(time),
                Err(error) => eprintln!("pool: {error}"),
            }
        }
        Ok::<_, Failure>(())
    })?;
    let rate = done.len() as f64 / begin.elapsed().as_secs_f64();
    let slowest = done.iter().max().copied().unwrap_or_default();
    let (done, failed) = (done.len(), count - done.len());
    println!("{done} jobs done, {failed} failed; {rate:.0} a second, the slowest in {slowest:.1?}");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
