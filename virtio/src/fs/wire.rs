//! The layouts of FUSE's structures (linux/fuse.h, protocol 7.31 to 7.39): fields of what the guest sent, and answers.

use super::errno::Errno;
use super::filesystem::{Answer, Attr, Caching, Entry, Name, Usage};

/// Bytes of `fuse_in_header`.
pub(super) const IN_HEADER: usize = 40;
/// Bytes of `fuse_out_header`.
pub(super) const OUT_HEADER: usize = 16;
/// Bytes of `fuse_entry_out`.
pub(super) const ENTRY: usize = 128;
/// Bytes of `fuse_attr_out`.
pub(super) const ATTR: usize = 104;
/// Bytes of `fuse_open_out`.
pub(super) const OPEN: usize = 16;
/// Bytes of `fuse_statx_out`.
pub(super) const STATX: usize = 288;

/// `fuse_in_header`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) len: u32,
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) node: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; IN_HEADER]) -> Answer<Self> {
        let mut fields = Fields(bytes);
        Ok(Header {
            len: fields.u32()?,
            opcode: fields.u32()?,
            unique: fields.u64()?,
            node: fields.u64()?,
            uid: fields.u32()?,
            gid: fields.u32()?,
        })
    }
}

/// What follows the header, taken front to back. A request that is too short is refused.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn u32(&mut self) -> Answer<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Answer<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn skip(&mut self, bytes: usize) -> Answer<()> {
        self.take(bytes).map(|_| ())
    }

    pub(super) fn take(&mut self, bytes: usize) -> Answer<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(taken)
    }

    /// Bytes up to a zero, which is taken too.
    pub(super) fn text(&mut self) -> Answer<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Errno::INVAL)?;
        let text = self.take(end)?;
        self.skip(1)?;
        Ok(text)
    }

    pub(super) fn name(&mut self) -> Answer<Name<'a>> {
        self.text().and_then(Name::new)
    }

    fn array<const N: usize>(&mut self) -> Answer<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk().ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(*array)
    }
}

pub(super) fn u16(out: &mut Vec<u8>, value: u16) {
    out.extend(value.to_le_bytes());
}

pub(super) fn u32(out: &mut Vec<u8>, value: u32) {
    out.extend(value.to_le_bytes());
}

pub(super) fn u64(out: &mut Vec<u8>, value: u64) {
    out.extend(value.to_le_bytes());
}

pub(super) fn zeros(out: &mut Vec<u8>, bytes: usize) {
    out.resize(out.len() + bytes, 0);
}

/// Seconds that names and attributes are valid.
fn valid(caching: Caching) -> u64 {
    match caching {
        Caching::Auto => 1,
        Caching::Always => 86400,
        Caching::Never => 0,
    }
}

/// `fuse_attr`.
fn attr(out: &mut Vec<u8>, attr: &Attr) {
    for value in [attr.ino, attr.size, attr.blocks] {
        u64(out, value);
    }
    let times = [attr.atime, attr.mtime, attr.ctime];
    times.iter().for_each(|time| out.extend(time.seconds.to_le_bytes()));
    times.iter().for_each(|time| u32(out, time.nanos));
    for value in [attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, attr.block_size, 0] {
        u32(out, value);
    }
}

/// `fuse_attr_out`.
pub(super) fn attr_out(out: &mut Vec<u8>, of: &Attr, caching: Caching) {
    u64(out, valid(caching));
    u64(out, 0);
    attr(out, of);
}

/// `fuse_entry_out`; `None` is a name that does not exist, or nothing is known of.
pub(super) fn entry(out: &mut Vec<u8>, entry: Option<&Entry>, caching: Caching) {
    u64(out, entry.map_or(0, |entry| entry.node.0));
    u64(out, entry.map_or(0, |entry| entry.generation));
    u64(out, valid(caching));
    u64(out, valid(caching));
    u64(out, 0);
    attr(out, &entry.map(|entry| entry.attr).unwrap_or_default());
}

/// `fuse_statfs_out`.
pub(super) fn usage(out: &mut Vec<u8>, usage: &Usage) {
    for value in [usage.blocks, usage.free, usage.available, usage.files, usage.files_free] {
        u64(out, value);
    }
    u32(out, usage.block_size);
    u32(out, u32::try_from(Name::MAX).unwrap_or(0));
    u32(out, usage.block_size);
    zeros(out, 4 + 24);
}

/// `fuse_statx_out`: what stat(2) has (`STATX_BASIC_STATS`), and `STATX_BTIME`.
pub(super) fn statx(out: &mut Vec<u8>, of: &Attr, caching: Caching) {
    u64(out, valid(caching));
    zeros(out, 8 + 16);
    u32(out, if of.born.is_some() { 0xfff } else { 0x7ff });
    u32(out, of.block_size);
    u64(out, 0);
    for value in [of.nlink, of.uid, of.gid] {
        u32(out, value);
    }
    u16(out, u16::try_from(of.mode & 0xffff).unwrap_or(0));
    u16(out, 0);
    for value in [of.ino, of.size, of.blocks, 0] {
        u64(out, value);
    }
    for time in [of.atime, of.born.unwrap_or_default(), of.ctime, of.mtime] {
        out.extend(time.seconds.to_le_bytes());
        u32(out, time.nanos);
        u32(out, 0);
    }
    // Makedev of the kernel: `new_encode_dev`.
    u32(out, of.rdev >> 8 & 0xfff);
    u32(out, (of.rdev & 0xff) | (of.rdev >> 12 & 0xfff00));
    u64(out, 0);
    zeros(out, 112);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_of_the_header_file() {
        let size = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            write(&mut out);
            out.len()
        };
        let of = Attr::default();
        assert_eq!(size(&|out| attr(out, &of)), 88);
        assert_eq!(size(&|out| attr_out(out, &of, Caching::Auto)), ATTR);
        assert_eq!(size(&|out| entry(out, None, Caching::Auto)), ENTRY);
        assert_eq!(size(&|out| usage(out, &Usage::default())), 80);
        assert_eq!(size(&|out| statx(out, &of, Caching::Auto)), STATX);
    }

    #[test]
    fn fields_end_where_the_request_ends() {
        let mut fields = Fields(b"\x01\0\0\0ab\0c");
        assert_eq!(fields.u32(), Ok(1));
        assert_eq!(fields.name().map(Name::bytes), Ok(b"ab".as_slice()));
        assert_eq!(fields.text(), Err(Errno::INVAL));
        assert_eq!((fields.u32(), fields.skip(2)), (Err(Errno::INVAL), Err(Errno::INVAL)));
        for wrong in [b"".as_slice(), b".", b"..", b"a/b", b"/", b"a\0"] {
            assert_eq!(Name::new(wrong), Err(Errno::INVAL));
        }
        assert_eq!(Name::new(&[b'x'; 256]), Err(Errno::NAMETOOLONG));
        assert!(Name::new(b"\xff\n.").is_ok());
    }
}
