//! The parts of one boot that have a state, each under a stable id: `memory`, `clock`, `vcpu0`, `irqchip`, `pci`, then the devices
//! as the spec asks for them: `net0`, `vda`, `serial0` and so on.
//!
//! The order of the list is the order of quiescing and loading; saving and letting go follow it backwards. Loading: memory first, into
//! which vCPUs and devices may write; the clock before the vCPUs, whose TSCs go on as it does; vCPUs before the interrupt controllers and devices, whose interrupts arrive in the local
//! APICs; PCI configuration spaces before the functions behind them. Saving backwards: an interrupt that a device has raised is
//! saved with the local APIC that it reached.

use std::collections::BTreeMap;

use devices::component::{Component, State, StateError};

use super::saved::{RestoreError, SaveError};

/// The states of all components by id.
pub(super) type States = BTreeMap<String, State>;

/// All components of one boot.
#[derive(Debug, Default)]
pub(super) struct Components(Vec<(String, Box<dyn Component>)>);

impl Components {
    /// Appends a component. An id is given once: the parts of a machine are counted by kind.
    pub(super) fn push(&mut self, id: impl Into<String>, component: impl Component + 'static) {
        self.0.push((id.into(), Box::new(component)));
    }

    /// Appends those of `other`.
    pub(super) fn append(&mut self, mut other: Components) {
        self.0.append(&mut other.0);
    }

    /// See [`Component::quiesce`]. The vCPUs are at rest already.
    pub(super) fn quiesce(&mut self) {
        self.0.iter_mut().for_each(|(_, component)| component.quiesce());
    }

    /// See [`Component::go`]. The vCPUs follow.
    pub(super) fn go(&mut self) {
        self.0.iter_mut().rev().for_each(|(_, component)| component.go());
    }

    /// The states of all, which are quiesced.
    pub(super) fn save(&self) -> Result<States, SaveError> {
        let save = |(id, component): &(String, Box<dyn Component>)| {
            let failed = |source| SaveError::Component { id: id.clone(), source };
            component.save().map(|state| (id.clone(), state)).map_err(failed)
        };
        self.0.iter().rev().map(save).collect()
    }

    /// All of them, each with its id.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut dyn Component)> {
        self.0.iter_mut().map(|(id, component)| (id.as_str(), &mut **component as &mut dyn Component))
    }
}

/// Gives each component its state, in their order. All are quiesced; after an error none may run.
pub(super) fn load<'a>(
    components: impl Iterator<Item = (&'a str, &'a mut dyn Component)>,
    states: &States,
) -> Result<(), RestoreError> {
    let mut components: Vec<_> = components.collect();
    if let Some((id, _)) = components.iter().find(|(id, _)| !states.contains_key(*id)) {
        return Err(RestoreError::Missing((*id).to_owned()));
    }
    if let Some(id) = states.keys().find(|id| components.iter().all(|(own, _)| *own != id.as_str())) {
        return Err(RestoreError::unknown(id));
    }
    for (id, component) in &mut components {
        let state = states.get(*id).ok_or_else(|| RestoreError::Missing((*id).to_owned()))?;
        component.load(state).map_err(|source| match source {
            StateError::Host { reason, .. } => RestoreError::Processor(reason),
            source => RestoreError::Component { id: (*id).to_owned(), source },
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Sender};

    use super::*;

    /// Says what is called, and has a number as its state.
    #[derive(Debug)]
    struct Part {
        name: &'static str,
        calls: Sender<String>,
        number: u32,
    }

    /// A number that no host has.
    const LACKS_AVX: u32 = 99;

    impl Part {
        fn say(&self, what: &str) {
            self.calls.send(format!("{what} {}", self.name)).unwrap();
        }
    }

    impl Component for Part {
        fn quiesce(&mut self) {
            self.say("quiesce");
        }
        fn save(&self) -> Result<State, StateError> {
            self.say("save");
            State::new("part", 1, &self.number)
        }
        fn load(&mut self, state: &State) -> Result<(), StateError> {
            self.say("load");
            self.number = state.open("part", 1)?;
            match self.number {
                LACKS_AVX => Err(StateError::host("part", "this host lacks avx2")),
                _ => Ok(()),
            }
        }
        fn go(&mut self) {
            self.say("go");
        }
    }

    #[test]
    fn components_are_called_in_order_and_saved_and_let_go_backwards() {
        let (calls, said) = mpsc::channel();
        let mut components = Components::default();
        for (name, number) in [("memory", 1), ("vcpu0", 2), ("pci", 3)] {
            components.push(name, Part { name, calls: calls.clone(), number });
        }
        let called = || said.try_iter().collect::<Vec<_>>();
        components.quiesce();
        assert_eq!(called(), ["quiesce memory", "quiesce vcpu0", "quiesce pci"]);
        let mut states = components.save().unwrap();
        assert_eq!(called(), ["save pci", "save vcpu0", "save memory"]);
        load(components.iter_mut(), &states).unwrap();
        assert_eq!(called(), ["load memory", "load vcpu0", "load pci"]);
        components.go();
        assert_eq!(called(), ["go pci", "go vcpu0", "go memory"]);
        // What a host lacks is said as it is: which part found it does not matter.
        let lacks = State::new("part", 1, &LACKS_AVX).unwrap();
        let vcpu = states.insert("vcpu0".into(), lacks).unwrap();
        let error = load(components.iter_mut(), &states).unwrap_err();
        let sentence =
            "this host lacks avx2; restore it on a host that offers as much, or boot the machine anew";
        assert!(matches!(error, RestoreError::Processor(_)) && error.to_string() == sentence, "{error}");
        assert_eq!(called(), ["load memory", "load vcpu0"], "nothing behind it");
        states.insert("vcpu0".into(), vcpu);
        // Nothing is loaded where a component is too many or too few.
        let vda = states["pci"].clone();
        states.insert("vda\u{1b}[2J".into(), vda);
        let error = load(components.iter_mut(), &states).unwrap_err().to_string();
        assert!(error.contains("`vda\\u{1b}[2J`") && error.contains("same specification"), "{error}");
        states.retain(|id, _| id == "pci");
        let error = load(components.iter_mut(), &states).unwrap_err().to_string();
        assert!(error.contains("`memory`") && error.contains("same specification"), "{error}");
        assert!(called().is_empty());
    }
}
