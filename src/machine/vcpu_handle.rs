//! A vCPU as a component while its thread has it: the thread itself saves it, when it rests at the gate.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use devices::component::{Component, State, StateError};

use super::gate::VcpuGate;
use crate::kvm::vcpu::Vcpu;

const KIND: &str = "vcpu";

/// A resting vCPU is asked for its state.
type Request = Sender<Result<State, StateError>>;

/// See the module. The gate brings all vCPUs to rest together, and lets them go together: that is not this component's.
#[derive(Debug)]
pub(super) struct VcpuHandle {
    requests: Sender<Request>,
    gate: Arc<VcpuGate>,
}

/// The thread's end of a [`VcpuHandle`].
#[derive(Debug)]
pub(super) struct VcpuRequests(Receiver<Request>);

impl VcpuHandle {
    pub(super) fn new(gate: Arc<VcpuGate>) -> (Self, VcpuRequests) {
        let (requests, receiver) = mpsc::channel();
        (VcpuHandle { requests, gate }, VcpuRequests(receiver))
    }
}

impl Component for VcpuHandle {
    fn save(&self) -> Result<State, StateError> {
        if self.gate.is_open() {
            return Err(StateError::Running { kind: KIND });
        }
        let gone = || StateError::refused(KIND, "its thread has ended");
        let (answer, answered) = mpsc::channel();
        self.requests.send(answer).map_err(|_| gone())?;
        self.gate.call_resting();
        // A thread that ends drops what it was asked for, and the answer's sender with it.
        answered.recv().map_err(|_| gone())?
    }

    /// Refused: a state is loaded before a vCPU has its thread (see [`super::parts`]).
    fn load(&mut self, _: &State) -> Result<(), StateError> {
        Err(StateError::Running { kind: KIND })
    }
}

impl VcpuRequests {
    /// Does what was asked for. `unfinished`: the guest was left in the midst of an instruction that KVM keeps a part of.
    pub(super) fn serve(&self, vcpu: &Vcpu, unfinished: bool) {
        for answer in self.0.try_iter() {
            let reason =
                "an instruction of the guest accesses devices without end; let it go on, and save again";
            let state = if unfinished { Err(StateError::refused(KIND, reason)) } else { vcpu.save() };
            // A caller that does not wait any more has dropped its receiver.
            let _ = answer.send(state);
        }
    }
}
