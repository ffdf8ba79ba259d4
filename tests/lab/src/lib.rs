//! Runs a command of the project where /dev/kvm can boot Linux.
//!
//! Where the host's own KVM can, that is the host itself; elsewhere it is a machine emulated by QEMU, whose processor
//! has SVM and whose kernel is Debian's with KVM. Either way an agent starts commands there and carries their bytes,
//! signals and exit statuses. The crate also brings what guests are made of: Debian's kernels and initramfs images.
//!
//! Nothing is skipped: what is missing is an error that names the command which mends it.

mod archive;
mod backend;
mod cache;
mod channel;
mod error;
mod host;
mod image;
mod initramfs;
mod kernel;
mod machine;
mod packages;
mod process;
mod qemu;
mod qemu_img;
mod saved;
mod stress;
pub mod terminal;
mod wire;

pub use cache::cache_dir;
pub use channel::Status;
pub use error::{LabError, Tail};
pub use image::{Debian, cloud, debian, debian_into, loads, systemd};
pub use initramfs::{INIT, InitramfsSpec, guest_command, initramfs};
pub use kernel::{Flavour, Kernel, Kernels, kernel, kernels, memtest};
pub use machine::{Access, Lab, LabConfig, LabKind};
pub use process::{Cmd, Input, News, Output, Process};
pub use qemu_img::qemu_img;
pub use stress::stress_ng;

/// Brings everything that the lab and its guests are made of; says what it does on standard error.
pub fn prepare() -> Result<(), LabError> {
    host::install_tools()?;
    kernels()?;
    for flavour in [Flavour::Trixie, Flavour::Bullseye, Flavour::I386] {
        kernel(flavour)?.busybox()?;
    }
    memtest()?;
    qemu::Qemu::find()?;
    qemu_img()?;
    // The two images from packages are made side by side; the third is made of one of them.
    std::thread::scope(|scope| {
        let tools = scope.spawn(image::tools);
        let systemd = scope.spawn(image::systemd_packages);
        let work = image::work();
        tools.join().unwrap_or_else(|_| Err(LabError::io("cannot make the tools image")(panicked())))?;
        systemd.join().unwrap_or_else(|_| Err(LabError::io("cannot fetch systemd")(panicked())))?;
        work.map(drop)
    })
}

fn panicked() -> std::io::Error {
    std::io::Error::other("its thread panicked")
}
