//! Error numbers of Linux, as FUSE carries them.

use std::fmt;
use std::io;

/// What went wrong, for the guest: a number of errno(3).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(u16);

impl Errno {
    /// Not permitted.
    pub const PERM: Self = Errno(1);
    /// There is no such file.
    pub const NOENT: Self = Errno(2);
    /// A request that waited was ended.
    pub const INTR: Self = Errno(4);
    /// Input/output error.
    pub const IO: Self = Errno(5);
    /// Longer than it may be.
    pub const TOO_BIG: Self = Errno(7);
    /// No such open file.
    pub const BADF: Self = Errno(9);
    /// Not now.
    pub const AGAIN: Self = Errno(11);
    /// Access denied.
    pub const ACCES: Self = Errno(13);
    /// It is there already.
    pub const EXIST: Self = Errno(17);
    /// Not a folder.
    pub const NOTDIR: Self = Errno(20);
    /// A folder.
    pub const ISDIR: Self = Errno(21);
    /// A request that makes no sense.
    pub const INVAL: Self = Errno(22);
    /// Too many open files.
    pub const NFILE: Self = Errno(23);
    /// Beyond what a file can be.
    pub const FBIG: Self = Errno(27);
    /// Read-only.
    pub const ROFS: Self = Errno(30);
    /// Whoever waited for it would wait for itself.
    pub const DEADLK: Self = Errno(35);
    /// The answer does not fit.
    pub const RANGE: Self = Errno(34);
    /// A name is too long.
    pub const NAMETOOLONG: Self = Errno(36);
    /// No lock is left.
    pub const NOLCK: Self = Errno(37);
    /// The request is not known here; a driver does not send it again.
    pub const NOSYS: Self = Errno(38);
    /// A link where none may be.
    pub const LOOP: Self = Errno(40);
    /// There is no such attribute.
    pub const NODATA: Self = Errno(61);
    /// Not supported on this file.
    pub const NOTSUP: Self = Errno(95);
    /// The file is gone, or another one has its name.
    pub const STALE: Self = Errno(116);

    /// The number `raw`; what is none becomes [`Errno::IO`].
    pub fn new(raw: i32) -> Self {
        u16::try_from(raw).ok().filter(|raw| (1..4096).contains(raw)).map_or(Self::IO, Errno)
    }

    /// The number.
    pub fn raw(self) -> i32 {
        self.0.into()
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.raw()))
    }
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidInput if error.raw_os_error().is_none() => Self::INVAL,
            _ => Self::new(error.raw_os_error().unwrap_or(0)),
        }
    }
}
