//! Words of feature bits in CPUID, with the names that Linux has for them (/proc/cpuinfo and arch/x86/include/asm/cpufeatures.h).

use kvm_bindings::kvm_cpuid_entry2;

/// A register of CPUID.
#[derive(Debug, Clone, Copy)]
pub(super) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// 32 feature bits.
#[derive(Debug)]
pub(super) struct Word {
    pub(super) function: u32,
    pub(super) index: u32,
    register: Register,
    /// Names from bit 0 up. `-` has none; `.` is no feature of the host: it follows the guest's own registers or the machine's topology.
    names: &'static str,
}

const fn word(function: u32, index: u32, register: Register, names: &'static str) -> Word {
    Word { function, index, register, names }
}

/// All of them.
pub(super) const WORDS: [Word; 23] = [
    word(
        1,
        0,
        Register::Ecx,
        "sse3 pclmulqdq dtes64 . ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 sse4_2 x2apic movbe popcnt \
         tsc_deadline_timer aes xsave . avx f16c rdrand hypervisor",
    ),
    word(
        1,
        0,
        Register::Edx,
        "fpu vme de pse tsc msr pae mce cx8 . - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr sse sse2 ss . tm ia64 pbe",
    ),
    word(
        7,
        0,
        Register::Ebx,
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds mpx rdt_a avx512f avx512dq rdseed \
         adx smap avx512ifma pcommit clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
    ),
    word(
        7,
        0,
        Register::Ecx,
        "prefetchwt1 avx512vbmi umip pku . waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni avx512_bitalg tme avx512_vpopcntdq - \
         la57 - - - - - rdpid key_locker bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks",
    ),
    word(
        7,
        0,
        Register::Edx,
        "- sgx_keys avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear rtm_always_abort - tsx_force_abort \
         serialize hybrid_cpu tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d \
         arch_capabilities core_capabilities spec_ctrl_ssbd",
    ),
    word(
        7,
        1,
        Register::Eax,
        "sha512 sm3 sm4 - avx_vnni avx512_bf16 lass cmpccxadd arch_perfmon_ext - fzrm fsrs fsrc - - - - fred lkgs wrmsrns nmi_src amx_fp16 \
         hreset avx_ifma - - lam msrlist - - - movrs",
    ),
    word(7, 1, Register::Ecx, "- - - - - msr_imm"),
    word(
        7,
        1,
        Register::Edx,
        "- - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16 - - utmr prefetchi user_msr - - cet_sss avx10 - apx_f",
    ),
    word(7, 2, Register::Edx, "intel_psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no"),
    word(
        0xd,
        0,
        Register::Eax,
        "xsave_x87 xsave_sse xsave_avx xsave_bndregs xsave_bndcsr xsave_opmask xsave_zmm_hi256 xsave_hi16_zmm - xsave_pkru - - - - - - - \
         xsave_xtilecfg xsave_xtiledata xsave_apx",
    ),
    word(0xd, 0, Register::Edx, ""),
    word(0xd, 1, Register::Eax, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    word(0xd, 1, Register::Ecx, ""),
    word(0xd, 1, Register::Edx, ""),
    word(
        0x4000_0001,
        0,
        Register::Eax,
        "kvmclock kvm_nopiodelay kvm_mmu kvmclock2 kvm_asyncpf kvm_steal_time kvm_pv_eoi kvm_pv_unhalt - kvm_pv_tlb_flush kvm_asyncpf_vmexit \
         kvm_pv_ipi kvm_poll_control kvm_pv_sched_yield kvm_asyncpf_int kvm_msi_ext_dest_id kvm_hc_map_gpa_range kvm_migration_control - - - - \
         - - kvmclock_stable",
    ),
    word(
        0x8000_0001,
        0,
        Register::Ecx,
        "lahf_lm . svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext \
         perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx",
    ),
    word(
        0x8000_0001,
        0,
        Register::Edx,
        "fpu vme de pse tsc msr pae mce cx8 . - syscall mtrr pge mca cmov pat pse36 - mp nx - mmxext mmx fxsr fxsr_opt pdpe1gb rdtscp - lm \
         3dnowext 3dnow",
    ),
    word(0x8000_0007, 0, Register::Ebx, "overflow_recov succor - smca"),
    word(0x8000_0007, 0, Register::Edx, "- - - - - - - - invtsc"),
    word(
        0x8000_0008,
        0,
        Register::Ebx,
        "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp - amd_stibp_always_on - - - - - amd_ppin amd_ssbd \
         virt_ssbd amd_ssb_no cppc amd_psfd btc_no amd_ibpb_ret",
    ),
    word(
        0x8000_000a,
        0,
        Register::Edx,
        "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists - - pausefilter - pfthreshold avic - v_vmsave_vmload vgif - \
         x2avic - v_spec_ctrl - - - - vnmi",
    ),
    word(
        0x8000_0021,
        0,
        Register::Eax,
        "no_nested_data_bp fsgs_non_serializing lfence_rdtsc - - - null_sel_clr_base - autoibrs no_smm_ctl_msr - - - - - - - - - - prefetchi - - \
         - - - - sbpb ibpb_brtype srso_no srso_user_kernel_no",
    ),
    word(0xc000_0001, 0, Register::Edx, ""),
];

impl Word {
    /// The word of its leaf.
    pub(super) fn of(&self, leaf: &kvm_cpuid_entry2) -> u32 {
        match self.register {
            Register::Eax => leaf.eax,
            Register::Ebx => leaf.ebx,
            Register::Ecx => leaf.ecx,
            Register::Edx => leaf.edx,
        }
    }

    /// Its bits that a host has to offer.
    pub(super) fn compared(&self) -> u32 {
        let names = (0..u32::BITS).zip(self.names.split_ascii_whitespace());
        names.filter(|(_, name)| *name == ".").fold(u32::MAX, |mask, (bit, _)| mask & !(1 << bit))
    }

    /// Where it is in CPUID.
    pub(super) fn place(&self) -> String {
        let register = match self.register {
            Register::Eax => "eax",
            Register::Ebx => "ebx",
            Register::Ecx => "ecx",
            Register::Edx => "edx",
        };
        format!("{:x}.{}.{register}", self.function, self.index)
    }
}

/// A bit's name for people, of a place that may stand in a file.
pub(super) fn name(place: &str, bit: u32) -> String {
    let word = WORDS.iter().find(|word| word.place() == place);
    let name = word.and_then(|word| word.names.split_ascii_whitespace().nth(usize::try_from(bit).ok()?));
    match name {
        Some(name) if name.len() > 1 => name.to_owned(),
        _ => {
            let place: String = place.chars().take(16).flat_map(char::escape_debug).collect();
            format!("bit {bit} of CPUID {place}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_at_their_bits() {
        for (place, bit, known) in [
            ("1.0.ecx", 31, "hypervisor"),
            ("1.0.edx", 31, "pbe"),
            ("7.0.ebx", 31, "avx512vl"),
            ("7.0.ebx", 29, "sha_ni"),
            ("7.0.ecx", 16, "la57"),
            ("7.0.ecx", 31, "pks"),
            ("7.0.edx", 31, "spec_ctrl_ssbd"),
            ("7.0.edx", 24, "amx_tile"),
            ("7.1.eax", 5, "avx512_bf16"),
            ("7.1.eax", 26, "lam"),
            ("7.1.eax", 31, "movrs"),
            ("7.1.edx", 19, "avx10"),
            ("d.0.eax", 18, "xsave_xtiledata"),
            ("40000001.0.eax", 24, "kvmclock_stable"),
            ("80000001.0.ecx", 29, "mwaitx"),
            ("80000001.0.edx", 29, "lm"),
            ("80000001.0.edx", 20, "nx"),
            ("80000008.0.ebx", 24, "amd_ssbd"),
            ("8000000a.0.edx", 25, "vnmi"),
            ("80000021.0.eax", 27, "sbpb"),
        ] {
            assert_eq!(name(place, bit), known, "{place} {bit}");
        }
        assert!(WORDS.iter().all(|word| word.names.split_ascii_whitespace().count() <= 32));
        assert_eq!(name("1.0.ecx", 16), "bit 16 of CPUID 1.0.ecx");
    }
}
