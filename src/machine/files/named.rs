//! The kernel and the initrd that a spec names: opened once, so that what is removed or put in their place on the host does not
//! change what a machine boots.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use super::BootFile;
use crate::machine::StartError;
use crate::machine::loader::ByteSource;
use crate::machine::run_resources::Image;
use crate::spec::{self, Spec};

/// Open files of a spec. A machine keeps them for all its boots.
#[derive(Debug, Clone, Default)]
pub(crate) struct NamedFiles {
    pub(super) kernel: Option<BootFile>,
    pub(super) initrd: Option<BootFile>,
}

impl NamedFiles {
    /// Opens the files that `spec` names. `initrd` was made for this machine and replaces the one of the spec.
    pub(crate) fn open(spec: &Spec, initrd: Option<&Arc<dyn Image>>) -> Result<Self, StartError> {
        let kernel = spec.kernel.as_deref().map(|path| open("kernel", path)).transpose()?;
        let initrd = match (initrd, &spec.initrd) {
            (Some(made), _) => Some(BootFile::made("initrd", made)),
            (None, Some(spec::Initrd::File(path))) => Some(open("initrd", path)?),
            (None, Some(spec::Initrd::None) | None) => None,
        };
        Ok(NamedFiles { kernel, initrd })
    }

    /// Whether the initrd was made for this machine.
    pub(super) fn made_initrd(&self) -> bool {
        self.initrd.as_ref().is_some_and(|file| matches!(file.origin, ByteSource::Made(_)))
    }
}

fn open(what: &'static str, path: &Path) -> Result<BootFile, StartError> {
    // The open of a pipe would wait for its other end; like this it is a file without bytes.
    let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = opened.map_err(|source| StartError::Open { what, path: path.to_owned(), source })?;
    Ok(BootFile { path: path.to_owned(), origin: ByteSource::File(Arc::new(file)), inside: None })
}
