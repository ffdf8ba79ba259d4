//! The arguments of `minivmm disk`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::ArgAction;

use super::live::{DiskEjectArgs, DiskInsertArgs, DiskSetArgs};
use super::size::{DiskSize, SizeChange};
use crate::spec::DiskFormat;

/// A verb for disk images.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true, disable_help_subcommand = true)]
pub struct DiskArgs {
    /// The verb.
    #[command(subcommand)]
    pub verb: DiskVerb,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// A verb for an image, or for a disk of a machine that runs.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum DiskVerb {
    /// Make an empty image, or an overlay on another one
    Create(DiskCreateArgs),
    /// Show the size, the format and the backing files of an image
    Info(DiskInfoArgs),
    /// Change the size of an image, or of a running machine's disk
    Resize(DiskResizeArgs),
    /// Copy an image into a new one, also of another format
    Convert(DiskConvertArgs),
    /// Look for errors in an image
    Check(DiskCheckArgs),
    /// Write the content of an overlay into the image below it
    Commit(DiskCommitArgs),
    /// Limit what a running machine's disk does in a second
    Set(DiskSetArgs),
    /// Take a read-only disk out of a running machine
    Eject(DiskEjectArgs),
    /// Put a disk into a running machine in place of one taken out
    Insert(DiskInsertArgs),
}

/// An image to make.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct DiskCreateArgs {
    /// The image; it must not exist
    pub file: PathBuf,
    /// Such as 60G or 512M; that of BASE if it is left out
    ///
    /// K, M, G and T count in powers of two. A plain number counts bytes.
    #[arg(required_unless_present = "backing")]
    pub size: Option<DiskSize>,
    /// raw or qcow2; without it the file's ending says it
    ///
    /// `.qcow2` is qcow2, everything else raw. An overlay is qcow2.
    #[arg(short, long)]
    pub format: Option<DiskFormat>,
    /// Make an overlay on this image, which is read only
    ///
    /// The overlay has what is written; everything else is read from BASE, which must stay where it is, and as it is. If BASE is an
    /// overlay too, and the image below it is in another folder, name that image as well: `--backing BASE --backing BELOW`.
    #[arg(short, long, value_name = "BASE")]
    pub backing: Vec<PathBuf>,
    /// The format of BASE, if its ending does not say it
    #[arg(short = 'F', long, value_name = "FORMAT", requires = "backing")]
    pub backing_format: Option<DiskFormat>,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// An image to look at.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct DiskInfoArgs {
    /// The image; also one that a machine uses
    pub file: PathBuf,
    /// Show the images below it too
    #[arg(long)]
    pub chain: bool,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
    /// How to open it.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// A change of a size.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct DiskResizeArgs {
    /// The image, or a disk of a running machine as MACHINE:DISK (vm0:vda)
    ///
    /// An image that a running machine has as its disk is resized by that machine, and its guest sees the new size at once.
    pub file: OsString,
    /// The new size, such as 80G, or what is added, such as +20G
    pub size: SizeChange,
    /// Allow a smaller size; what is behind it is lost
    ///
    /// Refused where partitions or a file system reach behind the new size, and where data of an unknown kind is there.
    #[arg(long)]
    pub shrink: bool,
    /// How to open it.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// A copy to make.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct DiskConvertArgs {
    /// The image to copy, with all that it reads from images below it
    #[arg(value_name = "IN")]
    pub from: PathBuf,
    /// The new image: there as a whole, or not at all
    #[arg(value_name = "OUT")]
    pub to: PathBuf,
    /// The format of OUT, if its ending does not say it
    #[arg(short = 'O', long)]
    pub format: Option<DiskFormat>,
    /// The format of IN, if its ending does not say it
    #[arg(short, long, value_name = "FORMAT")]
    pub from_format: Option<DiskFormat>,
    /// An image below IN that is in another folder
    #[arg(long, value_name = "BASE")]
    pub backing: Vec<PathBuf>,
    /// Replace OUT if it exists
    #[arg(long)]
    pub force: bool,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// An image to check.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct DiskCheckArgs {
    /// The image
    pub file: PathBuf,
    /// Its format, if its ending does not say it
    #[arg(short, long)]
    pub format: Option<DiskFormat>,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// An overlay to write into the image below it.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct DiskCommitArgs {
    /// The overlay, which is empty afterwards
    ///
    /// The image below it changes: any other overlay on that image is of no use afterwards.
    pub overlay: PathBuf,
    /// How to open it.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// How to open an image.
#[derive(Debug, Clone, clap::Args)]
pub struct SourceArgs {
    /// Its format, if its ending does not say it
    #[arg(short, long)]
    pub format: Option<DiskFormat>,
    /// An image below it that is in another folder
    #[arg(long, value_name = "BASE")]
    pub backing: Vec<PathBuf>,
}
