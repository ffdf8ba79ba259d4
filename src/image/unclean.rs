//! File systems that were not unmounted: a mount must replay their log first. A read-only disk does not allow
//! that, and the mount fails unless it is told to ignore the log.

use super::disk::{Disk, Window};
use super::signatures::{BTRFS, EXT, XFS};

/// The kernel options with which Linux mounts `window`, a file system of this kind, without replaying its
/// log. `None` if its log is empty or its state unknown.
pub(super) fn words(disk: &Disk<'_>, window: Window, kind: &str) -> Option<&'static str> {
    let log = Reader { disk, window };
    match kind {
        XFS => log.xfs().filter(|dirty| *dirty).map(|_| "ro rootflags=norecovery"),
        BTRFS => log.btrfs().filter(|dirty| *dirty).map(|_| "ro rootflags=rescue=nologreplay"),
        EXT => log.ext().filter(|dirty| *dirty).map(|_| "rootflags=noload"),
        _ => None,
    }
}

/// The unit of an XFS log.
const BASIC_BLOCK: u64 = 512;
/// Maximum length of an XFS log record with its headers: 256 KiB of data.
const LONGEST_RECORD: u64 = 512 + 16;
/// First word of a record (xfs_log_format.h, XLOG_HEADER_MAGIC_NUM).
const RECORD: u32 = 0xfeed_babe;
/// Log data per header of a record.
const PER_HEADER: u32 = 32 << 10;
/// Flag of an operation: the log ends with an unmount (XLOG_UNMOUNT_TRANS).
const UNMOUNT: u8 = 0x20;

struct Reader<'a> {
    disk: &'a Disk<'a>,
    window: Window,
}

/// The location of an XFS log in bytes, and its length in basic blocks.
#[derive(Debug, Clone, Copy)]
struct XfsLog {
    start: u64,
    blocks: u64,
}

impl Reader<'_> {
    fn bytes<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.disk.read(self.window, at, &mut bytes, "its log").ok().map(|()| bytes)
    }

    fn be32(&self, at: u64) -> Option<u32> {
        self.bytes(at).map(u32::from_be_bytes)
    }

    /// HAS_JOURNAL and RECOVER (ext4, `s_feature_compat` and `s_feature_incompat`).
    fn ext(&self) -> Option<bool> {
        let [compat] = self.bytes::<1>(1024 + 0x5c)?;
        let [incompat] = self.bytes::<1>(1024 + 0x60)?;
        Some(compat & incompat & 4 != 0)
    }

    /// Whether a log tree exists (`log_root` of the superblock).
    fn btrfs(&self) -> Option<bool> {
        Some(self.bytes(0x1_0000 + 0x60).map(u64::from_le_bytes)? != 0)
    }

    /// Whether the last record of the log is not an unmount record (as in Linux's xlog_check_unmount_rec).
    fn xfs(&self) -> Option<bool> {
        let log = self.xfs_log()?;
        let head = self.head(log)?;
        let back = (1..=LONGEST_RECORD.min(log.blocks)).map(|back| (head + log.blocks - back) % log.blocks);
        let record = back.map(|block| log.at(block)).find(|at| self.be32(*at) == Some(RECORD))?;
        let (version, operations, size) =
            (self.be32(record + 8)?, self.be32(record + 40)?, self.be32(record + 320)?);
        let headers = if version & 2 != 0 { size.div_ceil(PER_HEADER).max(1) } else { 1 };
        let operation = log.wrap(record + u64::from(headers) * BASIC_BLOCK);
        let [flags] = self.bytes::<1>(operation + 9)?;
        Some(operations != 1 || flags & UNMOUNT == 0)
    }

    fn xfs_log(&self) -> Option<XfsLog> {
        let block = u64::from(self.be32(4)?);
        let first = self.bytes(48).map(u64::from_be_bytes)?;
        let group_blocks = u64::from(self.be32(84)?);
        let blocks = u64::from(self.be32(96)?);
        let [group_bits] = self.bytes::<1>(124)?;
        // Without a first block the log is on another device.
        let group = first.checked_shr(group_bits.into()).filter(|_| first != 0)?;
        let inside = first - group.checked_shl(group_bits.into())?;
        let start = group.checked_mul(group_blocks)?.checked_add(inside)?.checked_mul(block)?;
        let blocks = blocks.checked_mul(block)? / BASIC_BLOCK;
        let end = start.checked_add(blocks.checked_mul(BASIC_BLOCK)?)?;
        (blocks > 0 && end <= self.window.len).then_some(XfsLog { start, blocks })
    }

    /// The block after the last one that was written: the blocks from there on are from the cycle before.
    fn head(&self, log: XfsLog) -> Option<u64> {
        let now = self.round(log, 0)?;
        // The cycle changes at most once: binary search.
        let (mut of_now, mut before) = (0, log.blocks);
        while before - of_now > 1 {
            let middle = of_now + (before - of_now) / 2;
            if self.round(log, middle)? == now { of_now = middle } else { before = middle }
        }
        Some(before)
    }

    /// The cycle in which a block was written: its first word, or the second at the start of a record.
    fn round(&self, log: XfsLog, block: u64) -> Option<u32> {
        match self.be32(log.at(block))? {
            RECORD => self.be32(log.at(block) + 4),
            round => Some(round),
        }
    }
}

impl XfsLog {
    fn at(self, block: u64) -> u64 {
        self.start + block * BASIC_BLOCK
    }

    /// An offset after the log's end wraps to its start.
    fn wrap(self, at: u64) -> u64 {
        let end = self.at(self.blocks);
        if at >= end { at - (end - self.start) } else { at }
    }
}

#[cfg(test)]
mod tests {
    use crate::image::survey::tests::survey;

    /// Blocks of 4 KiB, groups of 1024 blocks with 10 bits, a log of 16 blocks from block 4 of group 1 on.
    const LOG: usize = (1024 + 4) * 4096;
    const BLOCKS: usize = 16 * 8;

    /// An XFS whose log has a record in each of these blocks, written in this cycle: a change, or an unmount.
    fn xfs(records: &[(usize, u32, bool)]) -> Vec<u8> {
        let mut disk = vec![0; LOG + BLOCKS * 512];
        let mut put = |at: usize, bytes: &[u8]| disk[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"XFSB");
        put(4, &4096u32.to_be_bytes());
        put(48, &(1024u64 + 4).to_be_bytes());
        put(84, &1024u32.to_be_bytes());
        put(96, &16u32.to_be_bytes());
        put(124, &[10]);
        for (block, round, unmount) in records {
            let at = LOG + block * 512;
            put(at, &0xfeed_babe_u32.to_be_bytes());
            put(at + 4, &round.to_be_bytes());
            put(at + 8, &2u32.to_be_bytes());
            put(at + 40, &(if *unmount { 1u32 } else { 5 }).to_be_bytes());
            put(at + 320, &(32u32 << 10).to_be_bytes());
            let operation = LOG + (block + 1) % BLOCKS * 512;
            put(operation, &round.to_be_bytes());
            put(operation + 9, &[if *unmount { 0x20 } else { 0 }]);
        }
        disk
    }

    fn words(disk: &[u8]) -> Option<&'static str> {
        survey(disk).replay_words("/dev/vda")
    }

    #[test]
    fn xfs_is_clean_after_an_unmount_wherever_that_is_in_its_log() {
        const DIRTY: Option<&str> = Some("ro rootflags=norecovery");
        let all = |round, last_is_unmount: bool| {
            let last = BLOCKS / 2 - 1;
            (0..=last).map(move |n| (2 * n, round, n == last && last_is_unmount))
        };
        assert_eq!(words(&xfs(&[(0, 1, true)])), None, "new");
        assert_eq!(words(&xfs(&[(0, 1, true), (2, 1, false)])), DIRTY);
        assert_eq!(words(&xfs(&[(0, 1, true), (2, 1, false), (4, 1, true)])), None);
        // All blocks are of one cycle, and the next one begins.
        assert_eq!(words(&xfs(&all(3, true).collect::<Vec<_>>())), None);
        assert_eq!(words(&xfs(&all(3, false).collect::<Vec<_>>())), DIRTY);
        let begun = |unmount| all(3, true).chain([(0, 4, false), (2, 4, unmount)]).collect::<Vec<_>>();
        assert_eq!(words(&xfs(&begun(true))), None);
        assert_eq!(words(&xfs(&begun(false))), DIRTY);
    }

    #[test]
    fn btrfs_with_a_log_tree_is_unclean() {
        let mut disk = vec![0; 0x2_0000];
        disk[0x1_0040..0x1_0048].copy_from_slice(b"_BHRfS_M");
        assert_eq!(words(&disk), None);
        disk[0x1_0060] = 1;
        assert_eq!(words(&disk), Some("ro rootflags=rescue=nologreplay"));
    }

    #[test]
    fn xfs_with_nonsense_in_its_superblock_is_no_matter() {
        for (at, value) in [
            (4, u32::MAX),
            (48, u32::MAX),
            (52, u32::MAX),
            (84, u32::MAX),
            (96, u32::MAX),
            (124, u32::MAX),
            (96, 0),
        ] {
            let mut disk = xfs(&[(0, 1, false)]);
            disk[at..at + 4].copy_from_slice(&value.to_be_bytes());
            words(&disk);
        }
    }
}
