//! What a lab's commands run under: the agent on this host, or in a machine that QEMU emulates with SVM in software.

use crate::archive::Archive;
use crate::host::{install_tools, tool};
use crate::qemu::Qemu;
use crate::{Access, Debian, Kernel, LabConfig, LabError, cache, debian, image, kernel, saved};
use rustix::fs::MemfdFlags;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent"));
const INIT: &str = include_str!("../../../resources/initramfs/lab.sh");
/// Without the check of the timer, which a busy host does not serve in the moment that the kernel gives it.
const BOOT_LINE: &str =
    "console=ttyS0 panic=-1 quiet tsc=reliable clocksource=tsc no_timer_check mitigations=off";
/// The disk with a lab's files is always of this size, so that saved machines fit; only what is written takes memory.
const FILES_BYTES: u64 = 1 << 30;
/// What the emulated machine loads: the port to us, disks, KVM, TAP devices.
const MODULES: [&str; 6] = ["virtio_pci", "virtio_console", "virtio_blk", "irqbypass", "kvm_amd", "tun"];
/// And with Debian's programs, which are a file system of their own, and have switches.
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
    image::copy(&image::cloud()?, &dir.join(image::CLOUD_FILE))?;
    Debian::FILES.iter().try_for_each(|name| image::copy(&debian.file(name), &dir.join(name)))
}

fn agent_file() -> Result<PathBuf, LabError> {
    cache::by_content("agent", "run", AGENT, 0o755)
}

/// QEMU emulates a processor with SVM, Debian's cloud kernel runs KVM on it. It goes on where a machine of the same make was
/// saved, if it may; the files in memory must live until it is up.
pub(crate) fn nested(config: &LabConfig, resume: bool) -> Result<(Command, Vec<File>), LabError> {
    install_tools()?;
    let (qemu, kernel) = (Qemu::find()?, kernel(config.kernel)?);
    let drives = drives(config)?;
    let initramfs = initramfs(config, &drives, &kernel, qemu.nested_paging)?;
    let memory = [in_memory(&initramfs, None)?, in_memory(&files(config)?, Some(FILES_BYTES))?];
    let command = || -> Result<Command, LabError> {
        let mut command = qemu.command(&[&tool("setpriv")?, Path::new("--pdeathsig=KILL")]);
        machine(&mut command, config, &kernel, &drives, &memory);
        Ok(command)
    };
    let mut begun = command()?;
    if resume {
        let make = saved::make(&qemu.version, config, &initramfs, &kernel, &drives)?;
        begun.arg("-incoming").arg(saved::incoming(&saved::state(make, command()?)?));
    }
    Ok((begun, memory.into()))
}

fn machine(command: &mut Command, config: &LabConfig, kernel: &Kernel, drives: &[Drive], memory: &[File; 2]) {
    let [initrd, files] =
        memory.each_ref().map(|file| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-no-reboot"]);
    command.args(["-machine", "q35", "-accel", "tcg,thread=multi"]);
    command.args(["-cpu", PROCESSOR]);
    command.args(["-smp", &config.cpus.to_string(), "-m", &config.mem_mib.to_string()]);
    command.arg("-kernel").arg(&kernel.bzimage);
    command.args(["-initrd", &initrd]);
    command.args(["-append", BOOT_LINE]);
    command.args(["-chardev", "file,id=console,path=/proc/self/fd/1", "-serial", "chardev:console"]);
    command.args(["-device", "virtio-serial-pci", "-chardev", "socket,id=agent,fd=0"]);
    command.args(["-device", "virtserialport,chardev=agent,name=lab"]);
    command.arg("-drive").arg(format!("file={files},format=raw,if=none,id=files,readonly=on"));
    command.args(["-device", "virtio-blk-pci,drive=files,serial=lab-files"]);
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
}

/// The files of a lab, as an archive that the emulated machine reads from a disk when it has been resumed.
fn files(config: &LabConfig) -> Result<Vec<u8>, LabError> {
    let mut archive = Archive::default();
    for (host, name) in &config.files {
        archive.program(&format!("lab/{name}"), host)?;
    }
    let archive = archive.finish()?;
    if archive.len() as u64 > FILES_BYTES {
        let reason = format!("the lab's files are {} bytes, more than {FILES_BYTES}", archive.len());
        return Err(LabError::io("cannot start the lab")(std::io::Error::other(reason)));
    }
    Ok(archive)
}

/// A disk of the emulated machine, and what its init does with it: `tools` and `work` are mounted, `=NAME` is linked to.
#[derive(Debug)]
pub(crate) struct Drive {
    pub(crate) file: PathBuf,
    access: Access,
    role: String,
}

impl Drive {
    /// In bytes; of a block device as well.
    pub(crate) fn size(&self) -> Result<u64, LabError> {
        let end = File::open(&self.file).and_then(|mut file| file.seek(SeekFrom::End(0)));
        end.map_err(LabError::path("read", &self.file))
    }
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
    if config.debian {
        modules.extend(DEBIAN_MODULES);
    }
    archive.modules(kernel, &modules, &[("kvm_amd", npt)])?;
    archive.finish()
}

/// A file without a name, of this size if one is said: nothing is left behind, whatever happens.
fn in_memory(content: &[u8], size: Option<u64>) -> Result<File, LabError> {
    let fd = rustix::fs::memfd_create("lab", MemfdFlags::CLOEXEC);
    let mut file = File::from(fd.map_err(|e| LabError::io("cannot make a file in memory")(e.into()))?);
    let written = file.write_all(content).and_then(|()| size.map_or(Ok(()), |size| file.set_len(size)));
    written.map_err(LabError::io("cannot write a file in memory"))?;
    Ok(file)
}
