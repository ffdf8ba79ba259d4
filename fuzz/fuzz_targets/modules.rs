//! A disk's list of a kernel's modules, or one of them as it is packed (xz, zstd, gzip): no panic, no hang, and memory that is bounded.
//!
//! `cargo +nightly fuzz run modules fuzz/corpus/modules fuzz/seeds/modules`
#![no_main]

use std::path::Path;

use boot::modules::Modules;
use libfuzzer_sys::fuzz_target;

const LIST: &[u8] = b"kernel/a.ko.xz:\n";

fuzz_target!(|file: &[u8]| {
    let file = file.to_vec();
    // It is a list if it looks like one.
    let is_list = file.starts_with(b"kernel/");
    let read = move |path: &Path| {
        let asks_list = path.ends_with("modules.dep");
        Ok(if asks_list && !is_list { LIST.to_vec() } else { file.clone() })
    };
    if let Ok(modules) = Modules::listed(Path::new("/lib/modules/6"), Box::new(read)) {
        let _ = modules.load(&["a"]);
    }
});
