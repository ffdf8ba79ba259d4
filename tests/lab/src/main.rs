//! The lab for people: runs a command where /dev/kvm boots Linux, or boots a Debian guest with minivmm.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command's words are for its terminal")]

mod boot;

use lab::{Access, Cmd, InitramfsSpec, Lab, LabConfig, LabError, LabKind, Status, terminal};
use std::path::PathBuf;
use std::process::ExitCode;

const HELP: &str = "\
Runs commands where /dev/kvm can boot Linux: on this host, or in an emulated machine.

  lab prepare                         fetch everything into the cache
  lab run [OPTIONS] -- COMMAND ...    run a command; the status is the command's
      --file HOST[:NAME]              a file for it, in its working directory (repeat for more)
      --disk HOST[:NAME]              a disk image for it to write to (repeat for more)
      --debian                        with Debian's programs, room for disks, and vm0 (see make image)
      --mem MIB  --cpus N             size of the emulated machine (2048, 1)
  lab image [--whole] [DIRECTORY]     make vm0.raw, a Debian with its kernel and initrd beside it, unless it is there
      --whole                         vm0-whole.raw, without a partition table
  lab boot [OPTIONS] [-- ARGS ...]    boot the vm0.raw of this directory with minivmm; ARGS are for minivmm
      --small                         a kernel and a shell instead, without a disk
      --generic                       the same with the generic kernel instead of the cloud kernel
      --vmlinux                       the same with the kernel uncompressed
      --minivmm PATH                  another minivmm than target/release/minivmm
  lab pieces                          print the paths of kernels and initramfs
  lab host                            say where commands run, and why";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(Status::Exited(code)) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Ok(status) => ExitCode::from(u8::try_from(status.code()).unwrap_or(1)),
        Err(error) => {
            eprintln!("lab: {error}");
            ExitCode::from(125)
        }
    }
}

fn dispatch(args: &[String]) -> Result<Status, LabError> {
    let done = Ok(Status::Exited(0));
    let (verb, rest) = args.split_first().map_or(("help", args), |(verb, rest)| (verb.as_str(), rest));
    let options = Options::parse(rest)?;
    match verb {
        "prepare" => lab::prepare().and(done),
        "run" => run(&options),
        "boot" => boot::boot(&options),
        "image" => boot::image(options.directory.as_deref().unwrap_or(".".as_ref()), options.whole).and(done),
        "pieces" => pieces().and(done),
        "host" => {
            let (kind, why) = LabKind::of_host();
            println!("{kind:?}: {why}");
            done
        }
        "help" | "--help" | "-h" => {
            println!("{HELP}");
            done
        }
        _ => Err(usage(format!("there is no verb `{verb}`"))),
    }
}

fn usage(what: String) -> LabError {
    LabError::Missing { what, mend: "lab help".into() }
}

#[derive(Default)]
struct Options {
    config: LabConfig,
    command: Vec<String>,
    generic: bool,
    vmlinux: bool,
    small: bool,
    whole: bool,
    directory: Option<PathBuf>,
    minivmm: Option<PathBuf>,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self, LabError> {
        let mut options = Self::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| usage(format!("a value after `{arg}`")));
            let number =
                |text: &String| text.parse().map_err(|_| usage(format!("a number instead of `{text}`")));
            let config = std::mem::take(&mut options.config);
            options.config = match arg.as_str() {
                "--file" => {
                    let (host, name) = file(value()?);
                    config.file(host, name)
                }
                "--mem" => config.mem_mib(number(value()?)?),
                "--cpus" => config.cpus(number(value()?)?),
                "--disk" => {
                    let (host, name) = file(value()?);
                    config.disk(host, name, Access::Write)
                }
                "--debian" => config.debian(),
                "--small" | "--generic" | "--vmlinux" | "--whole" => {
                    options.small |= arg != "--whole";
                    options.generic |= arg == "--generic";
                    options.vmlinux |= arg == "--vmlinux";
                    options.whole |= arg == "--whole";
                    config
                }
                "--minivmm" => {
                    options.minivmm = Some(value()?.into());
                    config
                }
                "--" => {
                    options.command = args.cloned().collect();
                    options.config = config;
                    return Ok(options);
                }
                directory if !directory.starts_with('-') => {
                    options.directory = Some(directory.into());
                    config
                }
                _ => return Err(usage(format!("`{arg}` is no option; commands stand after `--`, it"))),
            };
        }
        Ok(options)
    }
}

/// `HOST:NAME`, or `HOST` for the same name.
fn file(text: &str) -> (PathBuf, String) {
    let host = PathBuf::from(text);
    match text.rsplit_once(':') {
        Some((host, name)) => (host.into(), name.into()),
        None => (host.clone(), host.file_name().unwrap_or_default().to_string_lossy().into()),
    }
}

fn run(options: &Options) -> Result<Status, LabError> {
    let (program, args) =
        options.command.split_first().ok_or_else(|| usage("a command after `--`".into()))?;
    let cmd = Cmd::new(program).args(args);
    attach(&options.config, cmd, terminal::is_terminal())
}

fn attach(config: &LabConfig, cmd: Cmd, tty: bool) -> Result<Status, LabError> {
    let lab = Lab::start(config)?;
    let mut process = lab.spawn(&if tty { cmd.tty() } else { cmd })?;
    terminal::connect(&mut process, tty)
}

fn pieces() -> Result<(), LabError> {
    lab::prepare()?;
    let kernels = lab::kernels()?;
    for kernel in [&kernels.cloud, &kernels.generic] {
        println!("{}\n{}", kernel.bzimage.display(), kernel.vmlinux.display());
        println!("{}", lab::initramfs(kernel, &InitramfsSpec::default())?.display());
    }
    println!("{}", lab::initramfs(&kernels.cloud, &InitramfsSpec::large())?.display());
    Ok(())
}
