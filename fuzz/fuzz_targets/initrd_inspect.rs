//! Any bytes as an initrd, through every archive and decompressor: a bounded number of bounded facts.
//!
//! `cargo +nightly fuzz run initrd_inspect fuzz/corpus/initrd_inspect fuzz/seeds/initrd_inspect`
#![no_main]

use boot::inspect::inspect_initrd;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let Ok(facts) = inspect_initrd(file) else { return };
    assert!(facts.parts.len() <= 64);
    let contents = &facts.contents;
    for names in [&contents.releases, &contents.virtio_modules, &contents.virtio_builtin] {
        assert!(names.len() <= 64 && names.iter().all(|name| name.len() <= 128));
    }
});
