//! A vCPU as a component while its thread has it: the thread itself saves and loads it, when it rests at the gate.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use devices::component::{Component, State, StateError};

use super::gate::VcpuGate;
use crate::kvm::vcpu::Vcpu;

const KIND: &str = "vcpu";

/// What a resting vCPU is asked for.
#[derive(Debug)]
enum Request {
    Save(Sender<Result<State, StateError>>),
    Load(Box<State>, Sender<Result<(), StateError>>),
}

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

    fn ask<T>(
        &self,
        request: impl FnOnce(Sender<Result<T, StateError>>) -> Request,
    ) -> Result<T, StateError> {
        if self.gate.is_open() {
            return Err(StateError::Running { kind: KIND });
        }
        let gone = || StateError::refused(KIND, "its thread has ended");
        let (answer, answered) = mpsc::channel();
        self.requests.send(request(answer)).map_err(|_| gone())?;
        self.gate.call_resting();
        // A thread that ends drops what it was asked for, and the answer's sender with it.
        answered.recv().map_err(|_| gone())?
    }
}

impl Component for VcpuHandle {
    fn save(&self) -> Result<State, StateError> {
        self.ask(Request::Save)
    }

    fn load(&mut self, state: &State) -> Result<(), StateError> {
        self.ask(|answer| Request::Load(Box::new(state.clone()), answer))
    }
}

impl VcpuRequests {
    /// Does what was asked for. `unfinished`: the guest was left in the midst of an instruction that KVM keeps a part of.
    pub(super) fn serve(&self, vcpu: &mut Vcpu, unfinished: bool) {
        for request in self.0.try_iter() {
            // A caller that does not wait any more has dropped its receiver.
            match request {
                Request::Save(answer) if unfinished => {
                    let reason = "an instruction of the guest accesses devices without end; let it go on, and save again";
                    let _ = answer.send(Err(StateError::refused(KIND, reason)));
                }
                Request::Save(answer) => drop(answer.send(vcpu.save())),
                Request::Load(state, answer) => drop(answer.send(vcpu.load(&state))),
            }
        }
    }
}
