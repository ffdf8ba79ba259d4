//! What a check found.

use std::fmt;

use crate::Format;

/// Findings that are kept; all are counted.
const KEPT: usize = 100;

/// Result of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Format of the image. A raw image has nothing to check, and all numbers are zero.
    pub format: Format,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// Clusters of the disk, and how many of them have data in this image.
    pub total_clusters: u64,
    /// Clusters with data, or with space set aside for it.
    pub allocated_clusters: u64,
    /// Clusters whose data is compressed.
    pub compressed_clusters: u64,
    /// End of the last cluster in use, in the file.
    pub end: u64,
    /// Internal snapshots.
    pub snapshots: u32,
    /// A program that put off its reference counts has not written them back.
    pub dirty: bool,
    /// A program has marked the image as corrupt.
    pub marked_corrupt: bool,
    /// Clusters that take space and that nothing uses. They do no harm.
    pub leaks: u64,
    /// Errors that lose data now or with the next write.
    pub corruptions: u64,
    /// The first hundred of them.
    pub findings: Vec<Finding>,
}

/// A report in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing was found.
    Sound,
    /// Clusters leak; everything else is sound.
    Leaky,
    /// Data is in danger.
    Corrupt,
}

/// Something that is wrong. Offsets are bytes of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// A cluster has a higher reference count than it has references.
    Leaked {
        /// The cluster.
        offset: u64,
        /// Its reference count.
        refcount: u16,
        /// Its references.
        references: u16,
    },
    /// A cluster has a lower reference count than it has references: it can be given away while it is used.
    TooLow {
        /// The cluster.
        offset: u64,
        /// Its reference count.
        refcount: u16,
        /// Its references.
        references: u16,
    },
    /// More references than the reference count can express.
    Overflow {
        /// The cluster.
        offset: u64,
    },
    /// An entry says that a cluster belongs to this entry alone, or that it does not, and its reference count says otherwise.
    Copied {
        /// The table.
        table: TableKind,
        /// The entry.
        entry: u64,
        /// Reference count of the cluster.
        refcount: u16,
    },
    /// An entry points out of the file.
    Outside {
        /// Who points there.
        table: TableKind,
        /// Where it points to.
        offset: u64,
        /// How many bytes it claims.
        length: u64,
    },
    /// An entry points into a cluster instead of to its beginning.
    Unaligned {
        /// Who points there.
        table: TableKind,
        /// Where it points to.
        offset: u64,
    },
    /// An entry has bits that must be zero.
    Reserved {
        /// The table.
        table: TableKind,
        /// The entry.
        entry: u64,
    },
    /// The bitmap of an extended L2 entry contradicts the entry or itself.
    Subclusters {
        /// The entry.
        entry: u64,
        /// Its bitmap.
        bitmap: u64,
    },
    /// A cluster with one of the image's tables is used for something else, too.
    Overlap {
        /// Who else uses it.
        table: TableKind,
        /// The cluster.
        offset: u64,
    },
    /// A table is larger than it can be.
    TooLong {
        /// The table.
        table: TableKind,
        /// Its entries.
        entries: u64,
    },
    /// Entries of the snapshot table lack the fields that version 3 demands.
    IncompleteSnapshots {
        /// How many.
        count: u64,
    },
    /// The directory of the bitmaps contradicts itself.
    BitmapDirectory,
}

/// What an entry or a reference belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the words of the specification")]
pub enum TableKind {
    Header,
    L1Table,
    L1Entry,
    L2Entry,
    SnapshotTable,
    SnapshotL1Table,
    RefcountTable,
    RefcountTableEntry,
    BitmapDirectory,
    BitmapTable,
    BitmapTableEntry,
}

impl Report {
    /// Of a raw image.
    pub(super) fn raw() -> Self {
        Report {
            format: Format::Raw,
            cluster_size: 0,
            total_clusters: 0,
            allocated_clusters: 0,
            compressed_clusters: 0,
            end: 0,
            snapshots: 0,
            dirty: false,
            marked_corrupt: false,
            leaks: 0,
            corruptions: 0,
            findings: Vec::new(),
        }
    }

    /// Whether the format has anything that could be wrong.
    pub fn nothing_to_check(&self) -> bool {
        self.format == Format::Raw
    }

    /// The report in one word.
    pub fn verdict(&self) -> Verdict {
        match (self.corruptions, self.leaks) {
            (0, 0) => Verdict::Sound,
            (0, _) => Verdict::Leaky,
            _ => Verdict::Corrupt,
        }
    }

    pub(super) fn add(&mut self, finding: Finding) {
        match finding {
            Finding::Leaked { .. } => self.leaks += 1,
            _ => self.corruptions += 1,
        }
        if self.findings.len() < KEPT {
            self.findings.push(finding);
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Leaked { offset, refcount, references } => {
                write!(
                    f,
                    "leaked cluster at {offset:#x}: reference count {refcount}, references {references}"
                )
            }
            Finding::TooLow { offset, refcount, references } => {
                write!(f, "cluster at {offset:#x} has reference count {refcount} and {references} references")
            }
            Finding::Overflow { offset } => {
                write!(f, "cluster at {offset:#x} has more references than its reference count can say")
            }
            Finding::Copied { table, entry, refcount } => {
                let flag = if entry >> 63 == 1 { "has" } else { "lacks" };
                write!(
                    f,
                    "{table} {entry:#x} {flag} the flag COPIED, and its cluster has reference count {refcount}"
                )
            }
            Finding::Outside { table, offset, length } => {
                write!(f, "{table} claims {length} bytes at {offset:#x}, outside of the file")
            }
            Finding::Unaligned { table, offset } => {
                write!(f, "{table} points to {offset:#x}, where no cluster begins")
            }
            Finding::Reserved { table, entry } => write!(f, "{table} {entry:#x} has reserved bits set"),
            Finding::Subclusters { entry, bitmap } => {
                write!(f, "extended L2 entry {entry:#x} has the bitmap {bitmap:#x}, which contradicts it")
            }
            Finding::Overlap { table, offset } => {
                write!(f, "{table} uses the cluster at {offset:#x}, which holds a table")
            }
            Finding::TooLong { table, entries } => {
                write!(f, "{table} has {entries} entries, more than it can have")
            }
            Finding::IncompleteSnapshots { count } => {
                write!(f, "{count} entries of the snapshot table are incomplete")
            }
            Finding::BitmapDirectory => write!(f, "the directory of the bitmaps contradicts itself"),
        }
    }
}

impl fmt::Display for TableKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TableKind::Header => "header",
            TableKind::L1Table => "L1 table",
            TableKind::L1Entry => "L1 entry",
            TableKind::L2Entry => "L2 entry",
            TableKind::SnapshotTable => "snapshot table",
            TableKind::SnapshotL1Table => "L1 table of a snapshot",
            TableKind::RefcountTable => "refcount table",
            TableKind::RefcountTableEntry => "entry of the refcount table",
            TableKind::BitmapDirectory => "directory of the bitmaps",
            TableKind::BitmapTable => "table of a bitmap",
            TableKind::BitmapTableEntry => "entry of a bitmap's table",
        })
    }
}
