//! Who has asked for a copy of a machine, and may go away before it is made, or cancel it by the name that it has given it.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crate::host::ready::is_hung_up;

/// The other end of a connection; by default somebody who stays.
#[derive(Debug, Clone, Default)]
pub struct Asker(Option<Arc<Identity>>);

#[derive(Debug)]
struct Identity {
    stream: Option<Arc<UnixStream>>,
    /// What it calls its copy.
    copy: Option<String>,
}

impl Asker {
    /// Whoever is at the other end. If this process has no descriptor left to watch it, it counts as never gone.
    pub(crate) fn at(stream: &UnixStream) -> Self {
        Self::new(stream.try_clone().ok().map(Arc::new), None)
    }

    /// The same, who calls its copy so.
    pub(crate) fn calls(&self, copy: Option<String>) -> Self {
        Self::new(self.0.as_ref().and_then(|it| it.stream.clone()), copy)
    }

    fn new(stream: Option<Arc<UnixStream>>, copy: Option<String>) -> Self {
        Asker(Some(Arc::new(Identity { stream, copy })))
    }

    /// Whether it calls its copy so.
    pub(super) fn has_called(&self, copy: &str) -> bool {
        self.0.as_ref().and_then(|it| it.copy.as_deref()) == Some(copy)
    }

    /// Whether the other end is closed in both directions. One that has only said all that it had to say still waits.
    pub(super) fn is_gone(&self) -> bool {
        self.0.as_ref().and_then(|it| it.stream.as_deref()).is_some_and(is_hung_up)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;

    use super::*;

    #[test]
    fn one_who_has_closed_the_connection_is_gone_and_one_who_listens_is_not() {
        let (here, there) = UnixStream::pair().unwrap();
        let asker = Asker::at(&here);
        there.shutdown(Shutdown::Write).unwrap();
        assert!(!asker.is_gone());
        drop(there);
        assert!(asker.is_gone());
        assert!(!Asker::default().is_gone());
    }
}
