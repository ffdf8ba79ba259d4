//! Many rounds of everything on one chain, by us and by QEMU in turn; after each, QEMU finds the chain sound, and the disk is what a
//! plain array of bytes says it is.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use diskimage::{ConvertOptions, CreateOptions, Format, Image, NoProgress, commit, convert};

use crate::support::{
    Folder, Random, assert_same, assert_sound, create, dose, image, open, qemu_img, qemu_io, text,
};

/// Longest disk, and longest write.
const MOST: u64 = 6 << 20;
const WRITE: u64 = 300 << 10;

/// A chain of overlays, and the bytes that its disk is to have.
struct Chain {
    folder: Folder,
    random: Random,
    bytes: Vec<u8>,
    /// Lowest first; the lowest may be raw.
    files: Vec<(PathBuf, Format)>,
    made: u64,
    said: Vec<String>,
}

impl Chain {
    fn new(seed: u64) -> Self {
        let mut chain = Chain {
            folder: Folder::new(),
            random: Random::new(seed),
            bytes: vec![0; 3 << 20],
            files: Vec::new(),
            made: 0,
            said: Vec::new(),
        };
        let format = chain.random.one_of(&[Format::Raw, Format::Qcow2]);
        chain.add(format);
        chain
    }

    fn new_path(&mut self) -> PathBuf {
        self.made += 1;
        self.folder.path(&format!("{}.img", self.made))
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn top(&self) -> (PathBuf, Format) {
        self.files.last().unwrap().clone()
    }

    fn open(&self) -> Image {
        let (path, format) = self.top();
        image(&path, format, true)
    }

    /// A new image on top, or the first one.
    fn add(&mut self, format: Format) {
        let path = self.new_path();
        let mut options = CreateOptions::new(format, self.size());
        if format == Format::Qcow2 {
            options = options.cluster_size(self.random.one_of(&[512, 4096, 65536, 1 << 20]));
        }
        if let Some((below, format)) = self.files.last() {
            options = options.backing(below.file_name().unwrap().to_str().unwrap(), *format);
        }
        if format == Format::Qcow2 && self.random.below(3) == 0 {
            self.create_by_qemu(&path);
        } else {
            diskimage::create(&create(&path), &path, &options).unwrap();
        }
        self.files.push((path, format));
    }

    /// With options that we do not have.
    fn create_by_qemu(&mut self, path: &Path) {
        let options =
            ["compat=0.10", "refcount_bits=1", "refcount_bits=64,cluster_size=2k", "lazy_refcounts=on"];
        let option = self.random.one_of(&options);
        let size = self.size().to_string();
        let mut words = vec!["create", "-q", "-f", "qcow2", "-o", option];
        if let Some((below, format)) = self.files.last() {
            words.extend(["-F", format.name(), "-b", below.file_name().unwrap().to_str().unwrap()]);
        }
        words.extend([text(path), size.as_str()]);
        qemu_img(&words);
    }

    fn range(&mut self) -> (u64, u64) {
        let offset = self.random.below(self.size());
        let length = self.random.below(WRITE.min(self.size() - offset)) + 1;
        if self.random.below(2) == 0 {
            return (offset, length);
        }
        // As a guest does it: whole sectors.
        let (offset, end) = (offset & !511, (offset + length).next_multiple_of(512).min(self.size()));
        (offset, end - offset)
    }

    fn part(&mut self, offset: u64, length: u64) -> &mut [u8] {
        let start = usize::try_from(offset).unwrap();
        &mut self.bytes[start..start + usize::try_from(length).unwrap()]
    }

    /// A few requests on the open image.
    fn write(&mut self) {
        let mut image = self.open();
        for _ in 0..=self.random.below(8) {
            let (offset, length) = self.range();
            match self.random.below(4) {
                0 => {
                    image.write_zeroes(offset, length).unwrap();
                    self.part(offset, length).fill(0);
                }
                1 => {
                    image.discard(offset, length).unwrap();
                    self.part(offset, length).fill(0);
                }
                _ => {
                    let data = self.random.bytes(usize::try_from(length).unwrap());
                    image.write_at(&data, offset).unwrap();
                    self.part(offset, length).copy_from_slice(&data);
                }
            }
            let mut read = vec![1; usize::try_from(length).unwrap()];
            assert_eq!(image.read_at(&mut read, offset).unwrap(), read.len());
            assert!(read == self.part(offset, length), "what was written is not read: {:?}", self.said);
        }
        image.flush().unwrap();
    }

    /// The same by QEMU, so that each continues with what the other has left.
    fn write_by_qemu(&mut self) {
        let (path, format) = self.top();
        let mut commands = Vec::new();
        for _ in 0..4 {
            let (offset, length) = self.range();
            let value = u8::try_from(self.random.below(256)).unwrap();
            let zeroes = self.random.below(3) == 0;
            commands.push(if zeroes {
                format!("write -z -u {offset} {length}")
            } else {
                format!("write -P {value} {offset} {length}")
            });
            self.part(offset, length).fill(if zeroes { 0 } else { value });
        }
        qemu_io(&path, format.name(), &commands);
    }

    fn resize(&mut self) {
        let size = (self.random.below(MOST / 512 - 1) + 1) * 512;
        self.open().resize(size, true).unwrap();
        self.bytes.resize(usize::try_from(size).unwrap(), 0);
    }

    fn commit(&mut self) {
        let [.., (below, below_format), (path, _)] = &self.files[..] else { return };
        let overlay = Image::alone(open(path, true), path, Format::Qcow2, true).unwrap();
        commit(overlay, &image(below, *below_format, true), &mut NoProgress).unwrap();
        assert_sound(path, "emptied");
        let grown_or_longer = image(below, *below_format, false).size();
        if grown_or_longer == self.size() && self.random.below(2) == 0 {
            self.files.pop();
        }
    }

    fn convert(&mut self) {
        let format = self.random.one_of(&[Format::Raw, Format::Qcow2]);
        let path = self.new_path();
        let (from, from_format) = self.top();
        let options = ConvertOptions::new(format);
        convert(&image(&from, from_format, false), &create(&path), &path, &options, &mut NoProgress).unwrap();
        self.files = vec![(path, format)];
    }

    /// Compressed clusters, which are written over later.
    fn compress(&mut self) {
        let path = self.new_path();
        let (from, format) = self.top();
        let words = ["convert", "-c", "-f", format.name(), "-O", "qcow2", text(&from), text(&path)];
        qemu_img(&words);
        self.files = vec![(path, Format::Qcow2)];
    }

    fn round(&mut self) {
        match self.random.below(13) {
            0..4 => {
                self.said.push("write".into());
                self.write();
            }
            4 | 5 => {
                self.said.push("write by QEMU".into());
                self.write_by_qemu();
            }
            6 | 7 => {
                self.said.push("resize".into());
                self.resize();
            }
            8 | 9 if self.files.len() < 5 => {
                self.said.push("overlay".into());
                self.add(Format::Qcow2);
                self.write();
            }
            8..11 => {
                self.said.push("commit".into());
                self.commit();
            }
            11 => {
                self.said.push("convert".into());
                self.convert();
            }
            _ => {
                self.said.push("compress by QEMU".into());
                self.compress();
            }
        }
        self.assert_right();
    }

    fn assert_right(&self) {
        let why = format!("after {:?}", self.said);
        for (path, format) in &self.files {
            if *format == Format::Qcow2 {
                assert_sound(path, &why);
            }
        }
        let wanted = self.folder.path("wanted");
        let file = std::fs::File::create(&wanted).unwrap();
        file.write_all_at(&self.bytes, 0).unwrap();
        let (path, format) = self.top();
        assert_eq!(image(&path, format, false).size(), self.size(), "{why}");
        assert_same(&path, format.name(), &wanted, "raw", &why);
    }
}

#[test]
fn chain_stays_sound_and_the_same_through_many_rounds() {
    for seed in 0..dose(10) {
        let mut chain = Chain::new(seed);
        for _ in 0..dose(200) {
            chain.round();
        }
    }
}

#[test]
fn disk_that_is_smaller_than_a_cluster_is_zeroed_in_part() {
    for discard in [false, true] {
        let folder = Folder::new();
        let path = folder.path("small.qcow2");
        let options = CreateOptions::new(Format::Qcow2, 100 << 10).cluster_size(1 << 20);
        diskimage::create(&create(&path), &path, &options).unwrap();
        let mut image = image(&path, Format::Qcow2, true);
        image.write_at(&[1; 100 << 10], 0).unwrap();
        if discard { image.discard(1000, 5000) } else { image.write_zeroes(1000, 5000) }.unwrap();
        let mut read = [9; 100 << 10];
        image.read_at(&mut read, 0).unwrap();
        assert!(read[..1000] == [1; 1000] && read[1000..6000] == [0; 5000] && read[6000..] == [1; 96400]);
        drop(image);
        assert_sound(&path, "zeroed in part");
    }
}

#[test]
fn overlay_by_qemu_on_our_base_and_back() {
    let folder = Folder::new();
    let [base, top] = ["base.qcow2", "top.qcow2"].map(|name| folder.path(name));
    diskimage::create(&create(&base), &base, &CreateOptions::new(Format::Qcow2, 4 << 20)).unwrap();
    image(&base, Format::Qcow2, true).write_at(&[1; 100_000], 50_000).unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2", text(&top)]);
    qemu_io(&top, "qcow2", &["read -P 1 50000 100000".into(), "write -P 2 100k 64k".into()]);
    image(&top, Format::Qcow2, true).write_at(&[3; 10], 120_000).unwrap();
    qemu_img(&["commit", "-q", text(&top)]);
    qemu_io(&base, "qcow2", &["read -P 3 120000 10".into(), "read -P 2 120010 40000".into()]);
    assert_sound(&base, "committed by QEMU");
}
