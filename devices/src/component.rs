//! The contract of every part of a machine that has a state: how it is quiesced, saved, loaded and let go.
//!
//! The machine calls the parts in this order: quiesce every part, save every part, go. For a machine that takes up a saved
//! state: build every part, quiesce every part, load every part, go. The PCI bus is loaded before its functions.

use std::borrow::Cow;
use std::fmt::{Debug, Display};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub mod hex;

/// Longest text of a damaged state that an error repeats.
const LONGEST_REASON: usize = 200;

/// A part of a machine: a device, a bus, a vCPU, an interrupt controller, the clock, the memory.
pub trait Component: Debug + Send {
    /// Ends the work that is in flight and begins none until [`Component::go`]: afterwards the component changes no guest
    /// memory and raises no interrupt. Waits only for work that the host has in flight. Calling it again does nothing.
    fn quiesce(&mut self) {}

    /// The state of a quiesced component. Saving changes nothing, so that two saves in a row are equal.
    ///
    /// # Errors
    /// [`StateError`]: the component is not quiesced, or the host or its thread failed.
    fn save(&self) -> Result<State, StateError>;

    /// Takes over `state` in a component that was built from the same specification and is quiesced. Treats `state` as
    /// hostile: every field is checked.
    ///
    /// # Errors
    /// [`StateError`]. A component of this crate or of `virtio` is unchanged then. One that KVM keeps may be changed in part
    /// and must not run.
    fn load(&mut self, state: &State) -> Result<(), StateError>;

    /// Continues after [`Component::quiesce`]. Does nothing in a component that runs.
    fn go(&mut self) {}
}

/// The saved state of one component.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Kind of the component, such as `serial` or `virtio-block`.
    pub kind: Cow<'static, str>,
    /// Version of the layout of `data`, counted for each kind from 1.
    pub version: u16,
    /// The fields of the kind.
    pub data: serde_json::Value,
}

impl State {
    /// The state of a component of `kind` with the fields of `data`, in layout `version`.
    ///
    /// # Errors
    /// [`StateError::Refused`] if `data` cannot be represented.
    pub fn new(kind: &'static str, version: u16, data: &impl Serialize) -> Result<Self, StateError> {
        let data = serde_json::to_value(data).map_err(|error| StateError::refused(kind, error))?;
        Ok(State { kind: kind.into(), version, data })
    }

    /// The fields of a state of `kind` in layout `version`.
    ///
    /// A component that changes its layout raises its version, and reads older layouts according to
    /// [`State::version`].
    ///
    /// # Errors
    /// [`StateError`] if the kind or the version is another, or the fields are not those of the layout.
    pub fn open<T: DeserializeOwned>(&self, kind: &'static str, version: u16) -> Result<T, StateError> {
        if self.kind != kind {
            let saved = self.kind.chars().take(LONGEST_REASON).collect();
            return Err(StateError::Kind { kind, saved });
        }
        if self.version != version {
            return Err(StateError::Version { kind, saved: self.version, own: version });
        }
        T::deserialize(&self.data).map_err(|error| StateError::damaged(kind, error))
    }
}

/// Why a component could not be saved or loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The state of another component.
    #[error(
        "the saved state is of a component {saved:?}, not of a component {kind:?}; load it into a machine of the same specification"
    )]
    Kind {
        /// Kind of the component.
        kind: &'static str,
        /// Kind in the state.
        saved: String,
    },
    /// Written in another layout.
    #[error(
        "the saved state of {kind} has version {saved}, and this program reads version {own}; load it with the version of minivmm that saved it"
    )]
    Version {
        /// Kind of the component.
        kind: &'static str,
        /// Version in the state.
        saved: u16,
        /// Version that the component reads.
        own: u16,
    },
    /// Valid, but of a machine that is built otherwise.
    #[error(
        "the saved state of {kind} does not fit this machine: {reason}; load it into a machine of the same specification"
    )]
    Mismatch {
        /// Kind of the component.
        kind: &'static str,
        /// What differs.
        reason: String,
    },
    /// Valid, but of a machine on another host.
    #[error("{reason}; restore it on a host that offers as much, or boot the machine anew")]
    Host {
        /// Kind of the component.
        kind: &'static str,
        /// What this host lacks.
        reason: String,
    },
    /// Valid, but of a machine with a network of another kind.
    #[error(
        "{name} cannot go on with this network: {reason}; give it a network of the kind that it had, such as another TAP with `--net \
         tap=NAME`, or boot the machine anew"
    )]
    Network {
        /// The interface.
        name: String,
        /// What differs.
        reason: String,
    },
    /// Valid, but of a machine with a longer disk.
    #[error(
        "the disk {name} has {now} bytes and had {then} when the machine was saved: its end is missing; put the whole disk there, such as one of \
         another copy"
    )]
    ShortDisk {
        /// The disk.
        name: String,
        /// Its bytes.
        now: u64,
        /// Its bytes then.
        then: u64,
    },
    /// No component can be in this state.
    #[error(
        "the saved state of {kind} is damaged: {reason}; use another copy of it, or save the machine again"
    )]
    Damaged {
        /// Kind of the component.
        kind: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Saved or loaded without [`Component::quiesce`].
    #[error("{kind} is at work; it must be quiesced before it is saved or loaded")]
    Running {
        /// Kind of the component.
        kind: &'static str,
    },
    /// The host refused, or the component has lost what it needs.
    #[error("{kind} cannot be saved or loaded: {reason}")]
    Refused {
        /// Kind of the component.
        kind: &'static str,
        /// The host's error, or what is missing.
        reason: String,
    },
}

impl StateError {
    /// [`StateError::Mismatch`] for `reason`, made fit to be shown.
    pub fn mismatch(kind: &'static str, reason: impl Display) -> Self {
        StateError::Mismatch { kind, reason: shown(reason) }
    }

    /// [`StateError::Host`] for `reason`, made fit to be shown.
    pub fn host(kind: &'static str, reason: impl Display) -> Self {
        StateError::Host { kind, reason: shown(reason) }
    }

    /// [`StateError::Damaged`] for `reason`, made fit to be shown.
    pub fn damaged(kind: &'static str, reason: impl Display) -> Self {
        StateError::Damaged { kind, reason: shown(reason) }
    }

    /// [`StateError::Refused`] for `reason`, made fit to be shown.
    pub fn refused(kind: &'static str, reason: impl Display) -> Self {
        StateError::Refused { kind, reason: shown(reason) }
    }
}

/// A text that may repeat parts of a hostile state: without control characters, and not long.
fn shown(text: impl Display) -> String {
    let text = text.to_string();
    let mut shown = String::new();
    for character in text.chars().take(LONGEST_REASON) {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// A component that other threads reach too.
impl<T: Component + ?Sized> Component for Arc<Mutex<T>> {
    fn quiesce(&mut self) {
        lock(self).quiesce();
    }

    fn save(&self) -> Result<State, StateError> {
        lock(self).save()
    }

    fn load(&mut self, state: &State) -> Result<(), StateError> {
        lock(self).load(state)
    }

    fn go(&mut self) {
        lock(self).go();
    }
}

/// A thread that panicked in a component has not made it unusable for the others.
fn lock<T: ?Sized>(component: &Mutex<T>) -> MutexGuard<'_, T> {
    component.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: &str = "lamp";

    #[derive(Debug, Default)]
    struct Lamp {
        on: bool,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct LampState {
        on: bool,
    }

    impl Component for Lamp {
        fn save(&self) -> Result<State, StateError> {
            State::new(KIND, 2, &LampState { on: self.on })
        }
        fn load(&mut self, state: &State) -> Result<(), StateError> {
            self.on = state.open::<LampState>(KIND, 2)?.on;
            Ok(())
        }
    }

    #[test]
    fn state_passes_through_text_and_a_shared_component() {
        let mut old: Box<dyn Component> = Box::new(Arc::new(Mutex::new(Lamp { on: true })));
        old.quiesce();
        let text = serde_json::to_string(&old.save().unwrap()).unwrap();
        assert_eq!(text, r#"{"kind":"lamp","version":2,"data":{"on":true}}"#);
        let mut new = Lamp::default();
        new.load(&serde_json::from_str(&text).unwrap()).unwrap();
        assert!(new.on);
    }

    #[test]
    fn each_refusal_names_the_component_and_the_cure() {
        let state = Lamp::default().save().unwrap();
        let other = State { kind: "\u{1b}[2Jlamp".into(), ..state.clone() };
        let old = State { version: 1, ..state.clone() };
        let bad = State { data: serde_json::json!({ "on": true, "\u{1b}[2J": 1 }), ..state.clone() };
        let long = State { kind: "x".repeat(10_000).into(), ..state };
        for (state, cure) in [
            (other, "load it into a machine of the same specification"),
            (old, "load it with the version of minivmm that saved it"),
            (bad, "use another copy of it, or save the machine again"),
            (long, "load it into a machine of the same specification"),
        ] {
            let error = Lamp::default().load(&state).unwrap_err().to_string();
            assert!(error.contains(KIND) && error.ends_with(cure), "{error}");
            assert!(!error.contains('\u{1b}') && error.len() < 500, "{error:?}");
        }
    }
}
