//! `minivmm disk`: makes, shows and changes images, and hands what is for a running machine's disk to that machine.

mod args;
mod check;
mod commit;
mod convert;
mod create;
mod error;
mod gpt;
mod info;
mod live;
pub(super) mod progress;
mod resize;
mod size;
mod source;
mod target;
mod users;

pub use args::{
    DiskArgs, DiskCheckArgs, DiskCommitArgs, DiskConvertArgs, DiskCreateArgs, DiskInfoArgs, DiskResizeArgs,
    DiskVerb, SourceArgs,
};
pub use live::{DiskEjectArgs, DiskInsertArgs, DiskSetArgs};
pub use size::{DiskSize, DiskSizeError, SizeChange};
pub use target::MachineDisk;

use std::path::Path;

use diskimage::Format;
use error::{DiskVerbError, sentence};

use super::exit::Status;
use super::{print, report};
use log::Level;

/// What a verb that did its work prints, and its status.
#[derive(Debug)]
struct Done {
    text: String,
    status: Status,
}

impl From<String> for Done {
    fn from(text: String) -> Self {
        Done { text, status: Status::Done }
    }
}

/// Runs a verb; an error is printed and is a failure.
pub(super) fn run(args: &DiskArgs) -> Status {
    let done = match &args.verb {
        DiskVerb::Create(args) => create::create(args).map(Done::from),
        DiskVerb::Info(args) => info::info(args).map(Done::from),
        DiskVerb::Resize(args) => resize::resize(args).map(Done::from),
        DiskVerb::Convert(args) => convert::convert(args).map(Done::from),
        DiskVerb::Check(args) => check::check(args),
        DiskVerb::Commit(args) => commit::commit(args).map(Done::from),
        DiskVerb::Set(args) => live::set(args).map(Done::from),
        DiskVerb::Eject(args) => live::eject(args).map(Done::from),
        DiskVerb::Insert(args) => live::insert(args).map(Done::from),
    };
    match done {
        Ok(Done { text, status }) => print(&text, status),
        Err(DiskVerbError::Interrupted(signal)) => Status::Signal(signal),
        Err(error) => {
            report::message_at(Level::Error, &format_args!("minivmm: {}\n", sentence(&error)));
            Status::Failed
        }
    }
}

/// The format that was named, else that of the file's ending.
fn format_of(named: Option<Format>, path: &Path) -> Format {
    named.unwrap_or_else(|| Format::of(path))
}
