//! A machine's request for a port, and why it is refused.

use serde::{Deserialize, Serialize};

use crate::spec::{MacAddress, PortOptions};

/// Longest name of a port: those of a machine and of an interface.
const LONGEST_NAME: usize = 127;

/// The body of `POST /v1/ports`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PortRequest {
    /// The port's name; by default `MACHINE.INTERFACE`, or `port1` and so on.
    #[serde(default)]
    pub(crate) name: Option<String>,
    /// The machine, if it has a name.
    #[serde(default)]
    pub(crate) machine: Option<String>,
    /// The machine's interface.
    pub(crate) interface: String,
    /// The guest's address.
    pub(crate) mac: MacAddress,
    /// Largest packet of the interface.
    pub(crate) mtu: u16,
    /// The options of the port.
    #[serde(flatten)]
    pub(crate) options: PortOptions,
}

/// Why a request is refused: a status of HTTP, and a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(super) status: u16,
    pub(super) sentence: String,
}

impl Refusal {
    pub(super) fn new(status: u16, sentence: impl Into<String>) -> Self {
        Refusal { status, sentence: sentence.into() }
    }

    pub(super) fn ended() -> Self {
        Refusal::new(503, "the switch ends; start it again")
    }
}

impl PortRequest {
    /// The name that the port shall have, if it follows from the request.
    pub(super) fn wanted_name(&self) -> Result<Option<String>, Refusal> {
        let machine = self.machine.as_ref().map(|machine| format!("{machine}.{}", self.interface));
        let Some(name) = self.name.clone().or(machine) else { return Ok(None) };
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(allowed) {
            let rule = format!("a port's name has 1 to {LONGEST_NAME} of `A-Z a-z 0-9 . _ -`");
            return Err(Refusal::new(400, rule));
        }
        Ok(Some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_is_read_with_the_options_of_the_port_beside_the_rest() {
        let text = r#"{"machine":"vm0","interface":"net0","mac":"02:00:00:00:00:01","mtu":1500,"vlan":2,"delay":"20ms"}"#;
        let request: PortRequest = serde_json::from_str(text).unwrap();
        assert_eq!(request.wanted_name().unwrap().as_deref(), Some("vm0.net0"));
        assert_eq!(request.options.vlan.unwrap().get(), 2);
        assert_eq!(
            serde_json::from_str::<PortRequest>(&serde_json::to_string(&request).unwrap()).unwrap(),
            request
        );
        let unnamed = PortRequest { machine: None, ..request.clone() };
        assert_eq!(unnamed.wanted_name(), Ok(None));
        for name in ["", "a b", "\u{1b}[2J", &"x".repeat(128)] {
            let named = PortRequest { name: Some(name.into()), ..request.clone() };
            assert_eq!(named.wanted_name().unwrap_err().status, 400, "{name}");
        }
    }
}
