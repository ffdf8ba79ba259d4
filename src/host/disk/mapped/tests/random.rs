//! Random operations, many at once.

use std::fs;

use super::images::{kind, kinds};
use super::*;

#[test]
fn random_operations_leave_what_they_should() {
    let batches = if is_soak() { 400 } else { 4 };
    for (name, prepare) in kinds() {
        println!("{name}");
        on_each(Access::default(), &prepare, |rig| {
            let base = rig.path.with_file_name("base.raw");
            let below = fs::read(&base).unwrap_or_default();
            for batch in 0..batches {
                rig.batch();
                if batch % 3 == 1 {
                    rig.close();
                }
            }
            rig.close();
            assert_eq!(fs::read(&base).unwrap_or_default(), below, "nothing is written to a backing file");
        });
    }
}

#[test]
fn random_operations_with_direct_io_leave_what_they_should() {
    for name in ["plain", "on a shorter raw file", "compressed"] {
        let prepare = kind(name);
        on_each(Access { direct: true, ..Access::default() }, prepare, |rig| {
            for _ in 0..if is_soak() { 200 } else { 4 } {
                rig.batch();
            }
            rig.close();
        });
    }
}

#[test]
fn overlapping_writes_and_zeroes_leave_one_or_the_other() {
    on_each(Access::default(), kind("on a shorter raw file"), |rig| {
        for round in 0..if is_soak() { 500 } else { 20 } {
            let start = rig.dice.below(32) * 65536;
            for tag in 0..TAGS as Tag {
                let value = [tag as u8 + 1; 512];
                for sector in 0..16 {
                    rig.memory
                        .write_slice(&value, GuestAddress(u64::from(tag) * SLOT + sector * 512))
                        .unwrap();
                }
                let operation = match (round + u64::from(tag)) % 4 {
                    0 => Operation::WriteZeroes { unmap: true },
                    1 => Operation::Discard,
                    _ => Operation::Write,
                };
                let offset = start + rig.dice.below(120) * 512;
                rig.submit(tag, operation, Extent { offset, len: 8192 });
            }
            for _ in 0..TAGS {
                rig.next().result.unwrap();
            }
            let (from, len) = (start as usize, (136 * 512) as u64);
            let now = rig.read(start, len);
            for (index, sector) in now.chunks(512).enumerate() {
                let was = &rig.model[from + index * 512..][..512];
                let whole = sector.iter().all(|byte| *byte == sector[0]) && sector[0] <= TAGS as u8;
                assert!(whole || sector == was, "sector {index} after {start}");
            }
            rig.model[from..from + len as usize].copy_from_slice(&now);
        }
        rig.close();
    });
}

#[test]
fn a_read_of_a_cluster_that_is_being_written_first_finds_old_bytes_or_new_ones() {
    on_each(Access::default(), kind("on a shorter raw file"), |rig| {
        let model = rig.model.clone();
        for cluster in 0..40u64 {
            let at = cluster * 65536 + 4096;
            rig.memory.write_slice(&[0xee; 4096], GuestAddress(0)).unwrap();
            rig.submit(0, Operation::Write, Extent { offset: at, len: 4096 });
            for tag in 1..8 {
                rig.submit(tag, Operation::Read, Extent { offset: cluster * 65536, len: 65536 });
            }
            for _ in 0..8 {
                let Completion { tag, result } = rig.next();
                result.unwrap();
                if tag == 0 {
                    continue;
                }
                let mut bytes = vec![0; 65536];
                rig.memory.read_slice(&mut bytes, GuestAddress(u64::from(tag) * SLOT)).unwrap();
                let was = &model[(cluster * 65536) as usize..][..65536];
                assert!(bytes[..4096] == was[..4096] && bytes[8192..] == was[8192..], "around the write");
                assert!(
                    bytes[4096..8192] == was[4096..8192] || bytes[4096..8192] == [0xee; 4096],
                    "the write"
                );
            }
            rig.model[at as usize..at as usize + 4096].fill(0xee);
        }
        rig.close();
    });
}
