//! Our check and `qemu-img check` come to the same verdict.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use diskimage::Verdict;

use crate::support::{Folder, Random, check, dose, open, qemu_img, qemu_io, run, text};

/// Images that differ in what a walk must know of: `-o` for `qemu-img create`, and what is done then.
const IMAGES: [(&str, &[&str]); 9] = [
    ("compat=1.1", &["write", "snapshot", "write", "snapshot", "zero"]),
    ("compat=0.10", &["write", "snapshot", "write"]),
    ("cluster_size=512", &["write", "zero"]),
    ("cluster_size=2M", &["write", "snapshot", "write"]),
    ("refcount_bits=1", &["write"]),
    ("refcount_bits=64,cluster_size=4k", &["write", "snapshot", "snapshot", "write"]),
    ("preallocation=metadata,cluster_size=16k", &["write"]),
    ("extended_l2=on,cluster_size=64k", &["write", "snapshot", "zero"]),
    ("compat=1.1,refcount_bits=32", &["bitmap", "write", "bitmap"]),
];

/// The image with bitmaps.
const BITMAPS: usize = 8;

fn build(folder: &Folder, index: usize) -> PathBuf {
    let (options, deeds) = IMAGES[index];
    let path = folder.path(&format!("{index}.qcow2"));
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, text(&path), "8M"]);
    let mut random = Random::new(index as u64);
    for (number, deed) in deeds.iter().enumerate() {
        match *deed {
            "snapshot" => drop(qemu_img(&["snapshot", "-c", &format!("s{number}"), text(&path)])),
            "bitmap" => {
                drop(qemu_img(&["bitmap", "-f", "qcow2", "--add", text(&path), &format!("b{number}")]))
            }
            "zero" => qemu_io(&path, "qcow2", &["write -z 1M 300k".into(), "write -z -u 3M 1M".into()]),
            _ => {
                let writes: Vec<String> = (0..6)
                    .map(|_| {
                        format!(
                            "write -P {} {}k {}k",
                            random.below(255) + 1,
                            random.below(7000),
                            random.below(900) + 1
                        )
                    })
                    .collect();
                qemu_io(&path, "qcow2", &writes);
            }
        }
    }
    path
}

/// Compressed clusters share clusters of the file.
fn compressed(folder: &Folder, from: &Path, method: &str) -> PathBuf {
    let path = folder.path(&format!("compressed-{method}.qcow2"));
    let option = format!("compression_type={method}");
    qemu_img(&["convert", "-c", "-f", "qcow2", "-O", "qcow2", "-o", &option, text(from), text(&path)]);
    path
}

fn images(folder: &Folder) -> Vec<PathBuf> {
    let mut images: Vec<_> = (0..IMAGES.len()).map(|index| build(folder, index)).collect();
    let first = images[0].clone();
    images.extend(["zlib", "zstd"].map(|method| compressed(folder, &first, method)));
    images
}

fn number(json: &serde_json::Value, key: &str) -> u64 {
    json.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0)
}

#[test]
fn sound_images_are_found_sound_with_the_same_numbers() {
    let folder = Folder::new();
    for path in images(&folder) {
        let said = qemu_img(&["check", "-f", "qcow2", "--output=json", text(&path)]);
        let theirs: serde_json::Value = serde_json::from_str(&said).unwrap();
        let ours = check(&path).unwrap();
        assert_eq!(ours.findings, [], "{path:?}");
        assert_eq!(ours.verdict(), Verdict::Sound);
        assert_eq!(ours.allocated_clusters, number(&theirs, "allocated-clusters"), "{path:?}");
        assert_eq!(ours.compressed_clusters, number(&theirs, "compressed-clusters"), "{path:?}");
        assert_eq!(ours.total_clusters, number(&theirs, "total-clusters"), "{path:?}");
        assert_eq!(ours.end, number(&theirs, "image-end-offset"), "{path:?}");
    }
}

/// Writes something else at a random place. Tables are where most of it is wrong: entries are eight bytes.
fn damage(path: &Path, index: usize, random: &mut Random) -> String {
    let file = open(path, true);
    let length = file.metadata().unwrap().len();
    let mut said = String::new();
    for _ in 0..=random.below(3) {
        let mut header = [0; 112];
        file.read_exact_at(&mut header, 0).unwrap();
        let field = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().unwrap());
        let bits = u32::from_be_bytes(header[20..24].try_into().unwrap());
        let read = |at: u64| {
            let mut entry = [0; 8];
            let _ = file.read_at(&mut entry, at & 0x00ff_ffff_ffff_fff8);
            u64::from_be_bytes(entry) & 0x00ff_ffff_ffff_fe00
        };
        let cluster = 1_u64 << bits.clamp(9, 21);
        let (l1, table) = (field(40), field(48));
        let start = match random.below(8) {
            0 => l1,
            1 | 2 => read(l1 + 8 * random.below(2)),
            3 => table,
            4 | 5 => read(table),
            6 => field(64),
            _ => random.below(length),
        };
        let at = match random.below(3) {
            0 => start + 8 * random.below(4),
            _ => start + 8 * random.below(cluster / 8),
        };
        let old = read(at);
        let value = match random.below(7) {
            0 => 0,
            1 => old ^ 1 << random.below(64),
            2 => 1 << 63 | random.below(length) & !(cluster - 1),
            3 => 1 << 63 | random.next() & 0x00ff_ffff_ffff_fe00,
            4 => 1 << 62 | random.below(length),
            5 => random.below(4),
            _ => random.next(),
        };
        // What follows the tables in the header is names, and bits that no table depends on. Sizes of bitmaps depend on the disk's.
        if at < length && !(72..512).contains(&at) && (at >= 40 || index != BITMAPS) {
            file.write_all_at(&value.to_be_bytes(), at).unwrap();
            said.push_str(&format!(" {at:#x}: {value:#x}"));
        }
    }
    said
}

#[test]
fn broken_images_get_the_verdict_of_qemu_img() {
    let folder = Folder::new();
    let sources = images(&folder);
    let broken = folder.path("broken.qcow2");
    let mut verdicts = [0; 3];
    for seed in 0..dose(1000) {
        let mut random = Random::new(seed);
        let source = random.one_of(&(0..sources.len()).collect::<Vec<_>>());
        std::fs::copy(&sources[source], &broken).unwrap();
        let damage = damage(&broken, source, &mut random);
        let output = run("qemu-img", &["check", "-f", "qcow2", text(&broken)]);
        let theirs = output.status.code();
        let ours = check(&broken);
        let why = || {
            let (out, err) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            format!(
                "seed {seed}, image {source}, written{damage}: qemu-img says {theirs:?}: {out}{err}\nwe say {ours:?}"
            )
        };
        match &ours {
            // What QEMU does not open or cannot check to its end is an error or corrupt here.
            Err(_) => assert_eq!(theirs, Some(1), "{}", why()),
            Ok(report) => match report.verdict() {
                Verdict::Sound => assert_eq!(theirs, Some(0), "{}", why()),
                Verdict::Leaky => assert_eq!(theirs, Some(3), "{}", why()),
                Verdict::Corrupt => assert!(matches!(theirs, Some(1 | 2)), "{}", why()),
            },
        }
        if let Ok(report) = &ours {
            verdicts[report.verdict() as usize] += 1;
        }
    }
    assert!(verdicts.iter().all(|count| *count > 0), "the damage is too much of one kind: {verdicts:?}");
}
