//! One PCI function, 00:03.0, with the MSI-X that `Guest::Msix` expects: table and doorbell in one 64-bit BAR.

use kvm_bindings::kvm_msi;
use kvm_ioctls::VmFd;

const CONFIG: u64 = 0xe000_0000 + (3 << 15);
const BAR: u64 = 0x70_0000_0000;
const TABLE: u64 = 0x800;
const CAPABILITY: usize = 0x40;

pub(super) struct Function {
    config: [u8; 4096],
    bar: [u8; 4096],
}

impl Default for Function {
    fn default() -> Self {
        let mut config = [0; 4096];
        config[..4].copy_from_slice(&[0xf4, 0x1a, 0x05, 0x10]);
        config[6] = 0x10;
        config[0x10..0x18].copy_from_slice(&(BAR | 4).to_le_bytes());
        // The capability list: one that is not MSI-X first.
        config[0x34] = 0x60;
        config[0x60..0x62].copy_from_slice(&[9, CAPABILITY as u8]);
        config[CAPABILITY] = 0x11;
        config[CAPABILITY + 4..CAPABILITY + 8].copy_from_slice(&(TABLE as u32).to_le_bytes());
        Function { config, bar: [0; 4096] }
    }
}

impl Function {
    pub(super) fn read(&mut self, address: u64, data: &mut [u8]) {
        for (space, base) in [(&self.config, CONFIG), (&self.bar, BAR)] {
            if let Some(from) = slice(address, base, data.len()) {
                data.copy_from_slice(&space[from]);
            }
        }
    }

    pub(super) fn write(&mut self, address: u64, data: &[u8], vm: &VmFd) {
        if let Some(to) = slice(address, CONFIG, data.len()) {
            match (to.start, data.len()) {
                (4, 2) | (0x42, 2) => self.config[to].copy_from_slice(data),
                // A BAR of 4 KiB that stays where it is.
                (0x10, 4) => self.config[to].copy_from_slice(match data {
                    [0xff, 0xff, 0xff, 0xff] => &[4, 0xf0, 0xff, 0xff],
                    _ => &[4, 0, 0, 0],
                }),
                _ => {}
            }
        }
        if let Some(to) = slice(address, BAR, data.len()) {
            let doorbell = (to.start, data) == (0, &[1, 0, 0, 0]);
            self.bar[to].copy_from_slice(data);
            let (memory, msix) = (self.config[4] & 2 != 0, self.config[CAPABILITY + 3] & 0xc0 == 0x80);
            if doorbell && memory && msix && self.table(12) == 0 {
                let msi = kvm_msi {
                    address_lo: self.table(0),
                    address_hi: self.table(4),
                    data: self.table(8),
                    ..Default::default()
                };
                vm.signal_msi(msi).unwrap();
            }
        }
    }

    fn table(&self, offset: usize) -> u32 {
        let at = TABLE as usize + offset;
        u32::from_le_bytes(self.bar[at..at + 4].try_into().unwrap())
    }
}

fn slice(address: u64, base: u64, len: usize) -> Option<std::ops::Range<usize>> {
    let offset = usize::try_from(address.checked_sub(base)?).unwrap();
    (offset + len <= 4096).then_some(offset..offset + len)
}
