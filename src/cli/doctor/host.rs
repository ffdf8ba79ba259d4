//! The doctor's examination of the host.

use super::{Finding, Level, persistent};
use crate::cli::advice::{self, KVM, MemoryVerdict, Problem, TUN};
use crate::host::facts::{Backend, Cpu, Host, Merging};
use crate::spec::MemSize;

/// KVM_GET_API_VERSION of every kernel since 2.6.22; callers shall refuse any other (KVM api §4.1).
const API_VERSION: i32 = 12;

/// The findings about the host, for a machine of this much memory.
pub(super) fn examine(host: &Host, mem: MemSize) -> Vec<Finding> {
    let cpu = host.cpu();
    let mut findings = kvm(host, &cpu);
    findings.push(processors(&cpu));
    memory(host, mem, &mut findings);
    let tun = host.access(TUN);
    findings.push(match advice::tun(&tun) {
        None => Finding::ok(
            "tun",
            "/dev/net/tun opens, for networks on TAP interfaces; the default network needs none",
        ),
        Some(problem) => Finding::warn("tun", persistent::tun(host, &tun, problem)),
    });
    findings
}

/// Whether a stock Linux kernel boots on this host, given the findings about its KVM.
pub(super) fn boots_linux(host: &Host, findings: &[Finding]) -> bool {
    let usable = findings.iter().all(|finding| finding.about != "kvm" || finding.level != Level::Fail);
    usable && host.backend(&host.cpu()) != Backend::Pvm
}

fn kvm(host: &Host, cpu: &Cpu) -> Vec<Finding> {
    let facts = match host.probe_kvm(KVM) {
        Ok(facts) => facts,
        Err(access) => {
            let problem =
                advice::kvm(host, &access).map(|problem| persistent::kvm(host, cpu, &access, problem));
            return problem.into_iter().map(|problem| Finding::fail("kvm", problem)).collect();
        }
    };
    if facts.api_version != API_VERSION {
        let what = format!("/dev/kvm speaks api version {} and {API_VERSION} is needed", facts.api_version);
        return vec![Finding::fail("kvm", Problem { what, cure: None })];
    }
    let backend = host.backend(cpu);
    let text = format!(
        "/dev/kvm makes machines, with at most {} vCPUs each; api version {}",
        facts.max_vcpus, facts.api_version
    );
    vec![
        Finding::ok("kvm", text),
        match backend {
            Backend::Pvm => Finding::warn("backend", advice::no_linux_on_pvm()),
            Backend::Vmx | Backend::Svm | Backend::Unknown => {
                Finding::ok("backend", advice::backend(backend))
            }
        },
    ]
}

fn processors(cpu: &Cpu) -> Finding {
    let model = if cpu.model.is_empty() { "unknown model" } else { &cpu.model };
    let flag = match (cpu.vmx, cpu.svm) {
        (true, _) => "vmx",
        (_, true) => "svm",
        _ => "neither vmx nor svm",
    };
    let nested = if cpu.hypervisor { "; this host is itself a virtual machine" } else { "" };
    let s = if cpu.count == 1 { "" } else { "s" };
    Finding::ok("cpu", format!("{model}, {} processor{s}, shows {flag}{nested}", cpu.count))
}

fn memory(host: &Host, mem: MemSize, findings: &mut Vec<Finding>) {
    let Some(memory) = host.memory() else {
        let what = "neither /proc/meminfo nor the kernel says how much memory this host has".to_owned();
        findings.push(Finding::warn("memory", Problem { what, cure: None }));
        return;
    };
    findings.push(match advice::memory(mem, memory) {
        MemoryVerdict::Fits => {
            let (available, total) = (memory.available_kib / 1024, memory.total_kib / 1024);
            Finding::ok(
                "memory",
                format!("{available} MiB available of {total} MiB, enough for a guest of {mem}"),
            )
        }
        MemoryVerdict::Overcommitted(problem) => Finding::warn("memory", problem),
        MemoryVerdict::Excessive(problem) => Finding::fail("memory", problem),
    });
    findings.extend(host.huge_pages().map(|setting| match setting.as_str() {
        "never" => Finding::warn(
            "memory",
            Problem {
                what: "transparent huge pages are off, which makes guests slower to start and to run".into(),
                cure: Some(persistent::HUGE_PAGES.into()),
            },
        ),
        setting => Finding::ok("memory", format!("transparent huge pages are on ({setting})")),
    }));
    findings.extend(host.merging().map(merging));
}

/// Most hosts do not merge, and most machines do not ask for it: that is no reason for a warning.
fn merging(merging: Merging) -> Finding {
    match merging {
        Merging::Runs => Finding::ok("memory", "KSM runs: guests with `--merge` share equal pages"),
        Merging::Off => Finding {
            cure: Some(persistent::MERGING.into()),
            ..Finding::ok("memory", "KSM is switched off, so that `--merge` saves nothing")
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::facts::tests::tree;

    fn levels(files: &[(&str, &str)], about: &str) -> Vec<(Level, String)> {
        let (_folder, host) = tree(files);
        let findings = examine(&host, "512".parse().unwrap());
        findings.into_iter().filter(|f| f.about == about).map(|f| (f.level, f.text)).collect()
    }

    #[test]
    fn huge_pages_switched_off_are_a_warning() {
        let meminfo = ("/proc/meminfo", "MemTotal: 2097152 kB\nMemAvailable: 1048576 kB\n");
        let thp = |text| ("/sys/kernel/mm/transparent_hugepage/enabled", text);
        let found = levels(&[meminfo, thp("always madvise [never]\n")], "memory");
        assert_eq!(found[0].0, Level::Ok, "{found:?}");
        assert_eq!(found[1].0, Level::Warn, "{found:?}");
        assert!(
            levels(&[meminfo, thp("[always] madvise never\n")], "memory").iter().all(|f| f.0 == Level::Ok)
        );
    }

    #[test]
    fn ksm_is_told_with_what_starts_it() {
        let run = |text| ("/sys/kernel/mm/ksm/run", text);
        let merging = |files: &[(&str, &str)]| {
            let (_folder, host) = tree(files);
            host.merging().map(merging)
        };
        let off = merging(&[run("0\n")]).unwrap();
        assert!(off.level == Level::Ok && off.cure.unwrap().contains("/etc/tmpfiles.d/ksm.conf"));
        assert!(merging(&[run("2\n")]).unwrap().text.contains("off"));
        let on = merging(&[run("1\n")]).unwrap();
        assert!(on.text.contains("KSM runs") && on.cure.is_none());
        assert!(merging(&[]).is_none());
        let meminfo = ("/proc/meminfo", "MemTotal: 2097152 kB\nMemAvailable: 1048576 kB\n");
        assert!(levels(&[meminfo, run("0\n")], "memory")[1].1.contains("KSM"));
    }

    #[test]
    fn file_in_place_of_the_device_is_a_failure() {
        let found = levels(&[("/dev/kvm", "no device")], "kvm");
        assert_eq!(found[0].0, Level::Fail, "{found:?}");
    }

    #[test]
    fn processors_are_told_with_what_they_show() {
        let cpuinfo = ("/proc/cpuinfo", "processor: 0\nmodel name: An EPYC\nflags: svm hypervisor\n");
        let found = levels(&[cpuinfo], "cpu");
        assert_eq!(found[0].1, "An EPYC, 1 processor, shows svm; this host is itself a virtual machine");
    }
}
