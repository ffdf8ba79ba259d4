//! The processor from CPUID, where /proc is not mounted.

use std::arch::x86_64::{__cpuid, CpuidResult};
use std::thread;

use super::Cpu;

/// Executes CPUID. Unlike /proc/cpuinfo it also reports features that the kernel does not use.
pub(super) fn from_cpuid() -> Cpu {
    let leaf = |number| {
        // SAFETY: every x86-64 processor has the instruction.
        #[allow(unused_unsafe, reason = "newer compilers know that")]
        unsafe {
            __cpuid(number)
        }
    };
    let CpuidResult { ebx, ecx, edx, .. } = leaf(0);
    let vendor = text(&[ebx, edx, ecx]);
    let extended = leaf(0x8000_0000).eax;
    let svm = extended >= 0x8000_0001 && leaf(0x8000_0001).ecx & (1 << 2) != 0;
    let model = if extended >= 0x8000_0004 {
        let words =
            (0x8000_0002..=0x8000_0004).map(leaf).flat_map(|part| [part.eax, part.ebx, part.ecx, part.edx]);
        text(&words.collect::<Vec<_>>())
    } else {
        String::new()
    };
    let features = leaf(1).ecx;
    Cpu {
        vendor,
        model,
        count: thread::available_parallelism().map_or(1, usize::from),
        vmx: features & (1 << 5) != 0,
        svm,
        hypervisor: features & (1 << 31) != 0,
    }
}

fn text(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    String::from_utf8_lossy(&bytes).trim_matches(['\0', ' ']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_says_the_same_as_the_kernel() {
        let (asked, read) = (from_cpuid(), super::super::Host::here().cpu());
        assert_eq!((asked.vendor, asked.model, asked.hypervisor), (read.vendor, read.model, read.hypervisor));
    }
}
