//! Memory limits of control groups (cgroups(7)). /proc/meminfo shows the whole host in every container.

use std::path::{Path, PathBuf};

use super::{Host, Memory, read};

/// Maximum nesting of groups.
const DEPTH: usize = 64;

/// The file names of one version of control groups.
struct Files {
    limit: &'static str,
    used: &'static str,
    /// Key in `memory.stat` of the cache that the kernel reclaims before it refuses memory.
    cache: &'static str,
    swap: Option<&'static str>,
}

const V2: Files = Files {
    limit: "memory.max",
    used: "memory.current",
    cache: "inactive_file",
    swap: Some("memory.swap.max"),
};
const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cache: "total_inactive_file",
    swap: None,
};

/// `memory`, reduced to the limits of this process's control groups.
pub(super) fn apply_cgroup_limits(host: &Host, memory: Memory) -> Memory {
    let groups = read(&host.path("/proc/self/cgroup"));
    let (hosts, mut memory) = (memory.total_kib, memory);
    for line in groups.lines() {
        // Hierarchy, controllers, path (cgroups(7)).
        let mut fields = line.splitn(3, ':');
        let (_, Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let (mount, files) = if controllers.is_empty() {
            ("/sys/fs/cgroup", V2)
        } else if controllers.split(',').any(|name| name == "memory") {
            ("/sys/fs/cgroup/memory", V1)
        } else {
            continue;
        };
        let mount = host.path(mount);
        for group in groups_of(&mount, path) {
            apply_limit(&group, &files, hosts, &mut memory);
        }
    }
    memory
}

/// A group and its ancestors, up to the mount. A path outside of the mount belongs to another namespace; the
/// mount itself is the relevant group then.
fn groups_of(mount: &Path, path: &str) -> Vec<PathBuf> {
    let own = mount.join(path.trim_start_matches('/'));
    let leads_out = path.split('/').any(|part| part == "..") || !own.exists();
    let own = if leads_out { mount.to_path_buf() } else { own };
    own.ancestors().take_while(|group| group.starts_with(mount)).take(DEPTH).map(Path::to_path_buf).collect()
}

/// `hosts` is the memory of the host, in KiB.
fn apply_limit(group: &Path, files: &Files, hosts: u64, memory: &mut Memory) {
    let kib = |file: &str| read(&group.join(file)).trim().parse::<u64>().ok().map(|bytes| bytes / 1024);
    // `max` is no number; version 1 reports a number beyond any memory. What is used is not asked for where that changes nothing: the
    // kernel may have to sum it up over all processors first.
    if let Some(limit) = kib(files.limit).filter(|limit| *limit < hosts) {
        let used = kib(files.used).unwrap_or(0).saturating_sub(cache(group, files));
        memory.total_kib = memory.total_kib.min(limit);
        memory.available_kib = memory.available_kib.min(limit.saturating_sub(used));
    }
    if let Some(swap) = files.swap.and_then(kib) {
        memory.swap_kib = memory.swap_kib.min(swap);
    }
}

fn cache(group: &Path, files: &Files) -> u64 {
    let stat = read(&group.join("memory.stat"));
    let line = stat.lines().find_map(|line| line.strip_prefix(files.cache)?.strip_prefix(' '));
    line.and_then(|bytes| bytes.parse::<u64>().ok()).map_or(0, |bytes| bytes / 1024)
}

/// The host's memory from sysinfo(2), where /proc is not mounted. Reclaimable caches are not counted as
/// available.
pub(super) fn from_sysinfo() -> Option<Memory> {
    // SAFETY: an all-zero sysinfo is a valid object to be overwritten.
    let mut facts: libc::sysinfo = unsafe { std::mem::zeroed() };
    // SAFETY: `facts` is valid for writing.
    if unsafe { libc::sysinfo(&mut facts) } != 0 {
        return None;
    }
    let kib = |amount: libc::c_ulong| amount.saturating_mul(facts.mem_unit.into()) / 1024;
    Some(Memory {
        total_kib: kib(facts.totalram),
        available_kib: kib(facts.freeram.saturating_add(facts.bufferram)),
        swap_kib: kib(facts.totalswap),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree;
    use super::*;

    const MEMINFO: (&str, &str) =
        ("/proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\nSwapTotal: 1048576 kB\n");
    const MIB: u64 = 1 << 10;

    fn memory(files: &[(&str, &str)]) -> (u64, u64, u64) {
        let (_folder, host) = tree(&[&[MEMINFO], files].concat());
        let memory = host.memory().unwrap();
        (memory.total_kib / MIB, memory.available_kib / MIB, memory.swap_kib / MIB)
    }

    #[test]
    fn a_containers_limit_counts_and_not_the_hosts_memory() {
        assert_eq!(memory(&[]), (8192, 4096, 1024));
        let inside = [
            ("/proc/self/cgroup", "0::/\n"),
            ("/sys/fs/cgroup/memory.max", "536870912\n"),
            ("/sys/fs/cgroup/memory.current", "402653184\n"),
            ("/sys/fs/cgroup/memory.stat", "anon 5\ninactive_file 268435456\n"),
            ("/sys/fs/cgroup/memory.swap.max", "0\n"),
        ];
        assert_eq!(memory(&inside), (512, 384, 0));
        let version_1 = [
            ("/proc/self/cgroup", "4:cpu:/x\n5:memory:/docker/0123\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n"),
            ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "104857600\n"),
        ];
        assert_eq!(memory(&version_1), (1024, 924, 1024));
    }

    #[test]
    fn the_tightest_of_the_groups_around_a_service_counts() {
        let groups = [
            ("/proc/self/cgroup", "0::/user.slice/vm.service\n"),
            ("/sys/fs/cgroup/user.slice/vm.service/memory.max", "max\n"),
            ("/sys/fs/cgroup/user.slice/memory.max", "2147483648\n"),
            ("/sys/fs/cgroup/user.slice/memory.current", "1073741824\n"),
        ];
        assert_eq!(memory(&groups), (2048, 1024, 1024));
        let unlimited = [
            ("/proc/self/cgroup", "5:memory:/\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(memory(&unlimited), (8192, 4096, 1024));
    }

    #[test]
    fn the_kernel_says_how_much_there_is_without_proc() {
        let (asked, read) = (from_sysinfo().unwrap(), Host::here().all_memory().unwrap());
        assert_eq!(asked.total_kib, read.total_kib);
    }
}
