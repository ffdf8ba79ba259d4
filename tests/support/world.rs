//! The rest of the world, for a guest that reaches it through its host: a network namespace in the lab, with names, a mirror of
//! packages, servers, and networks to which no way leads. What listens on its loopback is the host's own.

use std::time::Duration;

use lab::{Cmd, Lab, Process, Status};

/// Commands stand behind it. `ip netns exec` puts its own resolv.conf in place of the host's.
pub(crate) const INSIDE: &str = "ip netns exec world";
/// An address that is the world's, and not its loopback's.
pub(crate) const FAR: &str = "192.0.2.1";
pub(crate) const FAR6: &str = "2001:db8::1";
/// The ends of connections, for both sides.
pub(crate) const PEERS: &str = include_str!("peers.pl");

const SETUP: &str = "\
    mkdir -p /etc/netns/world && echo nameserver 127.0.0.53 >/etc/netns/world/resolv.conf && ip netns add world && \
    ip netns exec world sh -ec '\
        ip link set lo up; ip addr add 192.0.2.1/32 dev lo; ip addr add 2001:db8::1/128 dev lo; \
        ip route add default dev lo; ip route add unreachable 203.0.113.0/24; ip route add unreachable 2001:db8:1::/48; \
        sysctl -q -w net.ipv4.ping_group_range=\"0 2147483647\"'";

/// A flat repository with one package: a word, and bytes that no compression helps. A package is an `ar` of two archives.
const MIRROR: &str = r#"
    mkdir -p mirror package/control package/usr/share/word && cd package
    echo installed >usr/share/word/word; head -c BYTES /dev/urandom >usr/share/word/block
    printf 'Package: word\nVersion: 1.0\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: A word\n' >control/control
    tar -C control -czf control.tar.gz ./control; tar -cf data.tar ./usr; echo 2.0 >debian-binary
    {
        printf '!<arch>\n'
        for file in debian-binary control.tar.gz data.tar; do
            size=$(wc -c <$file)
            printf '%-16s%-12s%-6s%-6s%-8s%-10s`\n' $file 0 0 0 100644 $size
            cat $file; [ $((size % 2)) = 0 ] || echo
        done
    } >../mirror/word.deb
    cat control/control >../mirror/Packages
    cd ../mirror
    printf 'Filename: ./word.deb\nSize: %s\nSHA256: %s\n' $(wc -c <word.deb) $(sha256sum word.deb | cut -d' ' -f1) >>Packages
"#;

/// The namespace and its servers; gone with this value.
#[derive(Debug)]
pub(crate) struct World {
    lab: &'static Lab,
    servers: Process,
}

impl World {
    /// `block` bytes are in the file `block` of the mirror's package.
    #[track_caller]
    pub(crate) fn new(lab: &'static Lab, block: u64) -> Self {
        lab.sh(SETUP).unwrap();
        lab.put("peers.pl", PEERS.as_bytes()).unwrap();
        lab.sh(&MIRROR.replace("BYTES", &block.to_string())).unwrap();
        lab.sh(&format!("{INSIDE} busybox httpd -p 127.0.0.1:8000 -h mirror")).unwrap();
        let line = format!("ulimit -n 4096; exec {INSIDE} perl peers.pl host 127.0.0.1 {FAR6}");
        let mut servers = lab.spawn(&Cmd::sh(line)).unwrap();
        servers.expect("serves", Duration::from_secs(90)).unwrap();
        World { lab, servers }
    }

    /// Runs a shell line in it, which must succeed; returns its output.
    #[track_caller]
    pub(crate) fn sh(&self, line: &str, limit: Duration) -> String {
        let script = line.replace('\'', "'\\''");
        let out = self.lab.exec(&Cmd::sh(format!("{INSIDE} sh -c '{script}'")).limit(limit)).unwrap();
        assert_eq!(out.status, Status::Exited(0), "{line}: {}{}", out.text(), out.err_text());
        out.text()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.servers.signal(15));
        let line =
            "kill $(ip netns pids world); ip netns del world; rm -r /etc/netns/world mirror package peers.pl";
        drop(self.lab.sh(line));
    }
}
