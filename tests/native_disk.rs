//! `minivmm disk` on images that a running machine has as its disks.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/host.rs"]
mod host;
#[path = "support/vmm.rs"]
mod vmm;

use std::fs;

use host::Host;
use serde_json::json;
use tiny_guest::Guest;

#[test]
fn image_of_a_machine_is_left_alone_and_the_machine_is_named() {
    let host = Host::new();
    let image = host.0.path().join("vm0.raw");
    let image = image.to_str().unwrap();
    host.does(&["disk", "create", image, "64M"]);
    let machine = host.launch(Guest::PowerButton, "vm0").args(&["--disk", image]).spawn();
    machine.expect("ready\n", 1);
    let copy = format!("{image}.copy");
    let user =
        format!("is in use by the machine vm0 (process {}); `minivmm stop vm0` ends it", machine.pid());
    host.fails(&["disk", "convert", image, &copy], 1, &user);
    host.fails(&["disk", "check", image], 1, &user);
    assert!(fs::metadata(copy).is_err());
    let info = host.json(&["disk", "info", "--json", image]);
    assert_eq!(info["users"], json!([{ "machine": "vm0", "pid": machine.pid() }]));
    // It may only grow.
    host.fails(
        &["disk", "resize", "--shrink", image, "32M"],
        1,
        "vm0:vda: a disk of a machine that runs can grow only",
    );
    assert_eq!(fs::metadata(image).unwrap().len(), 64 << 20);
}

#[test]
fn image_of_a_machine_is_resized_by_the_machine() {
    let host = Host::new();
    for name in ["a.raw", "b.raw"] {
        host.does(&["disk", "create", host.0.path().join(name).to_str().unwrap(), "64M"]);
    }
    // Paths are the machine's, from its own folder.
    let mut launch = host.launch(Guest::PowerButton, "vm0").args(&["--disk", "a.raw", "--disk", "b.raw"]);
    launch.command.current_dir(host.0.path());
    let machine = launch.spawn();
    machine.expect("ready\n", 1);
    let image = host.0.path().join("b.raw");
    let said = host.does(&["disk", "resize", image.to_str().unwrap(), "+64M"]);
    assert!(said.contains("vm0:vdb") && said.contains("128 MiB"), "{said}");
    assert_eq!(fs::metadata(&image).unwrap().len(), 128 << 20);
    assert_eq!(fs::metadata(host.0.path().join("a.raw")).unwrap().len(), 64 << 20);
}
