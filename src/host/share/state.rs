//! What is saved of a share: which names and open files the guest has numbers for. The files are opened again by their names, and
//! must be the same ones; what is gone is stale (ESTALE).

use devices::component::StateError;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use virtio::fs::{Handle, LockKind, OpenMode};

use super::Share;
use super::attributes::Identity;
use super::handles::Open;
use super::nodes::{ROOT, Slot};
use super::table;

const KIND: &str = "virtio-fs";

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedShare {
    collects_writes: bool,
    /// Device of the shared folder: another one on another host.
    device: u64,
    /// The folder itself. States of builds before it was noted have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    root: Option<Identity>,
    root_lookups: u64,
    /// All but the root, see [`table`].
    nodes: String,
    handles: Vec<SavedHandle>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    locks: Vec<SavedLock>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedHandle {
    slot: Slot,
    generation: u32,
    node: Slot,
    mode: OpenMode,
    is_folder: bool,
    #[serde(default, skip_serializing_if = "is_none")]
    flock: LockKind,
}

/// A range that is locked by fcntl(2).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedLock {
    pub(super) node: Slot,
    pub(super) owner: u64,
    pub(super) kind: LockKind,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) handle: Handle,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_none(kind: &LockKind) -> bool {
    *kind == LockKind::None
}

impl Share {
    pub(super) fn saved(&self) -> Result<Value, StateError> {
        let nodes = self.nodes.all().filter(|(slot, _)| *slot != ROOT);
        let nodes = nodes.map(|(slot, file)| (slot, self.nodes.generation(slot), file));
        let handles = self.handles.all().map(|(slot, generation, open)| SavedHandle {
            slot,
            generation,
            node: open.node,
            mode: open.mode,
            is_folder: open.is_folder,
            flock: open.flock,
        });
        let saved = SavedShare {
            collects_writes: self.collects_writes,
            device: self.folder.identity.device,
            root: Some(self.folder.identity),
            root_lookups: self.nodes.get(ROOT).map_or(0, |root| root.lookups),
            nodes: table::text(nodes),
            handles: handles.collect(),
            locks: self.locks.saved(),
        };
        serde_json::to_value(saved).map_err(|error| StateError::refused(KIND, error))
    }

    pub(super) fn loaded(&mut self, state: &Value) -> Result<(), StateError> {
        let damaged = |reason: &str| StateError::damaged(KIND, reason);
        let saved = SavedShare::deserialize(state).map_err(|error| StateError::damaged(KIND, error))?;
        if saved.root.is_some_and(|root| self.folder.is_another(root)) {
            log::warn!(
                "{} is another one than the machine was saved with: its guest finds what is in it now, and what it had open is stale (ESTALE)",
                self.folder.name
            );
        }
        let mut new = self.anew();
        new.collects_writes = saved.collects_writes;
        let own = self.folder.identity.device;
        let mut nodes = table::parse(&saved.nodes).map_err(damaged)?;
        for (.., file) in &mut nodes {
            let device = &mut file.identity.device;
            *device = if *device == saved.device { own } else { *device };
        }
        new.nodes.restore(nodes).map_err(damaged)?;
        if let Ok(root) = new.nodes.get_mut(ROOT) {
            root.lookups = saved.root_lookups;
        }
        let mut handles = Vec::with_capacity(saved.handles.len());
        for handle in saved.handles {
            let SavedHandle { slot, generation, node, mode, is_folder, flock } = handle;
            let Ok(file) = new.nodes.get_mut(node) else {
                return Err(damaged("an open file is none of the share's"));
            };
            file.handles.push(slot);
            handles.push((
                slot,
                generation,
                Open { fd: None, node, mode, is_folder, flock, flock_is_pending: false },
            ));
        }
        // A process that may have fewer files open than the one that saved has fewer: the rest is stale.
        let (mut opened, most) = (Vec::with_capacity(handles.len()), self.folder.limits.handles);
        for handle in handles {
            let is_one_too_many = opened.len() >= most;
            opened.push(if is_one_too_many { handle } else { new.reopened(handle) });
        }
        new.handles.restore(opened).map_err(damaged)?;
        new.restore_locks(saved.locks).map_err(damaged)?;
        *self = new;
        Ok(())
    }

    /// Opens a file that was open, if it is still there.
    fn reopened(&mut self, (slot, generation, open): (Slot, u32, Open)) -> (Slot, u32, Open) {
        let fd = if open.is_folder {
            self.open_for_listing(open.node)
        } else if self.folder.options.read_only && open.mode.write {
            Err(virtio::fs::Errno::ROFS)
        } else {
            let mode = OpenMode { truncate: false, exclusive: false, ..open.mode };
            match self.open_node(open.node, mode) {
                Err(virtio::fs::Errno::ACCES) if !self.folder.options.read_only => {
                    self.open_as_owner(open.node, mode)
                }
                file => file,
            }
        };
        let fd = fd.ok().map(std::sync::Arc::new);
        (slot, generation, Open { fd, ..open })
    }
}
