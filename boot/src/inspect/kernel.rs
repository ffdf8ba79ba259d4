//! Facts about a kernel file.

use std::io::{self, Read};

use super::Stream;
use crate::entry::Protocol;
use crate::kernel::{Compression, Format, Kernel, KernelError, printable};
use crate::read::ReadAt;

/// A vmlinux has its version banner within the first few tens of MiB.
const SEARCH_MAX: u64 = 256 << 20;
/// The start of `linux_banner` (init/version-timestamp.c).
const BANNER: &[u8] = b"Linux version ";
/// Maximum length of the version to keep.
const VERSION_MAX: usize = 128;
const CHUNK: usize = 64 << 10;

/// Facts about a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelFacts {
    /// Its format.
    pub format: Format,
    /// Release, builder and time; for an ELF kernel, the text after "Linux version" in it.
    pub version: Option<String>,
    /// The compression of a bzImage's payload.
    pub compression: Option<Compression>,
    /// Version of the Linux boot protocol of a bzImage.
    pub boot_protocol: Option<(u8, u8)>,
    /// Whether it has the 64-bit Linux entry.
    pub linux64: bool,
    /// Whether it has the 32-bit Linux entry, as kernels for 32-bit processors have.
    pub linux32: bool,
    /// Whether it has the PVH entry.
    pub pvh: bool,
    /// Memory that it needs at its entry.
    pub init_size: u64,
    /// The longest command line that it accepts.
    pub cmdline_max: u64,
    /// Length of the file.
    pub file_len: u64,
}

/// Reads the headers of a kernel, and searches an ELF kernel for its version.
pub fn inspect_kernel<R: ReadAt + ?Sized>(file: &R) -> Result<KernelFacts, KernelError> {
    let kernel = Kernel::parse(file)?;
    let version = match kernel.format() {
        Format::BzImage => kernel.version().map(str::to_owned),
        Format::Elf | Format::ElfPvh => {
            find_banner(&mut Stream { file, at: 0 }.take(SEARCH_MAX)).map_err(KernelError::Read)?
        }
    };
    Ok(KernelFacts {
        format: kernel.format(),
        version,
        compression: kernel.compression(),
        boot_protocol: kernel.boot_protocol(),
        linux64: kernel.supports(Protocol::Linux64),
        linux32: kernel.supports(Protocol::Linux32),
        pvh: kernel.supports(Protocol::Pvh),
        init_size: kernel.init_size(),
        cmdline_max: kernel.cmdline_max(),
        file_len: kernel.file_len(),
    })
}

/// Searches `stream` in chunks that overlap, so that no match is split.
fn find_banner(stream: &mut impl Read) -> io::Result<Option<String>> {
    const KEEP: usize = BANNER.len() + VERSION_MAX;
    let mut buf = vec![0; KEEP + CHUNK];
    let mut filled = 0;
    loop {
        let read = stream.read(buf.get_mut(filled..).unwrap_or_default())?;
        filled += read;
        let window = buf.get(..filled).unwrap_or_default();
        // A match close to the end is found with the next chunk, or now if there is none.
        let searched = if read == 0 { filled } else { filled.saturating_sub(VERSION_MAX) };
        if let Some(version) = window.get(..searched).and_then(|part| banner_in(part, window)) {
            return Ok(Some(version));
        }
        if read == 0 {
            return Ok(None);
        }
        let keep = filled.min(KEEP);
        buf.copy_within(filled - keep..filled, 0);
        filled = keep;
    }
}

/// The version in `window` whose banner begins in its front, `part`. Format strings ("Linux version %s") are
/// skipped.
fn banner_in(part: &[u8], window: &[u8]) -> Option<String> {
    let starts = part.windows(BANNER.len()).enumerate().filter(|(_, bytes)| *bytes == BANNER);
    let texts = starts.filter_map(|(at, _)| window.get(at + BANNER.len()..));
    let text = texts.into_iter().find(|text| text.first().is_some_and(u8::is_ascii_digit))?;
    let text = text.get(..VERSION_MAX).unwrap_or(text);
    printable(text.split(|byte| matches!(byte, 0 | b'\n')).next()?)
}
