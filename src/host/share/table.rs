//! The files that a guest knows as one text of a saved state: some fifty bytes for each, of which a machine may have a million.
//!
//! Base64 of records without a gap, in the order of their slots. A record is made of numbers of seven bits a byte, the lowest first, with the
//! eighth bit set in all but the last byte (LEB128): slot less the one before, generation, parent, device, file number, seconds and
//! nanoseconds of its birth, kind, look-ups, bytes of its name; then its name.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use virtio::fs::Name;

use super::attributes::Identity;
use super::nodes::{File, Slot};

const DAMAGED: &str = "its table of files is damaged";

fn put(to: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        to.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    to.push((number & 0x7f) as u8);
}

/// Takes a number from the front.
fn take(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        let bits = u64::from(byte & 0x7f);
        // The last byte has room for one bit.
        number |= bits.checked_shl(shift).filter(|shifted| shifted >> shift == bits)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Files by their slots, in that order, with generations.
pub(super) fn text<'a>(files: impl Iterator<Item = (Slot, u32, &'a File)>) -> String {
    let (mut bytes, mut last) = (Vec::new(), 0);
    for (slot, generation, file) in files {
        let Identity { device, ino, born: (seconds, nanos), kind } = file.identity;
        let parent = u64::from(file.parent);
        for number in [u64::from(slot - last), u64::from(generation), parent, device, ino] {
            put(&mut bytes, number);
        }
        let len = file.name.len() as u64;
        for number in [seconds.cast_unsigned(), u64::from(nanos), u64::from(kind), file.lookups, len] {
            put(&mut bytes, number);
        }
        bytes.extend(&file.name);
        last = slot;
    }
    STANDARD.encode(bytes)
}

/// Reads what [`text`] made, or somebody else.
///
/// # Errors
/// A sentence.
pub(super) fn parse(text: &str) -> Result<Vec<(Slot, u32, File)>, &'static str> {
    let bytes = STANDARD.decode(text).map_err(|_| DAMAGED)?;
    let (mut rest, mut last, mut files) = (bytes.as_slice(), 0, Vec::new());
    while !rest.is_empty() {
        let (slot, generation, file) = record(&mut rest, last).ok_or(DAMAGED)?;
        if Name::new(&file.name).is_err() {
            return Err("a file has a name that no file can have");
        }
        files.push((slot, generation, file));
        last = slot;
    }
    Ok(files)
}

fn record(rest: &mut &[u8], last: Slot) -> Option<(Slot, u32, File)> {
    let mut number = || take(rest);
    let slot = last.checked_add(number()?.try_into().ok()?)?;
    let (generation, parent) = (number()?.try_into().ok()?, number()?.try_into().ok()?);
    let (device, ino) = (number()?, number()?);
    let born = (number()?.cast_signed(), number()?.try_into().ok()?);
    let (kind, lookups) = (number()?.try_into().ok()?, number()?);
    let len = usize::try_from(number()?).ok()?;
    let (name, behind) = rest.split_at_checked(len)?;
    *rest = behind;
    let identity = Identity { device, ino, born, kind };
    Some((slot, generation, File { lookups, ..File::new(parent, name, identity) }))
}

#[cfg(test)]
mod tests {
    use super::super::known::{MOST_NAMES, MOST_NODES};
    use super::*;

    fn file(ino: u64, name: &[u8]) -> File {
        let identity = Identity { device: 8 << 32 | 1, ino, born: (-1, 999_999_999), kind: 0o100_000 };
        File { lookups: u64::MAX, ..File::new(1, name, identity) }
    }

    #[test]
    fn files_are_read_as_they_were_written() {
        let files =
            [(2, 0, file(0, b"a")), (3, 7, file(1 << 40, &[0xff; 255])), (9, u32::MAX, file(u64::MAX, b"z"))];
        let text = text(files.iter().map(|(slot, generation, file)| (*slot, *generation, file)));
        let read = parse(&text).unwrap();
        for ((slot, generation, file), other) in read.iter().zip(&files) {
            assert_eq!((*slot, *generation, file.identity), (other.0, other.1, other.2.identity));
            assert_eq!((&file.name, file.parent, file.lookups), (&other.2.name, 1, u64::MAX));
        }
        assert_eq!(read.len(), files.len());
    }

    #[test]
    fn what_nobody_wrote_is_refused() {
        let text = text([(2, 0, &file(5, b"name"))].into_iter());
        let bytes = STANDARD.decode(&text).unwrap();
        assert!((1..bytes.len()).all(|len| parse(&STANDARD.encode(&bytes[..len])).is_err()));
        for wrong in
            ["!", "////", &STANDARD.encode([0xff; 11]), &STANDARD.encode([&[1; 9][..], b"\x01/"].concat())]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    /// As many as there may be fit into a saved machine (256 MiB).
    #[test]
    fn the_largest_table_is_a_text_that_can_be_saved() {
        let len = MOST_NAMES / MOST_NODES;
        let one = text([(2, 0, &file(u64::MAX, &vec![b'n'; len]))].into_iter());
        assert!(one.len() * MOST_NODES < 192 << 20, "{}", one.len());
    }
}
