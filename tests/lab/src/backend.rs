//! What a lab's commands run under: the agent on this host, or in a machine that QEMU emulates with SVM in software.

use crate::archive::Archive;
use crate::host::{install_tools, tool};
use crate::qemu::Qemu;
use crate::{Access, Debian, Kernel, LabConfig, LabError, cache, debian, image, kernel};
use rustix::fs::MemfdFlags;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent"));
const INIT: &str = include_str!("../../../resources/initramfs/lab.sh");
/// What the emulated machine loads: the port to us, KVM, TAP devices.
const MODULES: [&str; 5] = ["virtio_pci", "virtio_console", "irqbypass", "kvm_amd", "tun"];
/// And where it has disks; and with Debian's programs, which are a file system of their own, and have switches.
const DISK_MODULES: [&str; 1] = ["virtio_blk"];
const DEBIAN_MODULES: [&str; 4] = ["overlay", "bridge", "veth", "openvswitch"];
/// SVM; and without XSAVE, which nests badly, none of what needs it: Linux would use it all the same.
const PROCESSOR: &str = "max,+svm,+npt,-xsave,-avx,-avx2,-fma,-f16c,-vaes,-vpclmulqdq,-la57,-pku";
/// Programs that `LabConfig::debian` promises, by their packages, where commands run on this host.
const PROGRAMS: [(&str, &str); 10] = [
    ("ssh", "openssh-client"),
    ("sshpass", "sshpass"),
    ("ip", "iproute2"),
    ("ping", "iputils-ping"),
    ("iperf3", "iperf3"),
    ("socat", "socat"),
    ("fio", "fio"),
    ("parted", "parted"),
    ("qemu-img", "qemu-utils"),
    ("strace", "strace"),
];

/// The agent as a process of this host, in a directory of links to the files.
pub(crate) fn direct(config: &LabConfig) -> Result<(Command, PathBuf), LabError> {
    let home = cache::cache_dir()?.join("direct");
    fs::create_dir_all(&home).map_err(LabError::path("create", &home))?;
    // A lab that was killed could not clean up: whoever comes next does it.
    for entry in fs::read_dir(&home).map_err(LabError::path("read", &home))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.split('-').nth(1).unwrap_or_default();
        if !Path::new("/proc").join(pid).exists() {
            drop(fs::remove_dir_all(entry.path()));
        }
    }
    let dir = cache::beside(&home.join("lab"));
    for (host, name) in &config.files {
        let link = dir.join(name);
        let parent = link.parent().unwrap_or(&dir);
        let real = host.canonicalize().map_err(LabError::path("find", host))?;
        fs::create_dir_all(parent)
            .and_then(|()| symlink(real, &link))
            .map_err(LabError::path("create", &link))?;
    }
    fs::create_dir_all(&dir).map_err(LabError::path("create", &dir))?;
    direct_disks(config, &dir)?;
    let agent = agent_file()?;
    let mut command = Command::new(&agent);
    command.current_dir(&dir);
    Ok((command, dir))
}

fn direct_disks(config: &LabConfig, dir: &Path) -> Result<(), LabError> {
    for (host, name, access) in &config.disks {
        let place = dir.join(name);
        if *access == Access::Forget {
            image::copy(host, &place)?;
        } else {
            let real = host.canonicalize().map_err(LabError::path("find", host))?;
            symlink(real, &place).map_err(LabError::path("create", &place))?;
        }
    }
    if !config.debian {
        return Ok(());
    }
    if let Some((program, package)) = PROGRAMS.iter().find(|(program, _)| tool(program).is_err()) {
        let mend = format!("apt-get install {package}");
        return Err(LabError::Missing { what: format!("the program `{program}`"), mend });
    }
    let (debian, tools) = (debian()?, dir.join("tools.ext4"));
    symlink(image::tools()?, &tools).map_err(LabError::path("create", &tools))?;
    Debian::FILES.iter().try_for_each(|name| image::copy(&debian.file(name), &dir.join(name)))
}

fn agent_file() -> Result<PathBuf, LabError> {
    let agent = cache::by_content("agent", "bin", AGENT)?;
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&agent, mode).map_err(LabError::path("make executable", &agent))?;
    Ok(agent)
}

/// QEMU emulates a processor with SVM, Debian's cloud kernel runs KVM on it.
pub(crate) fn nested(config: &LabConfig) -> Result<(Command, File), LabError> {
    install_tools()?;
    let (qemu, kernel) = (Qemu::find()?, kernel(config.kernel)?);
    let drives = drives(config)?;
    let archive = in_memory(&initramfs(config, &drives, &kernel, qemu.nested_paging)?)?;
    let mut command = qemu.command(&[&tool("setpriv")?, Path::new("--pdeathsig=KILL")]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-no-reboot"]);
    command.args(["-machine", "q35", "-accel", "tcg,thread=multi"]);
    command.args(["-cpu", PROCESSOR]);
    command.args(["-smp", &config.cpus.to_string(), "-m", &config.mem_mib.to_string()]);
    command.arg("-kernel").arg(&kernel.bzimage);
    command.args(["-initrd", &format!("/proc/{}/fd/{}", std::process::id(), archive.as_raw_fd())]);
    command.args(["-append", "console=ttyS0 panic=-1 quiet tsc=reliable clocksource=tsc"]);
    command.args(["-chardev", "file,id=console,path=/proc/self/fd/1", "-serial", "chardev:console"]);
    command.args(["-device", "virtio-serial-pci", "-chardev", "socket,id=agent,fd=0"]);
    command.args(["-device", "virtserialport,chardev=agent,name=lab"]);
    for (number, drive) in drives.iter().enumerate() {
        // In a value of an option a comma is written twice.
        let file = drive.file.display().to_string().replace(',', ",,");
        let access = match drive.access {
            Access::Write => "cache=writeback",
            Access::Read => "readonly=on",
            Access::Forget => "snapshot=on,cache=unsafe",
        };
        command.arg("-drive");
        command.arg(format!("file={file},format=raw,if=none,id=disk{number},discard=unmap,{access}"));
        command.args(["-device", &format!("virtio-blk-pci,drive=disk{number},serial=lab-{number}")]);
    }
    Ok((command, archive))
}

/// A disk of the emulated machine, and what its init does with it: `tools` and `work` are mounted, `=NAME` is linked to.
struct Drive {
    file: PathBuf,
    access: Access,
    role: String,
}

fn drives(config: &LabConfig) -> Result<Vec<Drive>, LabError> {
    let mut drives = Vec::new();
    if config.debian {
        drives.push(Drive { file: image::tools()?, access: Access::Read, role: "tools".into() });
        drives.push(Drive { file: image::work()?, access: Access::Forget, role: "work".into() });
    }
    for (host, name, access) in &config.disks {
        let file = host.canonicalize().map_err(LabError::path("find", host))?;
        drives.push(Drive { file, access: *access, role: format!("={name}") });
    }
    Ok(drives)
}

fn initramfs(
    config: &LabConfig,
    drives: &[Drive],
    kernel: &Kernel,
    nested_paging: bool,
) -> Result<Vec<u8>, LabError> {
    let mut archive = Archive::with_busybox(&tool("busybox")?)?;
    archive.text("init", 0o755, INIT)?;
    archive.file("lab-agent", 0o755, AGENT)?;
    // An older QEMU loses events on nested page faults: guests newer than 6.1 die of it half the time. With shadow paging none
    // has been seen to.
    let npt = if nested_paging || config.nested_paging { "npt=1" } else { "npt=0" };
    let mut modules = MODULES.to_vec();
    let line = |(number, drive): (usize, &Drive)| format!("lab-{number} {}\n", drive.role);
    archive.text("drives", 0o644, &drives.iter().enumerate().map(line).collect::<String>())?;
    if !drives.is_empty() {
        modules.extend(DISK_MODULES);
    }
    if config.debian {
        modules.extend(DEBIAN_MODULES);
    }
    archive.modules(kernel, &modules, &[("kvm_amd", npt)])?;
    for (host, name) in &config.files {
        archive.program(&format!("lab/{name}"), host)?;
    }
    archive.finish()
}

/// A file without a name: nothing is left behind, whatever happens.
fn in_memory(content: &[u8]) -> Result<File, LabError> {
    let fd = rustix::fs::memfd_create("lab-initramfs", MemfdFlags::CLOEXEC);
    let mut file = File::from(fd.map_err(|e| LabError::io("cannot make a file in memory")(e.into()))?);
    file.write_all(content).map_err(LabError::io("cannot write a file in memory"))?;
    Ok(file)
}
