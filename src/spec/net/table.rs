//! A network interface as a table of a file: the kind is a key, and the options stand beside it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{InterfaceName, MacAddress, Mtu, NetId, NetLink, NetSpec, PortTable, SwitchName, UserNet};
use crate::spec::words::DeviceError;

#[derive(Default, Serialize, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    rename_all = "kebab-case",
    expecting = "a table such as `{ tap = \"tap2\" }`"
)]
pub(super) struct Table {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<UserNet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tap: Option<InterfaceName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket: Option<PathBuf>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    listen: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    dgram: Option<Dgram>,
    #[serde(skip_serializing_if = "Option::is_none")]
    switch: Option<SwitchName>,
    /// Of a switch; unknown keys are left to this struct, which denies them.
    #[serde(flatten)]
    port: PortTable,
    #[serde(skip_serializing_if = "Option::is_none")]
    none: Option<Nothing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<MacAddress>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<Mtu>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pcap: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<NetId>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table such as `{ local = \"a.sock\", remote = \"b.sock\" }`")]
struct Dgram {
    local: PathBuf,
    remote: PathBuf,
}

/// An empty table.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "the empty table `{}`")]
struct Nothing {}

impl TryFrom<Table> for NetSpec {
    type Error = DeviceError;

    fn try_from(table: Table) -> Result<Self, DeviceError> {
        let Table { user, tap, socket, listen, dgram, switch, port, none, mac, mtu, pcap, id } = table;
        let socket = socket.map(|path| NetLink::Socket { path, listen });
        let has_listen = socket.is_some();
        let has_port = switch.is_some();
        let has_options = port != PortTable::default();
        let port = port.try_into()?;
        let kinds = [
            user.map(NetLink::User),
            tap.map(NetLink::Tap),
            socket,
            dgram.map(|Dgram { local, remote }| NetLink::Dgram { local, remote }),
            switch.map(|name| NetLink::Switch { name, port }),
            none.map(|_| NetLink::None),
        ];
        let mut kinds = kinds.into_iter().flatten();
        let (Some(link), None) = (kinds.next(), kinds.next()) else { return Err(DeviceError::NetKinds) };
        let (paths, name) = match &link {
            NetLink::Socket { path, .. } => ([Some(path), None], "socket"),
            NetLink::Dgram { local, remote } => ([Some(local), Some(remote)], "dgram"),
            _ => ([None, pcap.as_ref()], "pcap"),
        };
        if paths.into_iter().flatten().any(|path| path.as_os_str().is_empty()) {
            return Err(DeviceError::EmptyPath(name));
        }
        let net = NetSpec { link, mac, mtu, pcap, id };
        if listen && !has_listen {
            return Err(DeviceError::Listen);
        }
        if has_options && !has_port {
            return Err(DeviceError::PortOptions);
        }
        if net.link == NetLink::None && net != NetSpec::none() {
            return Err(DeviceError::NoOptions("another key".into()));
        }
        Ok(net)
    }
}

impl From<NetSpec> for Table {
    fn from(net: NetSpec) -> Self {
        let NetSpec { link, mac, mtu, pcap, id } = net;
        let common = Table { mac, mtu, pcap, id, ..Table::default() };
        match link {
            NetLink::User(user) => Table { user: Some(user), ..common },
            NetLink::Tap(name) => Table { tap: Some(name), ..common },
            NetLink::Socket { path, listen } => Table { socket: Some(path), listen, ..common },
            NetLink::Dgram { local, remote } => Table { dgram: Some(Dgram { local, remote }), ..common },
            NetLink::Switch { name, port } => Table { switch: Some(name), port: port.into(), ..common },
            NetLink::None => Table { none: Some(Nothing {}), ..common },
        }
    }
}

/// The two paths of `LOCAL:REMOTE`.
pub(super) fn pair(text: &OsStr) -> Result<(PathBuf, PathBuf), DeviceError> {
    let mut parts = text.as_bytes().split(|byte| *byte == b':').map(|part| OsString::from_vec(part.to_vec()));
    match (parts.next(), parts.next(), parts.next()) {
        (Some(local), Some(remote), None) if !local.is_empty() && !remote.is_empty() => {
            Ok((local.into(), remote.into()))
        }
        _ => Err(DeviceError::Dgram(text.to_string_lossy().into_owned())),
    }
}
