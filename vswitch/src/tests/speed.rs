//! How many frames pass in a second of processor time: `cargo test --release -p vswitch speed -- --ignored --nocapture`.

use super::*;
use crate::Impairment;

/// Ports that take all, and only count.
struct Counting(Accepts, usize);

impl Ports for Counting {
    fn accepts(&self, _port: PortId) -> Accepts {
        self.0
    }

    fn send(&mut self, _port: PortId, _header: &[u8; HEADER_LEN], parts: &[&[u8]]) -> bool {
        self.1 += parts.iter().map(|part| part.len()).sum::<usize>();
        true
    }
}

/// Processor time of this thread, in seconds.
fn busy() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

fn measure(name: &str, ports: [PortConfig; 2], stations: u8, header: &[u8; HEADER_LEN], bytes: &[u8]) {
    const FRAMES: usize = 2_000_000;
    let frames = (FRAMES * 60 / bytes.len().max(60)).max(50_000);
    let mut switch = Switch::new(Limits::default());
    let mut out = Counting(Accepts::default(), 0);
    let [a, b] = ports.map(|config| switch.add(config).unwrap());
    let now = Instant::now();
    let mut there: Vec<_> = (0..stations).map(|_| bytes.to_vec()).collect();
    for (number, bytes) in (0..).zip(&mut there) {
        (bytes[5], bytes[11]) = (100 + number, number);
        switch.input(b, &PLAIN, &frame(BROADCAST, mac(100 + number), &[], b""), now, &mut out);
    }
    out.1 = 0;
    let began = busy();
    for number in 0..frames {
        switch.input(a, header, &there[number % there.len()], now, &mut out);
    }
    let time = busy() - began;
    let (million, gigabit) = (frames as f64 / time / 1e6, (out.1 * 8) as f64 / time / 1e9);
    println!(
        "{name}: {million:.1} million frames/s, {:.0} ns each, {gigabit:.1} Gbit/s",
        time * 1e9 / frames as f64
    );
}

#[test]
#[ignore = "it prints figures"]
fn speed_of_the_switch() {
    let plain = || [PortConfig::default(), PortConfig::default()];
    let short = frame(mac(0), mac(0), &[], &[0; 46]);
    measure("2 stations", plain(), 1, &PLAIN, &short);
    measure("200 stations", plain(), 100, &PLAIN, &short);
    let trunk = PortConfig { vlan: VlanMode::trunk_all(), ..PortConfig::default() };
    measure("to a trunk", [access(2), trunk.clone()], 1, &PLAIN, &short);
    let lossy = PortConfig { to_port: Impairment { loss_ppm: 1, ..Impairment::default() }, ..access(1) };
    measure("with loss", [access(1), lossy], 1, &PLAIN, &short);
    let large = large::Large::new(false, 64_000);
    measure("large, cut", plain(), 1, &large.header(), &large.frame());
}
