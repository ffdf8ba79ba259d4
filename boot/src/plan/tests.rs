//! Tests of `plan`: addresses, and refusals.

use super::*;
use crate::layout::LOW_RAM_END;
use crate::testing::{MIB, Part, bzimage, elf, initrd, plan_in, plan_with, put, pvh_elf, tiny_elf};

fn refusal(result: Result<BootPlan, PlanError>) -> String {
    let message = result.unwrap_err().to_string();
    assert!(message.ends_with('.'), "{message:?} is no sentence");
    message
}

#[test]
fn bzimage_goes_to_its_preferred_address() {
    let plan = plan_in(&bzimage(), 128, None).unwrap();
    assert_eq!(plan.kernel, [Load { file_offset: 0x800, guest: 0x100_0000, len: 4096 }]);
    assert_eq!((plan.protocol, plan.entry), (Protocol::Linux64, 0x100_0200));
    assert_eq!(plan.initrd, None);
}

#[test]
fn elf_segments_go_to_their_physical_addresses() {
    let plan = plan_in(&pvh_elf(), 64, None).unwrap();
    let first = Load { file_offset: 4096 + 0x400, guest: 0x100_0000, len: 0x1000 };
    let second = Load { file_offset: 4096, guest: 0x120_0000, len: 0x400 };
    assert_eq!(plan.kernel, [first, second]);
    assert_eq!((plan.protocol, plan.entry), (Protocol::Pvh, 0x100_0040));
}

#[test]
fn preferred_entry_is_taken_where_there_is_one() {
    let with = |file: &[u8], entry| plan_with(file, 64, None, "", Some(entry));
    assert_eq!(with(&pvh_elf(), Protocol::Linux64).unwrap().entry, 0x100_0000);
    let message = refusal(with(&bzimage(), Protocol::Pvh));
    assert!(message.contains("bzImage") && message.contains("no PVH entry"), "{message}");
}

#[test]
fn tiny_guest_runs_in_two_mebibytes() {
    let plan = plan_in(&tiny_elf(), 2, None).unwrap();
    assert_eq!((plan.entry, plan.protocol), (0x10_0000, Protocol::Linux64));
    assert_eq!(plan_in(&tiny_elf(), 2, Some(initrd(4096))).unwrap().initrd.unwrap().guest, 2 * MIB - 4096);
}

#[test]
fn initrd_goes_as_high_as_it_fits() {
    let at = |mib, len| plan_in(&bzimage(), mib, Some(initrd(len))).unwrap().initrd.unwrap();
    assert_eq!(at(128, 5000), Load { file_offset: 0, guest: 128 * MIB - 8192, len: 5000 });
    assert_eq!(at(128, 4096).guest, 128 * MIB - 4096);
    // Debian's kernels allow up to 2 GiB, and an initrd is never in the hole or above it.
    assert_eq!(at(3 << 10, 4096).guest, 0x8000_0000 - 4096);
    assert_eq!(at(6 << 10, 4096).guest, 0x8000_0000 - 4096);
    let elf = plan_in(&pvh_elf(), 6 << 10, Some(initrd(4096))).unwrap();
    assert_eq!(elf.initrd.unwrap().guest, LOW_RAM_END - 4096);
}

#[test]
fn initrd_stays_clear_of_the_room_for_unpacking() {
    let mut file = bzimage();
    put(&mut file, 0x260, &0x6f0_0000u32.to_le_bytes()); // init_size: 16 + 111 MiB
    put(&mut file, 0x22c, &0x7ff_ffffu32.to_le_bytes()); // initrd below 128 MiB
    let fits = plan_in(&file, 256, Some(initrd(1 << 20))).unwrap();
    assert_eq!(fits.initrd.unwrap().guest, 0x7f0_0000);
    let message = refusal(plan_in(&file, 256, Some(initrd((1 << 20) + 1))));
    assert!(message.contains("1048577") && message.contains("1048576"), "{message}");
}

#[test]
fn too_little_memory_says_how_much_is_enough() {
    let mut file = bzimage();
    put(&mut file, 0x260, &0x337_8000u32.to_le_bytes()); // Debian 6.1 cloud: boots with 76 MiB, dies with 72
    let message = refusal(plan_in(&file, 68, Some(initrd(1 << 20))));
    assert_eq!(
        message,
        "68 MiB of memory are too little for this kernel with this initrd: it needs about 76 MiB."
    );
    // Memory that may be enough is not refused; the estimate is for a warning.
    assert!(plan_in(&file, 72, Some(initrd(1 << 20))).is_ok());
    let kernel = Kernel::parse(&file[..]).unwrap();
    assert_eq!(memory_estimate(&kernel, Some(&initrd(1 << 20))), Ok(76 * MIB));
    assert!(refusal(plan_in(&file, 64, None)).contains("for this kernel: it needs about 74 MiB"));
}

#[test]
fn memory_that_was_named_is_enough() {
    for file in [bzimage(), pvh_elf(), tiny_elf()] {
        for len in [0, 1, 4095, 4096, 1 << 20, (3 << 20) + 1] {
            let initrd = (len > 0).then(|| initrd(len));
            let Err(PlanError::NotEnoughMemory { needed, .. }) = plan_in(&file, 1, initrd) else {
                panic!("1 MiB was enough");
            };
            let message = format!("{needed:#x} is not enough for {len}");
            plan_in(&file, needed / MIB, initrd).expect(&message);
        }
    }
}

#[test]
fn command_line_ends_at_the_kernels_limit() {
    let with = |cmdline: &str| plan_with(&bzimage(), 64, None, cmdline, None);
    let plan = with(&"x".repeat(2047)).unwrap();
    assert_eq!((plan.cmdline.len(), plan.cmdline.last()), (2048, Some(&0)));
    let message = refusal(with(&"x".repeat(2048)));
    assert!(message.contains("2048 bytes long") && message.contains("takes 2047 at most"), "{message}");
    assert!(refusal(with("a\0b")).contains("zero byte at position 1"));
    let mut greedy = bzimage();
    put(&mut greedy, 0x238, &[0xff; 4]);
    let limit = plan_with(&greedy, 64, None, &"x".repeat(1 << 16), None);
    assert_eq!(limit.unwrap_err(), PlanError::CmdlineTooLong { len: 1 << 16, max: (1 << 16) - 1 });
    assert!(matches!(
        plan_with(&tiny_elf(), 2, None, &"x".repeat(2048), None),
        Err(PlanError::CmdlineTooLong { max: 2047, .. })
    ));
}

#[test]
fn kernel_must_lie_between_the_tables_and_the_hole() {
    let at = |paddr| elf(paddr, &[Part { paddr, filesz: 16, memsz: 0x1000 }], None);
    let low = refusal(plan_in(&at(0xf_f000), 64, None));
    assert!(low.contains("0xff000") && low.contains("0x100000"), "{low}");
    for paddr in [LOW_RAM_END, LOW_RAM_END - 0xfff, 0x1_0000_0000, u64::MAX - 0x2000] {
        let high = refusal(plan_in(&at(paddr), 6 << 10, None));
        assert!(high.contains("must end below 0xc0000000"), "{high}");
    }
    assert!(plan_in(&at(LOW_RAM_END - 0x1000), 6 << 10, None).is_ok());
}
