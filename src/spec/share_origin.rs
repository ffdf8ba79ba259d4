//! Where a share was asked for.

use std::path::{Path, PathBuf};

use crate::shown;

/// Where a share was asked for, for the sentence about a folder that cannot be shared. It is not written to files, and is no part of what a
/// share is: any two of these are equal.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum ShareOrigin {
    /// By the program that uses the library.
    #[default]
    Caller,
    /// By this option of the command line, such as `--share`.
    Option(&'static str),
    /// By a machine's file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// By a saved machine in this folder.
    Saved(PathBuf),
    /// By the running machine of this name, which is cloned.
    Machine(String),
    /// By a machine that comes from another host.
    Received,
}

impl PartialEq for ShareOrigin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for ShareOrigin {}

impl ShareOrigin {
    /// The subject of a sentence about the folder `path`, such as `--share src`.
    pub(crate) fn name(&self, path: &Path) -> String {
        let (path, folder) = (shown::path(path), "the shared folder");
        match self {
            ShareOrigin::Caller => format!("{folder} {path}"),
            ShareOrigin::Option(option) => format!("{option} {path}"),
            ShareOrigin::File { path: file, line } => {
                format!("{}, line {line}: {folder} {path}", shown::path(file))
            }
            ShareOrigin::Saved(saved) => {
                format!("{folder} {path} of the saved machine {}", shown::path(saved))
            }
            ShareOrigin::Machine(name) => format!("{folder} {path} of the machine {}", shown::text(name)),
            ShareOrigin::Received => format!("{folder} {path} of the machine that comes"),
        }
    }

    /// Whether a guest uses the folder already, so that no other one can take its place.
    pub(crate) fn is_in_use(&self) -> bool {
        match self {
            ShareOrigin::Caller | ShareOrigin::Option(_) | ShareOrigin::File { .. } => false,
            ShareOrigin::Saved(_) | ShareOrigin::Machine(_) | ShareOrigin::Received => true,
        }
    }
}
