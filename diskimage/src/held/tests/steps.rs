//! What a commit knows of the medium from the commits before.

use imago::format::PreallocateMode;

use super::*;
use crate::Header;
use crate::layout::READ;

/// A compressed image.
fn packed() -> Rig {
    let mut rig = Rig::new(65536, 5);
    // It can be packed to half of its size.
    let mut noise = || (0..256).map(|_| rig.dice.below(256) as u8).chain([0; 256]).collect::<Vec<_>>();
    let all: Vec<u8> = (0..SIZE / 512).flat_map(|_| noise()).collect();
    rig.image.write_at(&all, 0).unwrap();
    rig.commit();
    rig.pack();
    rig.model = all;
    rig
}

/// A compressed image of which every cluster was written over.
fn written_over() -> Rig {
    let mut rig = packed();
    let all: Vec<u8> = (0..SIZE / 512).flat_map(|sector| [sector as u8 | 1; 512]).collect();
    rig.image.write_at(&all, 0).unwrap();
    rig.model = all;
    rig.commit();
    rig
}

#[test]
fn a_power_cut_amid_clusters_that_are_freed_and_used_again_loses_nothing() {
    let mut rig = packed();
    let start = fs::read(&rig.path).unwrap();
    let events = |rig: &Rig| lock(&rig.held_writes().log).len();
    let mut committed = vec![(0, rig.model.clone())];
    let mut reused = false;
    for _ in 0..4 {
        let before = fs::metadata(&rig.path).unwrap().len();
        for _ in 0..30 {
            rig.write();
        }
        rig.commit();
        committed.push((events(&rig), rig.model.clone()));
        reused |= fs::metadata(&rig.path).unwrap().len() == before;
        if rig.held_writes().commit().reclaimable() > 0 {
            rig.reclaim();
            committed.push((events(&rig), rig.model.clone()));
        }
    }
    let log = lock(&rig.held_writes().log).clone();
    assert!(reused && log.iter().any(|event| matches!(event, Event::Hole(..))));
    for cut in 0..=log.len() {
        // Around holes, and some of the rest.
        let near = log[cut.saturating_sub(4)..(cut + 4).min(log.len())].iter();
        if near.clone().any(|event| matches!(event, Event::Hole(..))) || rig.dice.below(8) == 0 {
            let last = committed.iter().rposition(|(events, _)| *events <= cut).unwrap();
            rig.assert_cut(&start, &log[..cut], committed[last..].iter().map(|(_, model)| model));
        }
    }
}

#[test]
fn space_is_given_back_before_the_clusters_are_free_and_nothing_is_written_while_they_become_so() {
    let rig = written_over();
    let mut commit = rig.held_writes().commit();
    assert!(commit.reclaimable() > 10);
    lock(&rig.held_writes().log).clear();
    let punched = commit.punch().unwrap();
    let holes = std::mem::take(&mut *lock(&rig.held_writes().log));
    assert!(!holes.is_empty() && holes.len() < 5, "packed clusters lie in a row: {} holes", holes.len());
    let length = |event: &Event| match event {
        Event::Hole(offset, length) if offset % 65536 == 0 => *length,
        _ => 0,
    };
    assert!(holes.iter().map(length).sum::<u64>() >= 10 * 65536);
    assert!(holes.iter().all(|event| length(event) > 0), "nothing is written and synced");
    // This is done while nobody else may use the image.
    commit.free(punched).unwrap();
    assert!(lock(&rig.held_writes().log).is_empty());
}

#[test]
fn a_round_is_bounded_by_clusters_and_by_the_blocks_that_count_them() {
    // Blocks of 512 bytes count 256 clusters each.
    let rounds = |clusters: &mut dyn Iterator<Item = u64>| {
        let rig = Rig::new(512, 5);
        let mut commit = rig.held_writes().commit();
        for cluster in clusters {
            commit.medium.freed.table(9, Table { offset: cluster << 9, entries: 1 });
        }
        let mut left = vec![commit.reclaimable()];
        while commit.reclaimable() > 0 {
            let _ = commit.punch().unwrap();
            left.push(commit.reclaimable());
        }
        left
    };
    assert_eq!(rounds(&mut (1..=5000)), [5000, 904, 0]);
    assert_eq!(rounds(&mut (1..=3000).map(|block| block * 256)), [3000, 952, 0]);
}

#[test]
fn a_commit_looks_at_what_changes_and_not_at_all_tables() {
    // An L1 table of 2048 entries, in 32 clusters.
    let rig = Rig::of_size(64 << 20, 512, 5);
    rig.image.write_at(&[1; 32 << 10], 32 << 20).unwrap();
    rig.commit();
    rig.image.write_at(&[2; 512], (33 << 20) + 512).unwrap();
    READ.set(0);
    rig.commit();
    assert!((64..1024).contains(&READ.get()), "{} entries", READ.get());
    assert_eq!(qemu_img(&["check", "-f", "qcow2", rig.path.to_str().unwrap()]), 0);
}

#[test]
fn what_a_failed_commit_may_have_pointed_to_is_written_after_what_it_needs() {
    let mut rig = Rig::new(4096, 9);
    // The third barrier, after the pointers; there is no second one without a change of the refcount table.
    for failing in [1, 1, 1] {
        rig.write();
        *lock(&rig.held_writes().fails) = Some((failing, libc::EIO));
        rig.try_commit().unwrap_err();
    }
    let pointed: Vec<u64> = {
        let commit = rig.held_writes().commit();
        let held = lock(&rig.held_writes().held);
        let l1 = rig.held_writes().table(&held.now, commit.medium.layout.l1).unwrap();
        l1.into_iter().map(|entry| entry & OFFSET).filter(|offset| *offset != 0).collect()
    };
    assert!(!pointed.is_empty());
    rig.write();
    lock(&rig.held_writes().log).clear();
    rig.commit();
    let log = lock(&rig.held_writes().log).clone();
    let first = log.iter().position(|event| matches!(event, Event::Barrier)).unwrap();
    let is_of = |event: &Event, table: u64| matches!(event, Event::Write(offset, _) if (table..table + 4096).contains(offset));
    for table in pointed {
        assert!(!log[..first].iter().any(|event| is_of(event, table)), "the L2 table at {table:#x}");
        assert!(log[first..].iter().any(|event| is_of(event, table)));
    }
    assert_eq!(qemu_img(&["check", "-f", "qcow2", rig.path.to_str().unwrap()]), 0);
    assert!(contents(&rig.path) == rig.model);
}

#[test]
fn a_size_that_is_hidden_is_on_the_medium_only_after_it_is_shown() {
    let rig = Rig::new(65536, 3);
    let size = || Header::read(&File::open(&rig.path).unwrap(), &rig.path).unwrap().size;
    rig.held_writes().hide_size(SIZE);
    // Far enough to move the L1 table: the header changes with it.
    rig.image.access().resize_grow(1 << 40, PreallocateMode::None).unwrap();
    // What a growth that failed has hidden stays hidden.
    rig.held_writes().hide_size(1 << 40);
    for _ in 0..2 {
        rig.commit();
        assert_eq!(size(), SIZE);
    }
    rig.held_writes().show_size();
    rig.commit();
    assert_eq!(size(), 1 << 40);
    rig.reclaim();
    assert_eq!(qemu_img(&["check", "-f", "qcow2", rig.path.to_str().unwrap()]), 0);
}
