//! FUSE's messages (linux/fuse.h, version 7.31), as far as a file system of one folder needs them.

/// The node of the folder.
pub(crate) const ROOT: u64 = 1;
/// Bytes before the arguments of a request.
pub(crate) const HEADER: usize = 40;
/// Bytes that one write brings at most.
pub(crate) const MOST: usize = 1 << 20;
/// For names, attributes and pages: all changes come through this file system.
const FOR_EVER: u64 = 1 << 30;

/// Numbers of requests.
pub(crate) mod op {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const ACCESS: u32 = 34;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
    pub(crate) const RENAME2: u32 = 45;
    pub(crate) const LSEEK: u32 = 46;
}

/// A request: its header, and its arguments as they are read one after the other.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) opcode: u32,
    pub(crate) unique: u64,
    pub(crate) node: u64,
    rest: &'a [u8],
}

impl<'a> Request<'a> {
    pub(crate) fn new(message: &'a [u8]) -> Self {
        let (header, rest) = message.split_at(HEADER);
        let mut header = Request { opcode: 0, unique: 0, node: 0, rest: header };
        let (_len, opcode) = (header.u32(), header.u32());
        Request { opcode, unique: header.u64(), node: header.u64(), rest }
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    /// Up to the next zero.
    pub(crate) fn name(&mut self) -> Vec<u8> {
        let len = self.rest.iter().position(|byte| *byte == 0).unwrap();
        let name = self.take(len).to_vec();
        self.take(1);
        name
    }

    pub(crate) fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        taken
    }
}

/// The fields of an answer.
#[derive(Debug, Default)]
pub(crate) struct Answer(Vec<u8>);

impl Answer {
    pub(crate) fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn zeros(mut self, len: usize) -> Self {
        self.0.resize(self.0.len() + len, 0);
        self
    }

    /// `fuse_attr`.
    pub(crate) fn attributes(self, node: u64, size: u64) -> Self {
        let mode = if node == ROOT { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o644 };
        // Number, size, blocks; times; mode, links, owner and group, device; block size, flags.
        self.u64(node).u64(size).u64(size.div_ceil(512)).zeros(36).u32(mode).u32(1).zeros(12).u32(4096).u32(0)
    }

    /// `fuse_attr_out`.
    pub(crate) fn node(self, node: u64, size: u64) -> Self {
        self.u64(FOR_EVER).u64(0).attributes(node, size)
    }

    /// `fuse_entry_out`.
    pub(crate) fn entry(self, node: u64, size: u64) -> Self {
        self.u64(node).u64(0).u64(FOR_EVER).u64(FOR_EVER).u64(0).attributes(node, size)
    }

    /// `fuse_open_out`. Pages are kept, and direct writes are not made one by one.
    pub(crate) fn open(self) -> Self {
        const KEEP_CACHE: u32 = 1 << 1;
        const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
        self.u64(0).u32(KEEP_CACHE | PARALLEL_DIRECT_WRITES).u32(0)
    }

    /// `fuse_init_out`. There is no cache of writes that the kernel keeps for itself.
    pub(crate) fn init(self) -> Self {
        const ASYNC_READ: u32 = 1 << 0;
        const BIG_WRITES: u32 = 1 << 5;
        const ASYNC_DIO: u32 = 1 << 15;
        const MAX_PAGES: u32 = 1 << 22;
        let most = u32::try_from(MOST).unwrap();
        let answer = self.u32(7).u32(31).u32(most).u32(ASYNC_READ | BIG_WRITES | ASYNC_DIO | MAX_PAGES);
        // Requests in the background, and where that is congestion; granularity of times; pages of a request.
        answer.u16(64).u16(48).u32(most).u32(1).u16(u16::try_from(MOST / 4096).unwrap()).zeros(30)
    }

    /// `fuse_statfs_out`: there is room.
    pub(crate) fn statfs(self) -> Self {
        self.u64(1 << 30)
            .u64(1 << 29)
            .u64(1 << 29)
            .u64(1 << 20)
            .u64(1 << 19)
            .u32(4096)
            .u32(255)
            .u32(4096)
            .zeros(28)
    }

    /// A name in a folder; `next` is where the one behind it is.
    pub(crate) fn name(self, node: u64, next: u64, name: &[u8]) -> Self {
        let (length, kind) =
            (u32::try_from(name.len()).unwrap(), if node == ROOT { libc::DT_DIR } else { libc::DT_REG });
        self.u64(node)
            .u64(next)
            .u32(length)
            .u32(kind.into())
            .bytes(name)
            .zeros(name.len().next_multiple_of(8) - name.len())
    }

    /// The whole message.
    pub(crate) fn message(self, unique: u64) -> Vec<u8> {
        let Answer(fields) = self;
        let len = u32::try_from(16 + fields.len()).unwrap();
        Answer::default().u32(len).u32(0).u64(unique).bytes(&fields).0
    }
}

/// The message that says that a request failed.
pub(crate) fn failure(unique: u64, errno: i32) -> Vec<u8> {
    Answer::default().u32(16).bytes(&(-errno).to_le_bytes()).u64(unique).0
}
