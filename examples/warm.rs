//! Requests that are served each by a guest of its own: `warm FOLDER WORKERS COMMAND [ARGUMENT]...` reads requests from standard input, a
//! line each. Each is the input of COMMAND in a fresh clone of the guest in FOLDER, and the answer is what that prints. WORKERS threads
//! serve at once. The answers are printed in the order of the requests.
//!
//! ```text
//! minivmm run --warm box -- true
//! printf '1 + 2\n6 * 7\n' | cargo run --release --example warm -- ~/.local/state/minivmm/warm/box 4 sh -c 'read -r x; echo $(($x))'
//! ```
//! No request sees anything of another one: its guest ends with it. A guest that hangs, floods or crashes costs its own request only.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is a program for people")]

use std::collections::BTreeMap;
use std::error::Error;
use std::io::stdin;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use minivmm::{ExecError, GuestCommand, SavedMachine, Template};

/// Time for one request.
const LIMIT: Duration = Duration::from_secs(30);
/// Bytes of an answer.
const MOST: usize = 1 << 20;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match serve(&args) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            eprintln!("warm: {failed} requests were not served");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("warm: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The next request and its number; the first one has 0.
fn next(count: &Mutex<usize>) -> Option<(usize, String)> {
    // Locked, so that the numbers are in the order of the lines.
    let mut count = count.lock().unwrap_or_else(PoisonError::into_inner);
    let mut line = String::new();
    stdin().read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
    *count += 1;
    Some((*count - 1, line))
}

/// Serves one request.
fn answer(template: &Template, command: &[String], request: &str) -> Result<String, ExecError> {
    let command = GuestCommand::new(command).input(request).most_output(MOST);
    let output = template.exec(&command, LIMIT)?;
    let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    // Standard error is in `output.stderr`.
    Ok(if output.status == 0 { text } else { format!("{text} (status {})", output.status) })
}

/// Serves all of them, and returns how many were not.
fn serve(args: &[String]) -> Result<usize, Box<dyn Error>> {
    let [folder, workers, command @ ..] = args else {
        return Err("usage: warm FOLDER WORKERS COMMAND [ARGUMENT]...".into());
    };
    // Read once; the clones share its memory.
    let template = Template::from_saved(SavedMachine::open(folder)?)?;
    let count = Mutex::new(0);
    let (report, reports) = mpsc::channel();
    let (mut times, mut failed) = (Vec::new(), 0);
    thread::scope(|scope| {
        for _ in 0..workers.parse::<u32>()? {
            let (template, count, report) = (&template, &count, report.clone());
            scope.spawn(move || {
                while let Some((number, request)) = next(count) {
                    let begin = Instant::now();
                    let answer = answer(template, command, &request);
                    // The receiver lives longer than this thread.
                    let _ = report.send((number, answer, begin.elapsed()));
                }
            });
        }
        drop(report);
        let (mut waiting, mut place) = (BTreeMap::new(), 0);
        for (number, answer, time) in reports {
            times.push(time);
            waiting.insert(number, answer);
            while let Some(answer) = waiting.remove(&place) {
                match answer {
                    Ok(text) => println!("{text}"),
                    Err(error) => {
                        failed += 1;
                        println!("no answer: {error}");
                    }
                }
                place += 1;
            }
        }
        Ok::<_, Box<dyn Error>>(())
    })?;
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let slowest = times.last().copied().unwrap_or_default();
    eprintln!("{} requests, half of them in {median:.1?}, the slowest in {slowest:.1?}", times.len());
    Ok(failed)
}
