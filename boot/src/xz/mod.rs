//! Decompresses xz files of the kind in which distributions have a kernel's modules (`xz --check=crc32`; the format is "The .xz File Format"
//! 1.2, tukaani.org/xz): one stream of blocks that are LZMA2 alone, with CRC-32 or no check. What is of another kind is left to the
//! program `xz`. A process of its own for each module costs a start more than all that is done here.

mod lzma;
mod range;
#[cfg(test)]
mod tests;

use lzma::Lzma;

const MAGIC: &[u8] = b"\xfd7zXZ\0";
const END: &[u8] = b"YZ";
/// Bytes of the header and of the footer.
const ENDS: usize = 12;
const CRC32: u8 = 1;
const LZMA2: u64 = 0x21;
/// Bits of a block's flags: it has its packed and its unpacked size in front. Any other is for more than one filter, or for times to come.
const SIZES: [u8; 2] = [0x40, 0x80];

/// The content of `packed`; `None` if it is damaged, longer than `most` bytes, or not of the kind that this reads.
pub(crate) fn unpack(packed: &[u8], most: usize) -> Option<Vec<u8>> {
    let mut from = Bytes(packed);
    let head = from.take(MAGIC.len() + 2)?;
    let flags = head.strip_prefix(MAGIC)?;
    let has_check = match flags {
        [0, 0] => false,
        [0, CRC32] => true,
        _ => return None,
    };
    from.is_crc_of(flags)?;
    let (mut out, mut blocks) = (Vec::new(), 0_u64);
    while *from.0.first()? != 0 {
        block(&mut from, &mut out, most, has_check)?;
        blocks += 1;
    }
    // What is said again of the blocks need not be read, but nothing may follow it.
    let before = from.0;
    from.take(1)?;
    if from.number()? != blocks {
        return None;
    }
    for _ in 0..blocks {
        from.number()?;
        from.number()?;
    }
    from.padding(before)?;
    from.take(4)?;
    (from.0.len() == ENDS && from.0.ends_with(END)).then_some(out)
}

/// One block, whose content goes behind that of the others.
fn block(from: &mut Bytes<'_>, out: &mut Vec<u8>, most: usize, has_check: bool) -> Option<()> {
    let size = (usize::from(*from.0.first()?) + 1) * 4;
    let header = from.take(size - 4)?;
    from.is_crc_of(header)?;
    let mut fields = Bytes(header.get(1..)?);
    let [flags] = *fields.take(1)? else { return None };
    if flags & !(SIZES[0] | SIZES[1]) != 0 {
        return None;
    }
    for _ in SIZES.iter().filter(|bit| flags & **bit != 0) {
        fields.number()?;
    }
    // The filter, the length of what it wants to know, and that: the size of its dictionary, which is all of the content here.
    if fields.number()? != LZMA2 || fields.number()? != 1 {
        return None;
    }
    fields.take(1)?;
    if fields.0.iter().any(|byte| *byte != 0) {
        return None;
    }
    let (begun, before) = (out.len(), from.0);
    Lzma::default().unpack(from, out, most)?;
    from.padding(before)?;
    if has_check { from.is_crc_of(out.get(begun..)?) } else { Some(()) }
}

/// What is left to read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// A number in bytes of seven bits, the lowest first.
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for place in 0..9 {
            let [byte] = *self.take(1)? else { return None };
            number |= u64::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    /// Zeros up to a multiple of four since `before`.
    fn padding(&mut self, before: &[u8]) -> Option<()> {
        let read = before.len() - self.0.len();
        let zeros = self.take(read.next_multiple_of(4) - read)?;
        zeros.iter().all(|byte| *byte == 0).then_some(())
    }

    /// Reads a CRC-32, which has to be that of `bytes`.
    fn is_crc_of(&mut self, bytes: &[u8]) -> Option<()> {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        (self.take(4)? == crc.sum().to_le_bytes()).then_some(())
    }
}
