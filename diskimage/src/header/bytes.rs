//! Big-endian numbers at places in a header that may be shorter than they are.

/// The bytes of a header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn range(self, offset: u64, length: u64) -> Result<&'a [u8], String> {
        let part = || {
            let start = usize::try_from(offset).ok()?;
            let end = start.checked_add(usize::try_from(length).ok()?)?;
            self.0.get(start..end)
        };
        part().ok_or_else(|| "its header is cut short".into())
    }

    pub(crate) fn u8(self, offset: u64) -> Result<u8, String> {
        self.number::<1>(offset).map(u8::from_be_bytes)
    }

    pub(crate) fn u32(self, offset: u64) -> Result<u32, String> {
        self.number::<4>(offset).map(u32::from_be_bytes)
    }

    pub(crate) fn u64(self, offset: u64) -> Result<u64, String> {
        self.number::<8>(offset).map(u64::from_be_bytes)
    }

    fn number<const N: usize>(self, offset: u64) -> Result<[u8; N], String> {
        let part = self.range(offset, N as u64)?;
        part.try_into().map_err(|_| "its header is cut short".into())
    }
}
