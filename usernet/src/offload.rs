//! What the two sides of the virtual wire leave to each other: checksums and cutting of large TCP packets.

/// How far the checksum of a packet's transport header is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checksum {
    /// It is right, or has to be checked.
    #[default]
    Complete,
    /// It holds the sum of the pseudo header only. The wire of the two is memory: nobody needs the rest.
    Partial {
        /// Where the sum begins in the frame.
        start: u16,
        /// Where in what is summed up it is put.
        offset: u16,
    },
}

/// What a large packet is cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
}

/// How a large packet is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gso {
    /// What it is.
    pub kind: GsoKind,
    /// Payload of each segment.
    pub size: u16,
    /// Bytes of all headers in front of the payload.
    pub headers: u16,
}

/// What is left to the receiver of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// Its checksum.
    pub checksum: Checksum,
    /// Its cutting.
    pub gso: Option<Gso>,
}

/// What the guest takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Accepts {
    /// Partial checksums.
    pub checksum: bool,
    /// Large packets of TCP over IPv4.
    pub tso4: bool,
    /// Large packets of TCP over IPv6.
    pub tso6: bool,
}
