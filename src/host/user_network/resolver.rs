//! The host's name server, as /etc/resolv.conf names it now.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::SystemTime;

const DNS: u16 = 53;
/// The file (resolv.conf(5)).
pub(super) const PATH: &str = "/etc/resolv.conf";

/// Reads the file again when it has changed: a laptop changes its network while machines run.
#[derive(Debug)]
pub(super) struct Resolver {
    path: PathBuf,
    modified: Option<SystemTime>,
    server: Option<SocketAddr>,
}

impl Default for Resolver {
    fn default() -> Self {
        Resolver::new(PATH.into())
    }
}

impl Resolver {
    fn new(path: PathBuf) -> Self {
        Resolver { path, modified: None, server: None }
    }

    /// The first name server.
    pub(super) fn server(&mut self) -> Option<SocketAddr> {
        let modified = fs::metadata(&self.path).and_then(|metadata| metadata.modified()).ok();
        if modified.is_none() || modified != self.modified {
            self.server = fs::read_to_string(&self.path).ok().as_deref().and_then(first_server);
            self.modified = modified;
        }
        self.server
    }
}

/// The first `nameserver` that can be reached without naming an interface.
fn first_server(text: &str) -> Option<SocketAddr> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let address: IpAddr = match words.next() {
            Some("nameserver") => words.next()?.parse().ok()?,
            _ => return None,
        };
        Some(SocketAddr::new(address, DNS))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_usable_name_server_is_taken() {
        let text = "# nameserver 1.1.1.1\nsearch lan\nnameserver fe80::1%eth0\nnameserver\t127.0.0.53 # stub\nnameserver 9.9.9.9\n";
        assert_eq!(first_server(text), Some(SocketAddr::from(([127, 0, 0, 53], 53))));
        assert_eq!(first_server("nameserver ::1\n").unwrap().to_string(), "[::1]:53");
        assert_eq!(first_server("domain lan\nnameserver\nnameserver x\n"), None);
    }

    #[test]
    fn file_that_changes_or_goes_away_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let mut resolver = Resolver::new(path.clone());
        assert_eq!(resolver.server(), None);
        let write = |address: &str, seconds| {
            fs::write(&path, format!("nameserver {address}\n")).unwrap();
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        };
        write("9.9.9.9", 1000);
        assert_eq!(resolver.server().unwrap().to_string(), "9.9.9.9:53");
        write("1.1.1.1", 2000);
        assert_eq!(resolver.server().unwrap().to_string(), "1.1.1.1:53");
        fs::remove_file(&path).unwrap();
        assert_eq!(resolver.server(), None);
    }
}
