//! The guest of a command: its kernel, and the initramfs that is made for it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use boot::cpio::{Archive, Cpio, Kind, Member};
use boot::modules::{Module, ModuleError, Modules};

use log::Level;

use super::args::RunArgs;
use super::busybox::Busybox;
use super::error::RunError;
use super::{build_tree, reseed, tree, volume};
use crate::cli::warm::FileMark;
use crate::cli::{drivers, report};
use crate::host::facts::Host;
use crate::host::process::may_read;
use crate::image::version::compare;
use crate::image::{Budget, read_file};
use crate::machine::files::{OpenFiles, Prepared};
use crate::shown::path as shown;
use crate::spec::Spec;

/// The init script, without the lines that differ from guest to guest.
const INIT: &str = include_str!("../../../resources/initramfs/run.sh");
/// What it reads if there are shares.
const MOUNTS: &str = include_str!("../../../resources/initramfs/mounts.sh");
/// What becomes the command.
const COMMAND: &str = include_str!("../../../resources/initramfs/command.sh");
/// The folder for our files in the guest; resources/initramfs/run.sh has the same name.
const PRIVATE_FOLDER: &str = ".minivmm";

/// The newest kernel in the host's /boot that this user may read.
pub(super) fn newest_kernel(host: &Host) -> Result<PathBuf, RunError> {
    let boot = host.path("/boot");
    let names = fs::read_dir(&boot).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut kernels: Vec<String> =
        names.filter_map(|name| name.into_string().ok()).filter(|name| name.starts_with("vmlinuz")).collect();
    kernels.sort_by(|one, other| compare(other, one));
    let readable = |name: &&String| {
        let path = boot.join(name);
        path.is_file() && may_read(&path)
    };
    match (kernels.iter().find(readable), kernels.first()) {
        (Some(name), _) => Ok(boot.join(name)),
        (None, Some(name)) => {
            let path = boot.join(name);
            let found = format!(
                "this user may read no kernel of this host (`sudo chmod a+r {}` lets everybody)",
                path.display()
            );
            Err(RunError::NoKernel { found })
        }
        (None, None) => Err(RunError::NoKernel { found: "/boot of this host has none".into() }),
    }
}

/// Files with their marks; `None` for one that may have been another when it was read.
pub(super) type Sources = BTreeMap<PathBuf, Option<FileMark>>;

/// An initramfs.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) archive: Cpio,
    /// The host's files that its modules are from, as they were when they were read.
    pub(super) modules: Sources,
    /// The guest's files are in it, and not in a share.
    pub(super) is_packed: bool,
}

/// Makes the initramfs for `args` and the kernel that was found.
pub(super) fn initramfs(
    args: &RunArgs,
    spec: &Spec,
    prepared: &Prepared,
    busybox: &Busybox,
    host: &Host,
) -> Result<Made, RunError> {
    let found = find_modules(args, spec, prepared, host)?;
    let root = Root::of(args, spec, found.as_ref());
    let (modules, sources) = match found {
        Some(found) => found.load(spec, root)?,
        None => (Vec::new(), Sources::new()),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut archive = Archive::dated(u32::try_from(now).unwrap_or(u32::MAX));
    let files = root;
    let shell = match (&args.root, busybox.path()) {
        (None, Err(error)) => return Err(error),
        (None, Ok(busybox)) => {
            add_busybox_root(&mut archive, busybox)?;
            Shell { shell: "/bin/busybox sh", busybox: "/bin/busybox", links: true }
        }
        (Some(root), busybox) => {
            if files == Root::Packed {
                warn_unreadable(root, &tree::pack(&mut archive, root, spec.mem())?);
            }
            match busybox {
                Ok(busybox) => {
                    add_busybox(&mut archive, &format!("{PRIVATE_FOLDER}/busybox"), busybox)?;
                    Shell { shell: "/.minivmm/busybox sh", busybox: "/.minivmm/busybox", links: false }
                }
                Err(error) if files != Root::Packed => return Err(error),
                Err(_) if fs::symlink_metadata(root.join("bin/sh")).is_ok() => {
                    Shell { shell: "/bin/sh", busybox: "", links: false }
                }
                Err(_) => return Err(RunError::NoShell { path: root.clone() }),
            }
        }
    };
    add_mount_points(&mut archive)?;
    add_devices(&mut archive)?;
    let shares = volume::list(spec);
    if args.root.is_none() {
        // Where that is not possible, mkdir says why.
        volume::folders(spec).for_each(|folder| drop(archive.folder(folder)));
    }
    if root.is_mounted() {
        ["root", "tree", "layer"]
            .iter()
            .try_for_each(|name| archive.folder(format!("{PRIVATE_FOLDER}/{name}")))?;
    }
    let mut put = |name: &str, mode: u32, content: Vec<u8>| {
        archive.add(format!("{PRIVATE_FOLDER}/{name}"), Member::file(mode, content)).map(drop)
    };
    put("init", 0o755, shell.init(&network(spec), args, root, !shares.is_empty()).into_bytes())?;
    put("reseed", 0o755, reseed::program())?;
    put("command", 0o644, bare(COMMAND).into_bytes())?;
    let order: String = modules.iter().map(|module| format!("{}\n", module.file)).collect();
    put("modules", 0o644, order.into_bytes())?;
    if root.is_mounted() || !shares.is_empty() {
        put("mounts", 0o644, bare(MOUNTS).into_bytes())?;
        put("shares", 0o644, shares.into_bytes())?;
    }
    for Module { file, content } in modules {
        put(&file, 0o644, content)?;
    }
    Ok(Made { archive: archive.finish()?, modules: sources, is_packed: root == Root::Packed })
}

/// Where the guest's files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Root {
    /// In its memory.
    Packed,
    /// In a share, under a layer in its memory.
    Layer,
    /// In a share that it writes to.
    Shared,
}

impl Root {
    fn is_mounted(self) -> bool {
        self != Root::Packed
    }

    /// By what was asked for and the kernel can do. One of whose modules nothing is known gets its files in a way that every kernel can have.
    fn of(args: &RunArgs, spec: &Spec, found: Option<&FoundModules>) -> Self {
        const NEEDED: [&str; 2] = ["virtiofs", "overlay"];
        if args.root_rw {
            return Root::Shared;
        }
        if !volume::has_root(spec) {
            return Root::Packed;
        }
        let Some(FoundModules { all, release, .. }) = found else { return Root::Packed };
        let Some(missing) = NEEDED.iter().find(|name| !all.has(name) && !all.is_built_in(name)) else {
            return Root::Layer;
        };
        report::message_at(
            Level::Warn,
            &format_args!(
                "minivmm: warning: Linux {release} has no module {missing}, so that --root is packed into the guest's memory\n"
            ),
        );
        Root::Packed
    }
}

/// Prints one warning about files that the guest will not have.
fn warn_unreadable(root: &Path, unreadable: &[PathBuf]) {
    const MOST: usize = 3;
    if unreadable.is_empty() {
        return;
    }
    // A file name may contain any byte, also control sequences for a terminal.
    let names = unreadable.iter().take(MOST).map(|path| shown(path));
    let names = names.collect::<Vec<_>>().join(", ");
    let more = match unreadable.len().saturating_sub(MOST) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    report::message_at(
        Level::Warn,
        &format_args!(
            "minivmm: warning: the guest is without {names}{more} of --root {}, which this user may not read; let it with `chmod -R u+rX`, or run as root\n",
            shown(root)
        ),
    );
}

/// A script without its comments, which the guest need not read.
fn bare(script: &str) -> String {
    let lines = script.lines().filter(|line| !line.trim_start().starts_with('#'));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// The shell for init.
struct Shell {
    shell: &'static str,
    busybox: &'static str,
    /// Whether to make links for all names of busybox.
    links: bool,
}

impl Shell {
    fn init(&self, network: &str, args: &RunArgs, root: Root, shares: bool) -> String {
        let Shell { shell, busybox, links } = self;
        let links = u8::from(*links);
        let wanted = [
            (args.time, " timed=1"),
            (args.has_input(), " stdin=1"),
            (args.out.is_some(), " files=1"),
            (shares || root.is_mounted(), " shares=1"),
            (root == Root::Layer, " root=layer"),
            (root == Root::Shared, " root=rw"),
        ];
        let wanted: String = wanted.into_iter().filter_map(|(is, word)| is.then_some(word)).collect();
        // Words of `--append` are variables of init, and may have these names.
        let unset = "unset timed stdin files shares root workdir terminal size";
        format!("#!{shell}\n{unset}\nb={busybox} links={links}{wanted}\n{network}\n{}", bare(INIT))
    }
}

/// What init sets up the first user network with, which has these addresses always.
fn network(spec: &Spec) -> String {
    let user = spec.net.iter().find_map(|net| Some((net.mac?, net.user_net()?.subnet.unwrap_or_default())));
    user.map_or_else(
        || "mac=".into(),
        |(mac, subnet)| {
            let [gateway, server, guest] = [2, 3, 15].map(|place| subnet.address(place));
            format!("mac={mac} address={guest}/{} gateway={gateway} server={server}", subnet.prefix())
        },
    )
}

/// The files of a guest without `--root`.
fn add_busybox_root(archive: &mut Archive, busybox: &Path) -> Result<(), RunError> {
    add_busybox(archive, "bin/busybox", busybox)?;
    for folder in ["sbin", "usr/bin", "usr/sbin"] {
        archive.folder(folder)?;
    }
    archive.add("etc/passwd", Member::file(0o644, *b"root:x:0:0:root:/root:/bin/sh\n"))?;
    archive.add("etc/group", Member::file(0o644, *b"root:x:0:\n"))?;
    archive.add("etc/hosts", Member::file(0o644, *b"127.0.0.1 localhost minivmm\n::1 localhost\n"))?;
    Ok(())
}

fn add_busybox(archive: &mut Archive, name: &str, busybox: &Path) -> Result<(), RunError> {
    let content = fs::read(busybox).map_err(|source| RunError::Read { path: busybox.into(), source })?;
    archive.add(name, Member::file(0o755, content))?;
    Ok(())
}

/// Folders and devices for init and the kernel, unless they exist.
fn add_mount_points(archive: &mut Archive) -> Result<(), RunError> {
    for folder in ["dev", "proc", "sys", "run", "root"] {
        archive.folder(folder)?;
    }
    if !archive.contains("tmp") {
        archive.add("tmp", Member::new(0o1777, Kind::Directory))?;
    }
    // The kernel opens init's console before anything is mounted.
    for (name, minor, major) in [("dev/console", 1, 5), ("dev/null", 3, 1)] {
        if !archive.contains(name) {
            archive.add(name, Member::new(0o600, Kind::CharacterDevice(major, minor)))?;
        }
    }
    Ok(())
}

/// What init copies into /dev: no kernel makes these.
fn add_devices(archive: &mut Archive) -> Result<(), RunError> {
    for name in ["pts", "shm"] {
        archive.folder(format!("{PRIVATE_FOLDER}/dev/{name}"))?;
    }
    for (name, to) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        archive.add(format!("{PRIVATE_FOLDER}/dev/{name}"), Member::new(0o777, Kind::Symlink(to.into())))?;
    }
    Ok(())
}

/// The modules of the kernel.
struct FoundModules {
    release: String,
    all: Modules,
    /// When they began to be looked for.
    begun: SystemTime,
}

/// Finds the modules of the kernel; `None` if it seems to have its drivers built in.
fn find_modules(
    args: &RunArgs,
    spec: &Spec,
    prepared: &Prepared,
    host: &Host,
) -> Result<Option<FoundModules>, RunError> {
    let begun = SystemTime::now();
    let (open, files) = (&prepared.open, prepared.files());
    let Some((files, release)) = files.and_then(|files| Some((files, files.release()?))) else {
        // A kernel without a version string is self-made; it has its drivers built in, or the guest reports
        // what is missing.
        return Ok(None);
    };
    let failed = |reason: String| RunError::Modules { release: release.clone(), reason };
    let tree = spec.kernel.as_deref().and_then(build_tree::of);
    let all = match (&args.modules, modules_folder(args, spec, &release, host)) {
        (None, _) if tree.is_some() => {
            let tree = tree.unwrap_or(Path::new(""));
            Modules::built(tree).map_err(|error| failed(format!("{}: {error}", tree.display())))?
        }
        (_, Ok(folder)) => {
            Modules::open(&folder).map_err(|error| failed(format!("{}: {error}", folder.display())))?
        }
        (Some(path), Err(_)) => return Err(RunError::NotModules { path: path.clone(), release }),
        (None, Err(searched)) => match on_disk(open, &release) {
            Some(modules) => modules,
            None if drivers::is_distribution(&release, files.headers.version()) => {
                let searched = searched.iter().map(|path| path.display().to_string());
                let searched: Vec<_> =
                    searched.chain(spec.disk.first().map(|_| "on the disk".to_owned())).collect();
                return Err(RunError::NoModules { release, searched: searched.join(", ") });
            }
            None => return Ok(None),
        },
    };
    Ok(Some(FoundModules { release, all, begun }))
}

impl FoundModules {
    /// The drivers that the kernel has as modules, and the host's files that they are from.
    fn load(self, spec: &Spec, root: Root) -> Result<(Vec<Module>, Sources), RunError> {
        let FoundModules { release, all, begun } = self;
        let mut names = vec!["virtio_pci", "virtio_console"];
        names.extend((!spec.disk.is_empty()).then_some("virtio_blk"));
        names.extend(spec.interfaces().next().map(|_| "virtio_net"));
        names.extend(spec.balloon.map(|_| "virtio_balloon"));
        let is_shared = root != Root::Packed || spec.shares().any(|(_, share)| share.mount.is_some());
        names.extend(is_shared.then_some("virtiofs"));
        names.extend((root == Root::Layer).then_some("overlay"));
        // Without pvpanic, a panic is detected by its message on the console.
        names.extend(all.has("pvpanic_mmio").then_some("pvpanic_mmio"));
        let loaded = all.load(&names).map_err(|error| match error {
            source @ ModuleError::Missing { .. } => RunError::NoDriver { release: release.clone(), source },
            other => RunError::Modules { release: release.clone(), reason: other.to_string() },
        })?;
        let sources = loaded.iter().filter_map(|module| all.path(&module.file).map(Path::to_path_buf));
        let sources = [all.folder().to_path_buf(), all.list()].into_iter().chain(sources);
        // Only now it is known which they are.
        let marked = |path: PathBuf| {
            let mark = FileMark::unchanged_since(&path, begun);
            (path, mark)
        };
        let sources = sources.map(marked).collect();
        Ok((loaded, sources))
    }
}

/// The folder of this release's modules, or the folders that were searched.
fn modules_folder(args: &RunArgs, spec: &Spec, release: &str, host: &Host) -> Result<PathBuf, Vec<PathBuf>> {
    let candidates: Vec<PathBuf> = match &args.modules {
        Some(named) => vec![
            named.clone(),
            named.join(release),
            named.join("lib/modules").join(release),
            named.join("usr/lib/modules").join(release),
        ],
        None => {
            let mut module_folders = vec![host.path("/lib/modules"), host.path("/usr/lib/modules")];
            let kernel = spec.kernel.as_ref().and_then(|kernel| fs::canonicalize(kernel).ok());
            // For a kernel in an unpacked package, boot/ is beside lib/.
            if let Some(package) = kernel.as_deref().and_then(Path::parent).and_then(Path::parent) {
                let more = [package.join("lib/modules"), package.join("usr/lib/modules")];
                // For a kernel in /boot these are the host's own folders.
                module_folders.extend(
                    more.into_iter().filter(|path| !module_folders.contains(path)).collect::<Vec<_>>(),
                );
            }
            module_folders.into_iter().map(|folder| folder.join(release)).collect()
        }
    };
    let is_one = |folder: &&PathBuf| folder.join("modules.dep").is_file() || folder.join("kernel").is_dir();
    candidates.iter().find(is_one).cloned().ok_or(candidates)
}

/// The modules of this release on the first disk, as an installed Debian has them.
fn on_disk(open: &OpenFiles, release: &str) -> Option<Modules> {
    // The longest list of modules, and the largest module.
    const MAX: u64 = 64 << 20;
    let disk = open.readers().ok()?.into_iter().next()?;
    // One budget for all of them: a hostile disk cannot have it anew with each module.
    let budget = Budget::new();
    let read = move |path: &Path| {
        let path = path.to_str().ok_or(io::ErrorKind::InvalidInput)?;
        read_file(&disk.disk(&budget), path, MAX)
            .map_err(io::Error::other)?
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    };
    Modules::listed(&Path::new("/lib/modules").join(release), Box::new(read)).ok()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::process::Command;

    use super::*;
    use crate::host::facts::tests::tree;
    use crate::image::testing::ext4;
    use crate::machine::deadline::Progress;
    use crate::spec::DiskSpec;

    #[test]
    fn newest_kernel_of_the_host_is_the_one_with_the_highest_version() {
        let (_folder, host) = tree(&[
            ("/boot/vmlinuz-6.1.0-9-amd64", "x"),
            ("/boot/vmlinuz-6.1.0-25-amd64", "x"),
            ("/boot/initrd.img-6.1.0-99-amd64", "x"),
        ]);
        assert_eq!(newest_kernel(&host).unwrap(), host.path("/boot/vmlinuz-6.1.0-25-amd64"));
        let (_folder, host) = tree(&[("/boot/config", "x")]);
        let error = newest_kernel(&host).unwrap_err().to_string();
        assert!(error.contains("has none") && error.contains("--kernel FILE"), "{error}");
    }

    /// Has this shell run the script that becomes a command, in a folder with two of its own; what it printed, and its status.
    fn becomes(shell: &[&OsStr], words: &[&str]) -> (String, Option<i32>) {
        let (busybox, folder) = (Busybox::default(), tempfile::tempdir().unwrap());
        let (busybox, folder) = (busybox.path().unwrap(), folder.path());
        let put = |name: &str, mode: u32, content: &str| {
            let path = folder.join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        };
        let own = format!("#!{} sh\necho \"own $0 $*\"\n", busybox.display());
        put("command", 0o600, &bare(COMMAND));
        fs::create_dir_all(folder.join("a")).unwrap();
        put("a/date", 0o700, &own);
        put("a/tar", 0o600, "");
        let mut command = Command::new(shell[0]);
        command.args(&shell[1..]).arg(folder.join("command")).args(words).env_clear();
        let out = command.current_dir(folder).env("PATH", "none:a").output().unwrap();
        let said = String::from_utf8(out.stdout).unwrap() + &String::from_utf8(out.stderr).unwrap();
        (said, out.status.code())
    }

    #[test]
    fn command_is_the_program_in_path_and_no_applet_of_busybox() {
        let busybox = Busybox::default();
        // The other one may have no `exec -a`, as old ones of busybox have none.
        let shells: [&[&OsStr]; 2] =
            [&[busybox.path().unwrap().as_os_str(), "sh".as_ref()], &["/bin/sh".as_ref()]];
        for shell in shells {
            assert_eq!(becomes(shell, &["", "date", "a b", ""]), ("own a/date a b \n".into(), Some(0)));
            assert_eq!(becomes(shell, &["a", "./date"]), ("own ./date \n".into(), Some(0)));
            let (said, status) = becomes(shell, &["", "tar", "--help"]);
            assert!(said.contains("tar cannot be executed") && status == Some(126), "{said} {status:?}");
            for missing in ["ls", ""] {
                let (said, status) = becomes(shell, &["", missing]);
                assert!(said.ends_with(&format!("{missing}: not found\n")) && status == Some(127), "{said}");
            }
            for (file, why) in [("a/tar", 126), ("./a", 126), ("a/none", 127)] {
                let (said, status) = becomes(shell, &["", file]);
                assert!(
                    said.starts_with(&format!("minivmm: {file}: ")) && status == Some(why),
                    "{said} {status:?}"
                );
                assert!(
                    said.lines().count() == 1 && !said.contains("exec") && !said.contains("/command"),
                    "{said}"
                );
            }
            let mut in_root = Command::new(shell[0]);
            in_root.args(&shell[1..]).arg("-c").arg(bare(COMMAND)).args(["/run/minivmm/command", "", "ls"]);
            let out = in_root.env_clear().env("PATH", "none:a").output().unwrap();
            let said = String::from_utf8(out.stderr).unwrap();
            assert_eq!(said, "minivmm: ls: not found in the directory of --root, in PATH=none:a\n");
            // No variable of the script is the command's.
            let (said, _) = becomes(shell, &["", "/usr/bin/env"]);
            assert!(!said.contains("minivmm_"), "{said}");
        }
    }

    #[test]
    fn modules_are_found_on_the_disk_that_the_kernel_is_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm0.raw");
        let files: [(&str, &[u8]); 5] = [
            ("etc/x", b""),
            ("sbin/init", b"x"),
            ("lib/modules/6.1.0-25-amd64/modules.dep", b"kernel/a.ko: kernel/b.ko\nkernel/b.ko:\n"),
            ("lib/modules/6.1.0-25-amd64/kernel/a.ko", b"\x7fELF\0depends=b\0"),
            ("lib/modules/6.1.0-25-amd64/kernel/b.ko", b"\x7fELF\0depends=\0"),
        ];
        fs::write(&path, ext4(8192, &files, &["-b", "1024"])).unwrap();
        let spec = Spec::default().with_disk(DiskSpec::new(&path));
        let open = OpenFiles::open(&spec, &Progress::default()).unwrap();
        let modules = on_disk(&open, "6.1.0-25-amd64").unwrap();
        let order: Vec<_> = modules.load(&["a"]).unwrap().into_iter().map(|module| module.file).collect();
        assert_eq!(order, ["b.ko", "a.ko"]);
        assert!(on_disk(&open, "6.1.0-26-amd64").is_none());
    }

    fn args(options: &[&str]) -> RunArgs {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: RunArgs,
        }
        <Line as clap::Parser>::parse_from(["run"].iter().chain(options).chain(&["true"])).args
    }

    /// In a PID namespace, where that is to be had: the script is no init elsewhere.
    #[test]
    #[allow(clippy::print_stdout, reason = "whoever reads a test's output")]
    fn processes_that_begin_others_all_the_time_end_with_the_command() {
        let (_, ending) = INIT.split_once("\n# What it left running").unwrap();
        let (ending, _) = ending.split_once("\nif [ -n \"$files\" ]").unwrap();
        let home = tempfile::tempdir().unwrap();
        // Between one kill and the next they have time.
        let begin = "[ $$ = 1 ] || exit 9\nkill() { sleep 0.05; command kill \"$@\"; }\nmkfifo out err\ncat <out & out=$!\ncat <err & err=$!\n\
                     (exec sh -c 'echo said; sh ./chain & exit 3') >out 2>err\nstatus=$?\n#";
        fs::write(home.path().join("init"), format!("{begin}{ending}\necho $status")).unwrap();
        // Each begins the next one, and ends.
        fs::write(home.path().join("chain"), "sh ./chain &\n").unwrap();
        let inside = |namespaces: &[&str], program: &[&str]| {
            let mut command = Command::new("timeout");
            command.args(["-k", "1", "300", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]);
            command.args(namespaces).args(program).current_dir(home.path()).output().unwrap()
        };
        let user = &["--user", "--map-root-user"][..];
        let Some(namespaces) = [user, &[]].into_iter().find(|some| inside(some, &["true"]).status.success())
        else {
            println!("not run: this host gives no PID namespace");
            return;
        };
        for shell in [&["sh"][..], &["bash"], &["busybox", "sh"]] {
            if Command::new(shell[0]).args(&shell[1..]).args(["-c", ":"]).status().is_err() {
                continue;
            }
            let out = inside(namespaces, &[shell, &["./init"]].concat());
            assert_eq!(String::from_utf8_lossy(&out.stdout), "said\n3\n", "{shell:?}: {out:?}");
            for name in ["out", "err"] {
                fs::remove_file(home.path().join(name)).unwrap();
            }
        }
    }

    #[test]
    fn init_is_a_script_that_shells_take() {
        let shell = Shell { shell: "/bin/sh", busybox: "", links: true };
        let file = tempfile::NamedTempFile::new().unwrap();
        let spec = Spec::new("k").with_net("user,subnet=10.0.5.0/24,mac=02:00:00:00:00:01".parse().unwrap());
        let network = network(&spec);
        assert_eq!(network, "mac=02:00:00:00:00:01 address=10.0.5.15/24 gateway=10.0.5.2 server=10.0.5.3");
        assert_eq!(super::network(&Spec::new("k").with_net("tap=tap2".parse().unwrap())), "mac=");
        fs::write(file.path(), shell.init(&network, &args(&["--time", "--out", "o"]), Root::Layer, true))
            .unwrap();
        assert!(Command::new("sh").arg("-n").arg(file.path()).status().unwrap().success());
        fs::write(file.path(), bare(MOUNTS)).unwrap();
        assert!(Command::new("sh").arg("-n").arg(file.path()).status().unwrap().success());
        let text = shell.init("mac=m", &args(&[]), Root::Packed, false);
        let head =
            "#!/bin/sh\nunset timed stdin files shares root workdir terminal size\nb= links=1\nmac=m\n";
        assert!(text.starts_with(head), "{text}");
        // It knows no other word from lines in front of it.
        for word in ["timed", "stdin", "files", "shares", "root", "workdir", "terminal", "size"] {
            assert!(text.contains(&format!("\"${word}")), "{word}");
        }
    }
}
