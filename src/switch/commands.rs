//! What the loop does for other threads.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use vmm_sys_util::epoll::EventSet;
use vswitch::PortId;

use super::command::{Command, End, Reserved};
use super::config;
use super::info::{PortKind, StationInfo, SwitchInfo, mac_text};
use super::link::Link;
use super::ports::Port;
use super::refusal::Refusal;
use super::run_loop::SwitchLoop;
use crate::host::capture::{CaptureLimits, CaptureStream, Refused};
use crate::host::frame_link::{FrameStream, Framing};
use crate::host::switch_port::PortRequest;
use crate::spec::PortOptions;

impl SwitchLoop {
    /// Carries out a message.
    pub(super) fn command(&mut self, command: Command) -> Option<End> {
        // The sender may have timed out and dropped the receiver.
        match command {
            Command::Show(answer) => drop(answer.send(self.info())),
            Command::Reserve(request, answer) => {
                let reserved = self.reserve(request);
                if reserved.is_err() {
                    self.life.refused();
                }
                let ticket = reserved.as_ref().ok().map(|reserved| reserved.ticket);
                if answer.send(reserved).is_err() {
                    ticket.map(|ticket| self.reserved.remove(&ticket));
                }
            }
            Command::Attach(ticket, stream, begun) => self.attach(ticket, stream, begun),
            Command::Release(ticket) => drop(self.reserved.remove(&ticket)),
            Command::Set { port, change, answer } => drop(answer.send(self.set(&port, &change))),
            Command::Capture { port, limits, answer } => drop(answer.send(self.capture(&port, limits))),
            Command::Hold(answer) => {
                self.life.hold(Instant::now());
                let _ = answer.send(());
            }
            Command::Stop(end) => return Some(end),
        }
        None
    }

    fn info(&self) -> SwitchInfo {
        let counted: BTreeMap<PortId, _> = self.switch.ports().map(|port| (port.id, port)).collect();
        let ports = self.ports.iter().map(|(_, port)| {
            let mut info = port.info();
            if let Some(counted) = port.id.and_then(|id| counted.get(&id)) {
                info.count(&counted.counters, counted.waiting);
            }
            info
        });
        let leases: BTreeMap<_, _> = self.ports.iter().flat_map(|(_, port)| port.leases()).collect();
        let stations = self.switch.table(Instant::now()).filter_map(|station| {
            let port = self.ports.by_id(station.port)?.name.clone();
            let (vlan, age) = (station.vlan.get(), station.age.as_secs());
            let ip = leases.get(&station.mac).copied();
            Some(StationInfo { vlan, mac: mac_text(station.mac), port, age, ip })
        });
        let mut info = SwitchInfo {
            name: self.name.to_string(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime: self.started.elapsed().as_secs_f64(),
            kept: self.life.is_kept(),
            ports: ports.collect(),
            table: stations.collect(),
        };
        info.ports.sort_by_key(|port| (port.machine.is_some() || port.mac.is_some(), port.name.clone()));
        info.table.sort_by_key(|station| (station.vlan, station.mac.clone()));
        info
    }

    /// A place for a port with a name and an address of its own.
    pub(super) fn reserve(&mut self, request: PortRequest) -> Result<Reserved, Refusal> {
        config::port_config(PortKind::Machine, &request.options, Some(request.mac))
            .map_err(|error| Refusal::new(400, error.to_string()))?;
        let same_mac = |port: &Port| port.mac == Some(request.mac);
        let wanted = request.machine.as_ref().map(|machine| format!("{machine}.{}", request.interface));
        let same_name = |name: &str| wanted.as_deref() == Some(name);
        let rivals: Vec<_> = self
            .ports
            .iter()
            .filter(|(_, port)| same_mac(port) || same_name(&port.name))
            .map(|(slot, _)| slot)
            .collect();
        for slot in rivals {
            let _ = self.close_if_gone(slot);
        }
        self.room()?;
        let names = |wanted: &str| {
            self.ports.iter().any(|(_, port)| port.name == wanted)
                || self.reserved.values().any(|(name, _)| name == wanted)
        };
        let name = match wanted {
            Some(name) if names(&name) => {
                let sentence = format!(
                    "the switch {} has a port {name} already; give the machine another name with `--name`, or its \
                     interface with `id=`",
                    self.name
                );
                return Err(Refusal::new(409, sentence));
            }
            Some(name) => name,
            None => (1..=u32::MAX)
                .map(|number| format!("port{number}"))
                .find(|name| !names(name))
                .unwrap_or_default(),
        };
        let reserved = self.reserved.values().find(|(_, other)| other.mac == request.mac);
        let rival = self.ports.iter().find(|(_, port)| same_mac(port)).map(|(_, port)| &port.name);
        if let Some(rival) = rival.or(reserved.map(|(name, _)| name)) {
            let sentence = format!(
                "port {rival} of the switch {} has the address {} already; give the machine a name of its own with \
                 `--name`, or the interface an address with `mac=`",
                self.name, request.mac
            );
            return Err(Refusal::new(409, sentence));
        }
        self.next_ticket += 1;
        self.reserved.insert(self.next_ticket, (name.clone(), request));
        Ok(Reserved { ticket: self.next_ticket, name })
    }

    /// Whether one more port may come.
    fn room(&mut self) -> Result<(), Refusal> {
        let is_full =
            |switch: &Self| switch.ports.iter().count() + switch.reserved.len() >= switch.most_ports;
        if is_full(self) {
            let slots: Vec<_> = self.ports.iter().map(|(slot, _)| slot).collect();
            for slot in slots {
                let _ = self.close_if_gone(slot);
            }
        }
        if is_full(self) {
            let sentence = format!(
                "the switch {} has {} ports already, as many as there may be; end a machine, or start another switch",
                self.name, self.most_ports
            );
            return Err(Refusal::new(503, sentence));
        }
        Ok(())
    }

    /// The connection of a reserved port is there.
    fn attach(&mut self, ticket: u64, stream: UnixStream, begun: Vec<u8>) {
        let Some((name, request)) = self.reserved.remove(&ticket) else { return };
        let has_begun = !begun.is_empty();
        let attached = FrameStream::new(stream, Framing::Header, begun).and_then(|stream| {
            let mut port = Port::new(name.clone(), Link::Machine(stream), request.options);
            port.machine = request.machine.map(|name| name.to_string());
            (port.interface, port.mac) = (Some(request.interface.to_string()), Some(request.mac));
            self.begin(port)
        });
        match attached {
            Ok(slot) => {
                self.life.arrived();
                if has_begun {
                    self.serve(slot, EventSet::IN);
                }
            }
            Err(error) => log::warn!("port {name} cannot be attached: {error}"),
        }
    }

    /// The port of this name, with its slot.
    fn port(&self, name: &str) -> Result<(usize, &Port), Refusal> {
        self.ports.iter().find(|(_, port)| port.name == name).ok_or_else(|| {
            let mut names: Vec<_> = self.ports.iter().map(|(_, port)| port.name.as_str()).collect();
            names.sort_unstable();
            let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let sentence = format!("the switch {} has no port {name}; its ports are: {there}", self.name);
            Refusal::new(404, sentence)
        })
    }

    fn capture(&self, name: &str, limits: CaptureLimits) -> Result<CaptureStream, Refusal> {
        let (_, port) = self.port(name)?;
        port.point.stream(name, limits).map_err(|refused| match refused {
            Refused::TooMany(count) => {
                let sentence = format!(
                    "{count} captures of port {name} are in progress already, as many as there may be; end one of them"
                );
                Refusal::new(503, sentence)
            }
            Refused::Closed => Refusal::new(404, format!("port {name} has gone")),
        })
    }

    fn set(&mut self, name: &str, change: &PortOptions) -> Result<(), Refusal> {
        let (slot, port) = self.port(name)?;
        let (mut options, id, kind) = (port.options.clone(), port.id, port.link.kind());
        options.apply(change);
        let config = config::port_config(kind, &options, port.mac);
        let config = config.map_err(|error| Refusal::new(400, error.to_string()))?;
        if let Some(id) = id {
            self.switch.set(id, config);
        }
        if let Some(port) = self.ports.get_mut(slot) {
            port.options = options;
        }
        Ok(())
    }
}
