//! A frame on its way to a port: as it came, and what is to be changed.

use crate::HEADER_LEN;
use crate::frame::Edit;
use crate::offload::{Offload, Partial};
use crate::ports::{Accepts, PortId, Ports};
use crate::segment;
use crate::sum::Sum;

/// A frame on its way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) edit: Edit,
    pub(crate) offload: Offload,
}

impl Packet<'_> {
    /// Its length after the change.
    pub(crate) fn len(&self) -> usize {
        self.edit.moved(self.bytes.len())
    }

    /// Its header after the change.
    pub(crate) fn header(&self) -> [u8; HEADER_LEN] {
        self.offload.header(|at| self.edit.moved(at))
    }

    /// Its bytes after the change.
    pub(crate) fn parts(&self) -> [&[u8]; 3] {
        self.edit.parts(self.bytes)
    }

    /// Sends it as `accepts` demands. Tells `done` of each frame whether there was room, and its length.
    pub(crate) fn send(
        &self,
        port: PortId,
        accepts: Accepts,
        out: &mut impl Ports,
        mut done: impl FnMut(bool, usize),
    ) {
        if let Some(gso) = self.offload.gso.filter(|gso| !gso.fits(accepts)) {
            segment::cut(self, &gso, accepts.checksum, |header, head, payload| {
                done(send_parts(port, header, [head, payload], out), head.len() + payload.len());
            });
            return;
        }
        let sent = match self.offload.checksum.filter(|_| !accepts.checksum) {
            Some(partial) => self.send_completed(port, partial, out),
            None => send_parts(port, &self.header(), self.parts(), out),
        };
        done(sent, self.len());
    }

    /// Computes the checksum (virtio 1.3 §5.1.6.2.1) and sends the frame with it.
    fn send_completed(&self, port: PortId, partial: Partial, out: &mut impl Ports) -> bool {
        let summed = self.bytes.get(partial.start..).unwrap_or_default();
        let checksum = Sum::default().add(summed).checksum().to_be_bytes();
        let field = partial.start + partial.offset;
        let (head, rest) = self.bytes.split_at_checked(field).unwrap_or_default();
        let [front, tag, behind] = self.edit.parts(head);
        let parts = [front, tag, behind, &checksum, rest.get(2..).unwrap_or_default()];
        send_parts(port, &[0; HEADER_LEN], parts, out)
    }
}

/// Sends a frame without those of its parts that are empty: one that is as it came is one part.
fn send_parts<const N: usize>(
    port: PortId,
    header: &[u8; HEADER_LEN],
    mut parts: [&[u8]; N],
    out: &mut impl Ports,
) -> bool {
    let mut count = 0;
    for index in 0..N {
        if parts.get(index).is_some_and(|part| !part.is_empty()) {
            parts.swap(count, index);
            count += 1;
        }
    }
    out.send(port, header, parts.get(..count).unwrap_or_default())
}
