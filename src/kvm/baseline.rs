//! What a guest was told of its processor, as far as it may rely on it: whether another host can go on with that guest.
//!
//! A guest does not ask CPUID again when it is restored or migrated, so that the new host has to offer at least what the old one did. More
//! does no harm: the guest keeps seeing the CPUID of before. What the machine says by itself (topology, caches) is not compared.

mod names;

use std::collections::BTreeMap;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, VcpuFd};
use serde::{Deserialize, Serialize};

use super::cpuid::DEFAULT_ADDRESS_BITS;
use super::vm::create_vm;
use super::{KvmDevice, KvmError, call};
use names::{WORDS, name};

/// Frequencies of the TSC that KVM takes for one (its module's parameter `tsc_tolerance_ppm`).
const TSC_TOLERANCE_PPM: u64 = 250;
/// Most features that a sentence names.
const MOST_NAMED: usize = 12;

/// See the module. Serialised it stands in `machine.json`: numbers as CPUID gives them, so that versions of this program that have names
/// for other features agree about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct CpuBaseline {
    vendor: String,
    family: u32,
    model: u32,
    stepping: u32,
    physical_address_bits: u32,
    linear_address_bits: u32,
    /// Absent where KVM does not say; of a host that can have the TSC run at any frequency, too.
    tsc_khz: Option<u32>,
    /// Feature bits by their place in CPUID, such as `7.0.ebx`: leaf (hexadecimal), index, register.
    features: BTreeMap<String, u32>,
    /// Bytes and offset of each part of the XSAVE area, by its number.
    xsave: BTreeMap<u32, (u32, u32)>,
}

/// Why a guest cannot go on here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CpuMismatch {
    #[error("its guest runs on a processor of {saved:?}, and this host's is of {host:?}")]
    Vendor { saved: String, host: String },
    #[error("this host's processor or its KVM lacks {}, which its guest has", list(.0))]
    Features(Vec<String>),
    #[error("its guest has {saved} bits of {kind} address, and this host offers {host}")]
    AddressBits { kind: &'static str, saved: u32, host: u32 },
    #[error("its clock runs at {saved} kHz, this host's at {host} kHz, and KVM cannot scale it")]
    Frequency { saved: u32, host: u32 },
    #[error("this host's processor keeps part {0} of its XSAVE area in another place")]
    Xsave(u32),
}

/// Names in a sentence, the first ones of many.
fn list(names: &[String]) -> String {
    let (named, more) = names.split_at(names.len().min(MOST_NAMED));
    match (named, more.len()) {
        (named, 1..) => format!("{} and {} more features", named.join(", "), more.len()),
        ([first @ .., last], _) if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        (named, _) => named.concat(),
    }
}

impl CpuBaseline {
    /// What a guest on this host is told. Takes as long as making a VM.
    pub(crate) fn of(kvm: &KvmDevice) -> Result<Self, KvmError> {
        let vm = create_vm(&kvm.kvm).map_err(call("make a virtual machine"))?;
        let vcpu = vm.create_vcpu(0).map_err(call("make a vCPU"))?;
        vcpu.set_cpuid2(kvm.cpuid()?.shaped(1)?.for_vcpu(0)).map_err(call("take the vCPU's CPUID"))?;
        Self::of_vcpu(&vcpu, kvm)
    }

    /// What the guest of a vCPU is told, which has its CPUID.
    pub(super) fn of_vcpu(vcpu: &VcpuFd, kvm: &KvmDevice) -> Result<Self, KvmError> {
        let told = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(call("give the vCPU's CPUID"))?;
        let fixed = !kvm.kvm.check_extension(Cap::TscControl);
        let tsc_khz = vcpu.get_tsc_khz().ok().filter(|khz| fixed && *khz > 0);
        Ok(Self::of_entries(told.as_slice(), tsc_khz))
    }

    /// Whether a guest that was told this can go on at the host of `kvm`, where no vCPU is at hand to ask.
    pub(crate) fn check_host(&self, kvm: &KvmDevice) -> Result<Result<(), CpuMismatch>, KvmError> {
        let supported = kvm.cpuid()?.shaped(1)?;
        if self.check(&Self::of_entries(supported.entries(), None)).is_ok() {
            return Ok(Ok(()));
        }
        // A KVM that runs its guests without help of the processor cannot hide features of that, and tells a vCPU more than it lists.
        Ok(self.check(&Self::of(kvm)?))
    }

    /// What a vCPU with this CPUID was told.
    pub(super) fn of_entries(entries: &[kvm_cpuid_entry2], tsc_khz: Option<u32>) -> Self {
        let find = |function, index| {
            entries.iter().find(|entry| entry.function == function && entry.index == index).copied()
        };
        let leaf = |function| find(function, 0).unwrap_or_default();
        let (vendor, signature, widths) = (leaf(0), leaf(1).eax, leaf(0x8000_0008).eax);
        let vendor = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat();
        // Intel SDM vol. 2, CPUID leaf 1: extended family 27..20, extended model 19..16, family, model, stepping.
        let (family, extended_model) = (signature >> 8 & 0xf, signature >> 16 & 0xf);
        let width = |shift: u32, otherwise| match widths >> shift & 0xff {
            0 => otherwise,
            bits => bits,
        };
        let word = |word: &names::Word| {
            let bits = word.of(&find(word.function, word.index)?) & word.compared();
            (bits != 0).then(|| (word.place(), bits))
        };
        let parts =
            entries.iter().filter(|entry| entry.function == 0xd && entry.index >= 2 && entry.eax != 0);
        CpuBaseline {
            vendor: String::from_utf8_lossy(&vendor).into_owned(),
            family: if family == 0xf { family + (signature >> 20 & 0xff) } else { family },
            model: if matches!(family, 6 | 0xf) { extended_model << 4 } else { 0 } | signature >> 4 & 0xf,
            stepping: signature & 0xf,
            physical_address_bits: width(0, DEFAULT_ADDRESS_BITS),
            linear_address_bits: width(8, 48),
            tsc_khz,
            features: WORDS.iter().filter_map(word).collect(),
            xsave: parts.map(|entry| (entry.index, (entry.eax, entry.ebx))).collect(),
        }
    }

    /// Bits of guest physical address, by which the machine has placed its PCI windows.
    pub(crate) fn physical_address_bits(&self) -> u32 {
        self.physical_address_bits
    }

    /// Whether a guest that was told this can go on at `host`.
    pub(crate) fn check(&self, host: &CpuBaseline) -> Result<(), CpuMismatch> {
        if self.vendor != host.vendor {
            return Err(CpuMismatch::Vendor { saved: self.vendor.clone(), host: host.vendor.clone() });
        }
        let lacking = |(place, bits): (&String, &u32)| {
            let lacking = bits & !host.features.get(place).copied().unwrap_or(0);
            let place = place.clone();
            (0..u32::BITS).filter(move |bit| lacking >> bit & 1 != 0).map(move |bit| name(&place, bit))
        };
        let lacking: Vec<_> = self.features.iter().flat_map(lacking).collect();
        if !lacking.is_empty() {
            return Err(CpuMismatch::Features(lacking));
        }
        let widths = [
            ("physical", self.physical_address_bits, host.physical_address_bits),
            ("linear", self.linear_address_bits, host.linear_address_bits),
        ];
        if let Some((kind, saved, host)) = widths.into_iter().find(|(_, saved, host)| saved > host) {
            return Err(CpuMismatch::AddressBits { kind, saved, host });
        }
        if let (Some(saved), Some(host)) = (self.tsc_khz, host.tsc_khz)
            && u64::from(saved.abs_diff(host)) * 1_000_000 > u64::from(host) * TSC_TOLERANCE_PPM
        {
            return Err(CpuMismatch::Frequency { saved, host });
        }
        match self.xsave.iter().find(|(part, place)| host.xsave.get(part) != Some(place)) {
            Some((part, _)) => Err(CpuMismatch::Xsave(*part)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    /// A processor with AVX-512, 46 bits of address and PKRU in its XSAVE area.
    fn entries() -> Vec<kvm_cpuid_entry2> {
        let [ebx, edx, ecx] = [*b"Genu", *b"ineI", *b"ntel"].map(u32::from_le_bytes);
        vec![
            entry(0, 0, [0x1f, ebx, ecx, edx]),
            entry(1, 0, [0x0008_06f8, 0x0001_0800, 1 << 28 | 1 << 27, 1 << 28 | 1 << 25]),
            entry(7, 0, [0, 1 << 5 | 1 << 16 | 1 << 30, 0, 1 << 5]),
            entry(0xd, 0, [7, 576, 2696, 0]),
            entry(0xd, 9, [8, 2688, 0, 0]),
            entry(0x8000_0008, 0, [0x302e, 0, 0, 0]),
        ]
    }

    fn changed(function: u32, index: u32, change: impl Fn(&mut kvm_cpuid_entry2)) -> CpuBaseline {
        let mut entries = entries();
        entries
            .iter_mut()
            .filter(|entry| (entry.function, entry.index) == (function, index))
            .for_each(change);
        CpuBaseline::of_entries(&entries, None)
    }

    #[test]
    fn a_host_with_less_is_refused_by_the_names_of_what_it_lacks_and_one_with_more_is_not() {
        let saved = CpuBaseline::of_entries(&entries(), Some(2_100_000));
        let check = |host: &CpuBaseline| saved.check(host).map_err(|mismatch| mismatch.to_string());
        assert_eq!((saved.vendor.as_str(), saved.family, saved.model), ("GenuineIntel", 6, 0x8f));
        assert_eq!((saved.stepping, saved.physical_address_bits(), saved.linear_address_bits), (8, 46, 48));
        assert_eq!(check(&CpuBaseline::of_entries(&entries(), None)), Ok(()));
        let more = changed(7, 0, |leaf| (leaf.ebx, leaf.ecx) = (u32::MAX, u32::MAX));
        assert_eq!(check(&more), Ok(()));
        assert_eq!(check(&changed(0x8000_0008, 0, |leaf| leaf.eax = 0x3934)), Ok(()));
        // What the guest's own registers and the number of its processors change.
        let own = changed(1, 0, |leaf| (leaf.ecx, leaf.edx, leaf.ebx) = (leaf.ecx & !(1 << 27), 1 << 25, 9));
        assert_eq!(check(&own), Ok(()));
        let refused = |host: CpuBaseline| check(&host).unwrap_err();
        let less = |bits: u32| refused(changed(7, 0, |leaf| leaf.ebx &= !bits));
        assert!(less(1 << 16).contains("lacks avx512f, which"));
        assert!(less(u32::MAX).contains("lacks avx2, avx512f and avx512bw, which"), "{}", less(u32::MAX));
        assert!(refused(changed(7, 0, |leaf| leaf.edx = 0)).contains("lacks uintr, which"));
        assert!(refused(changed(0x8000_0008, 0, |leaf| leaf.eax = 0x302d)).contains("46 bits of physical"));
        assert!(refused(changed(0x8000_0008, 0, |leaf| leaf.eax = 0x2f2e)).contains("48 bits of linear"));
        let clock = |khz| check(&CpuBaseline::of_entries(&entries(), Some(khz)));
        assert_eq!((clock(2_100_500), clock(2_099_500)), (Ok(()), Ok(())), "KVM takes them for one");
        assert!(clock(2_101_000).unwrap_err().contains("runs at 2100000 kHz, this host's at 2101000 kHz"));
        assert!(refused(changed(0xd, 9, |leaf| leaf.ebx = 832)).contains("part 9"));
        assert!(refused(changed(0xd, 9, |leaf| leaf.eax = 0)).contains("part 9"));
        let other = refused(changed(0, 0, |leaf| leaf.ebx = u32::from_le_bytes(*b"Auth")));
        assert!(other.contains("GenuineIntel") && other.contains("this host's is of"), "{other}");
    }

    #[test]
    fn what_a_file_says_is_named_by_its_place_where_it_has_no_name_and_many_are_counted() {
        let host = CpuBaseline::of_entries(&entries(), None);
        let mut hostile = host.clone();
        hostile.features.insert("24.0.ebx".into(), 1);
        assert!(hostile.check(&host).unwrap_err().to_string().contains("lacks bit 0 of CPUID 24.0.ebx"));
        hostile.features.insert("\u{1b}[2J".into(), u32::MAX);
        let said = hostile.check(&host).unwrap_err().to_string();
        assert!(said.contains("and 21 more features") && !said.contains('\u{1b}'), "{said:?}");
        let text = serde_json::to_string(&host).unwrap();
        assert_eq!(serde_json::from_str::<CpuBaseline>(&text).unwrap(), host);
    }

    #[test]
    fn this_host_offers_what_its_own_guests_are_told() {
        let host = CpuBaseline::of(&KvmDevice::open().unwrap()).unwrap();
        assert!(host.features.contains_key("1.0.edx") && host.physical_address_bits() >= 32, "{host:?}");
        assert_eq!(host.check(&host), Ok(()));
        let mut more = host.clone();
        more.features.insert("7.0.ebx".into(), u32::MAX);
        let kvm = KvmDevice::open().unwrap();
        assert_eq!(host.check_host(&kvm).unwrap(), Ok(()));
        assert!(more.check_host(&kvm).unwrap().unwrap_err().to_string().contains("sgx"));
    }
}
