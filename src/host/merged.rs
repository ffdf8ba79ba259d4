//! What KSM has merged of this process's memory (Documentation/admin-guide/mm/ksm.rst).

use std::fs;
use std::path::Path;

use crate::kvm::PAGE;

/// Bytes of this process that are kept once for several places; 0 where the kernel does not tell.
pub(crate) fn merged_memory() -> u64 {
    merged_of(Path::new("/proc/self"))
}

fn merged_of(process: &Path) -> u64 {
    let read = |file: &str| fs::read_to_string(process.join(file)).unwrap_or_default();
    let stat = read("ksm_stat");
    let field = |name: &str| {
        let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        line.trim().parse::<u64>().ok()
    };
    // Pages of zeros are counted apart; older kernels have the number of the others alone, in a file of its own.
    let pages = match field("ksm_merging_pages") {
        Some(pages) => pages.saturating_add(field("ksm_zero_pages").unwrap_or(0)),
        None => read("ksm_merging_pages").trim().parse().unwrap_or(0),
    };
    pages.saturating_mul(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_memory_is_counted_with_pages_of_zeros_where_the_kernel_tells() {
        let merged = |files: &[(&str, &str)]| {
            let folder = tempfile::tempdir().unwrap();
            files.iter().for_each(|(file, text)| fs::write(folder.path().join(file), text).unwrap());
            merged_of(folder.path())
        };
        let stat = "ksm_rmap_items 9\nksm_zero_pages 1\nksm_merging_pages 2\nksm_process_profit -64\n";
        assert_eq!(merged(&[("ksm_stat", stat)]), 3 * 4096);
        assert_eq!(merged(&[("ksm_stat", "ksm_rmap_items 9\n"), ("ksm_merging_pages", "5\n")]), 5 * 4096);
        assert_eq!(merged(&[]), 0);
    }
}
