//! `minivmm doctor`: whether this host can run a machine, what will not work, and the command that mends it.

mod files;
mod host;
mod persistent;

use std::fmt;

use serde::Serialize;

use super::advice::Problem;
use super::args::DoctorArgs;
use super::exit::Status;
use crate::host::facts::Host;

/// The doctor's report.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Report {
    version: &'static str,
    /// No finding prevents a machine.
    can_start: bool,
    /// This host's KVM can boot a stock Linux kernel.
    boots_linux: bool,
    findings: Vec<Finding>,
}

/// One thing that was examined.
#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    /// Its subject, in a word.
    about: &'static str,
    /// The result, in plain words.
    text: String,
    /// The cure.
    #[serde(skip_serializing_if = "Option::is_none")]
    cure: Option<String>,
}

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// Something will not work, or not well.
    Warn,
    /// No machine can be started.
    Fail,
}

impl Finding {
    fn ok(about: &'static str, text: impl Into<String>) -> Self {
        Finding { level: Level::Ok, about, text: text.into(), cure: None }
    }

    fn warn(about: &'static str, problem: Problem) -> Self {
        Finding { level: Level::Warn, about, text: problem.what, cure: problem.cure }
    }

    fn fail(about: &'static str, problem: Problem) -> Self {
        Finding { level: Level::Fail, ..Self::warn(about, problem) }
    }
}

/// Examines the host and the files that are named.
pub(super) fn examine(args: &DoctorArgs, host: &Host) -> Report {
    let mut findings = host::examine(host, args.mem.unwrap_or_default());
    let boots_linux = host::boots_linux(host, &findings);
    findings.extend(files::examine(host, args, boots_linux));
    let can_start = findings.iter().all(|finding| finding.level != Level::Fail);
    Report { version: env!("CARGO_PKG_VERSION"), can_start, boots_linux, findings }
}

impl Report {
    /// The report as JSON, with the same findings.
    pub(super) fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }

    /// The exit status of the command.
    pub(super) fn status(&self) -> Status {
        if self.can_start { Status::Done } else { Status::Failed }
    }
}

/// A line for each finding, and one for its cure.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { level, about, text, cure } in &self.findings {
            let level = match level {
                Level::Ok => "ok",
                Level::Warn => "warn",
                Level::Fail => "FAIL",
            };
            writeln!(f, "{level:<5} {about:<8} {text}")?;
            if let Some(cure) = cure {
                writeln!(f, "{:<14} -> {cure}", "")?;
            }
        }
        f.write_str(match (self.can_start, self.boots_linux) {
            (true, true) => "A machine can be started.",
            (true, false) => "A machine can be started, but not with a stock Linux kernel.",
            (false, _) => "No machine can be started until what failed is mended.",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(levels: &[Level]) -> Report {
        let findings = levels.iter().map(|level| Finding {
            level: *level,
            about: "kvm",
            text: "a text".into(),
            cure: (*level != Level::Ok).then(|| "a cure".into()),
        });
        let can_start = !levels.contains(&Level::Fail);
        Report { version: "0", can_start, boots_linux: true, findings: findings.collect() }
    }

    #[test]
    fn failure_is_in_the_text_the_status_and_the_json() {
        let report = report(&[Level::Ok, Level::Warn, Level::Fail]);
        assert_eq!(report.status(), Status::Failed);
        let text = report.to_string();
        assert!(text.contains("FAIL  kvm      a text\n               -> a cure\nNo machine"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert_eq!(json["can-start"], false);
        assert_eq!(json["findings"][2]["level"], "fail");
        assert_eq!(json["findings"][2]["cure"], "a cure");
    }

    #[test]
    fn warnings_do_not_fail() {
        assert_eq!(report(&[Level::Ok, Level::Warn]).status(), Status::Done);
    }

    #[test]
    fn host_without_anything_is_examined_to_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let report = examine(&DoctorArgs::default(), &Host::under(folder.path()));
        assert!(!report.can_start && !report.boots_linux);
        let about: Vec<_> = report.findings.iter().map(|finding| finding.about).collect();
        assert_eq!(about, ["kvm", "cpu", "memory", "tun"]);
    }
}
