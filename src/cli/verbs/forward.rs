//! `minivmm forward`: ports of the host that lead to a machine's guest.

use serde_json::Value;

use super::show::listing;
use super::{ACTION_LIMIT, ForwardArgs, MachineClient, VerbError};
use crate::control::net_routes::{ONLY, forward_body};
use crate::spec::{NetId, PortForward};

/// Lists, adds or removes. What is printed then, if anything.
pub(super) fn forward(args: &ForwardArgs) -> Result<Option<String>, VerbError> {
    let client = MachineClient::find(&args.name)?;
    let (method, forward) = match (&args.add, &args.remove) {
        (Some(forward), _) => ("POST", forward),
        (None, Some(forward)) => ("DELETE", forward),
        (None, None) => return list(&client, args).map(Some),
    };
    let bound = change(&client, method, args.net.as_ref(), *forward)?;
    match (args.json, method) {
        (true, _) => Ok(Some(serde_json::to_string_pretty(&bound)?)),
        (false, "POST") => Ok(Some(line(&bound))),
        (false, _) => Ok(None),
    }
}

fn change(
    client: &MachineClient,
    method: &str,
    net: Option<&NetId>,
    forward: PortForward,
) -> Result<Value, VerbError> {
    client.send(method, &path_of(net.map_or(ONLY, NetId::as_str)), Some(&forward_body(forward)), ACTION_LIMIT)
}

/// Where the forwards of an interface are among a machine's resources.
fn path_of(net: &str) -> String {
    format!("/v1/nets/{net}/forwards")
}

fn list(client: &MachineClient, args: &ForwardArgs) -> Result<String, VerbError> {
    let path = args.net.as_ref().map_or_else(|| "/v1/forwards".into(), |net| path_of(net.as_str()));
    let answer = client.get(&path)?;
    if args.json {
        return Ok(serde_json::to_string_pretty(&answer)?);
    }
    Ok(table(answer.as_array().map(Vec::as_slice).unwrap_or_default()))
}

/// One forward for each line, below headings.
fn table(forwards: &[Value]) -> String {
    let rows = forwards.iter().map(|bound| {
        let Parts { guest, protocol } = parts(bound);
        vec![text(bound, "net"), text(bound, "address"), guest, protocol]
    });
    listing(["NET", "HOST", "GUEST", "PROTOCOL"], rows)
}

fn line(bound: &Value) -> String {
    let Parts { guest, protocol } = parts(bound);
    format!("{} to port {guest} of the guest, {protocol}", text(bound, "address"))
}

/// The guest's side of a forward.
struct Parts {
    guest: String,
    protocol: String,
}

fn parts(bound: &Value) -> Parts {
    // A machine of another version may say more than this one knows.
    match text(bound, "forward").parse::<PortForward>() {
        Ok(PortForward { guest, protocol, .. }) => {
            Parts { guest: guest.to_string(), protocol: protocol.to_string() }
        }
        Err(_) => Parts { guest: "-".into(), protocol: "-".into() },
    }
}

fn text(bound: &Value, key: &str) -> String {
    bound.get(key).and_then(Value::as_str).unwrap_or("-").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn forwards_are_listed_with_the_port_that_the_host_gave() {
        let forwards = [
            json!({ "net": "net0", "forward": "0:22", "address": "127.0.0.1:40001" }),
            json!({ "net": "lan", "forward": "[::1]:5353:53/udp", "address": "[::1]:5353" }),
            json!({ "forward": "of the future" }),
        ];
        let expected = "\
NET   HOST             GUEST  PROTOCOL
net0  127.0.0.1:40001  22     tcp
lan   [::1]:5353       53     udp
-     -                -      -";
        assert_eq!(table(&forwards), expected);
        assert_eq!(line(&forwards[0]), "127.0.0.1:40001 to port 22 of the guest, tcp");
    }
}
