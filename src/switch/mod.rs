//! The process of a virtual switch: its ports' connections, its uplinks, its requests and its end. How frames are switched is
//! the crate `vswitch`'s.
//!
//! One thread owns the switch and all ports ([`run_loop`]); the control server's threads send it messages ([`command`]).

mod accepting;
mod command;
mod commands;
mod config;
mod error;
mod info;
mod life;
mod link;
mod ports;
mod receiving;
mod refusal;
mod run_loop;
mod service;
mod socket_uplink;
#[cfg(test)]
mod tests;
mod uplink;
#[cfg(test)]
mod user_tests;
mod user_uplink;

use std::sync::Arc;

pub(crate) use command::{Commands, End};
pub(crate) use error::SwitchError;
pub(crate) use info::{Direction, PortInfo, SwitchInfo};
pub(crate) use life::Keeper;

use info::ForwardInfo;
use run_loop::SwitchLoop;
use service::SwitchService;

use crate::control::{Claim, ControlServer, Ending, Limits};
use crate::spec::{SwitchName, Uplink, UplinkLink};

/// A switch that listens.
#[derive(Debug)]
pub(crate) struct RunningSwitch {
    server: ControlServer,
    running: SwitchLoop,
    commands: Commands,
}

impl RunningSwitch {
    /// Opens the uplinks of a switch and starts to serve its socket. Returns it with warnings for the user.
    ///
    /// # Errors
    /// [`SwitchError`].
    pub(crate) fn start(
        claim: Claim,
        name: &SwitchName,
        keeper: Keeper,
        uplinks: &[Uplink],
    ) -> Result<(Self, Vec<String>), SwitchError> {
        uplink::check(uplinks)?;
        let host = |source| SwitchError::Host { name: name.clone(), source };
        let (commands, inbox) = command::channel().map_err(host)?;
        let mut running = SwitchLoop::new(name.clone(), keeper, inbox).map_err(host)?;
        let mut warnings = Vec::new();
        let networks = uplinks.iter().filter(|uplink| matches!(uplink.link, UplinkLink::User(_))).count();
        for uplink in uplinks {
            let (port, warning) = uplink::open(uplink, &running.ports, networks)?;
            running.begin(port).map_err(host)?;
            warnings.extend(warning);
        }
        let service = Arc::new(SwitchService(commands.clone()));
        let server = ControlServer::serve_requests(claim, service, Limits::DEFAULT).map_err(host)?;
        Ok((RunningSwitch { server, running, commands }, warnings))
    }

    /// The ports of the host that lead to machines.
    pub(crate) fn forwards(&self) -> Vec<ForwardInfo> {
        self.running.ports.iter().flat_map(|(_, port)| port.info().forwards).collect()
    }

    /// Ends it from another thread.
    pub(crate) fn commands(&self) -> Commands {
        self.commands.clone()
    }

    /// Switches frames until the switch ends.
    pub(crate) fn run(self) -> End {
        let RunningSwitch { server, mut running, .. } = self;
        let end = running.run();
        // Requests that come from here on are told that the switch ends.
        drop(running);
        server.finish(Ending { status: u8::from(end == End::Failed), text: end.to_string() });
        end
    }
}
