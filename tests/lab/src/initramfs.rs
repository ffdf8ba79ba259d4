//! Initramfs images for the guests of tests, benchmarks and `make run`.

use crate::archive::Archive;
use crate::host::filter;
use crate::{Kernel, LabError, cache};
use std::path::PathBuf;

/// An `init` that runs the command which `lab.cmd=` (base64) on the kernel's command line holds, prints
/// `LAB-STATUS n` and powers off; without one it starts a shell on the console.
pub const INIT: &str = include_str!("../../../resources/initramfs/guest.sh");

/// What an initramfs is made of, besides busybox with links for all it can do.
#[derive(Debug, Clone)]
pub struct InitramfsSpec {
    /// The text of /init.
    pub init: String,
    /// Modules that /init finds in /modules, in the order of /modules/order, with what they depend on.
    pub modules: Vec<String>,
    /// Files of the host and their places; programs bring their libraries along.
    pub files: Vec<(PathBuf, String)>,
    /// Bytes that do not compress, to make an image of a wanted size.
    pub padding: usize,
    /// Whether to compress the image.
    pub gzip: bool,
}

impl Default for InitramfsSpec {
    /// The init above, and the modules of the power button and of the panic device.
    fn default() -> Self {
        let modules = ["button", "evdev", "pvpanic_mmio"].map(String::from).to_vec();
        Self { init: INIT.into(), modules, files: Vec::new(), padding: 0, gzip: true }
    }
}

impl InitramfsSpec {
    /// As the default, but 16 MB large, as an installed Debian's initrd is.
    #[must_use]
    pub fn large() -> Self {
        Self { padding: 14_500_000, ..Self::default() }
    }
}

/// Builds the image, or finds it in the cache.
pub fn initramfs(kernel: &Kernel, spec: &InitramfsSpec) -> Result<PathBuf, LabError> {
    let mut archive = Archive::with_busybox(&kernel.busybox()?)?;
    archive.text("init", 0o755, &spec.init)?;
    let modules: Vec<&str> = spec.modules.iter().map(String::as_str).collect();
    archive.modules(kernel, &modules, &[])?;
    for (host, name) in &spec.files {
        archive.program(name, host)?;
    }
    if spec.padding > 0 {
        archive.file("padding", 0o644, &noise(spec.padding))?;
    }
    let image = archive.finish()?;
    let stem = format!("initramfs-{}", kernel.version);
    if spec.gzip {
        cache::by_content(&stem, "cpio.gz", &filter("gzip", &["-nc6"], &image)?, 0o644)
    } else {
        cache::by_content(&stem, "cpio", &image, 0o644)
    }
}

/// The `lab.cmd=` that makes the init above run a shell line.
#[must_use]
pub fn guest_command(line: &str) -> String {
    format!("lab.cmd={}", base64(line.as_bytes()))
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = DIGITS.get((bits >> (18 - 6 * i) & 63) as usize).copied().unwrap_or(b'=');
            text.push(char::from(if i > chunk.len() { b'=' } else { digit }));
        }
    }
    text
}

/// The same bytes each time (xorshift64), so that the image is the same each time.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        Some(state.to_le_bytes())
    };
    std::iter::from_fn(word).flatten().take(len).collect()
}

impl Archive {
    /// Modules under /modules, and the file /modules/order: a line is a file and its parameters.
    pub(crate) fn modules(
        &mut self,
        kernel: &Kernel,
        names: &[&str],
        parameters: &[(&str, &str)],
    ) -> Result<(), LabError> {
        let mut order = String::new();
        for (file, content) in kernel.modules(names)? {
            self.file(&format!("modules/{file}"), 0o644, &content)?;
            let given =
                parameters.iter().find(|(name, _)| file == format!("{name}.ko")).map_or("", |(_, p)| p);
            order += &format!("{file} {given}\n");
        }
        self.text("modules/order", 0o644, &order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_what_rfc_4648_says() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
