//! Every device keeps the promises of [`virtio::testing::conformance`].
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on shall stop there")]

use virtio::device::Device;
use virtio::poll::Epoll;
use virtio::testing::Guest;
use virtio::testing::conformance::{Subject, epoll};
use virtio::worker::MakePoller;

mod entropy {
    use super::*;
    use virtio::entropy::Entropy;

    struct Rng;

    impl Subject for Rng {
        type Poller = Epoll;

        fn device(&mut self) -> Box<dyn Device<Poller = Epoll>> {
            Box::new(Entropy::new("rng"))
        }

        fn poller(&self) -> MakePoller<Epoll> {
            epoll()
        }

        fn work(&mut self, guest: &mut Guest<Epoll>) {
            assert_eq!(guest.request(0, &[], &[32, 32]).0.len, 64);
        }
    }

    virtio::testing::conformance!(Rng);
}

mod balloon {
    use super::*;
    use virtio::balloon::{Balloon, BalloonControl};

    struct Rubber(BalloonControl);

    fn rubber() -> Rubber {
        Rubber(BalloonControl::new(0))
    }

    impl Subject for Rubber {
        type Poller = Epoll;

        fn device(&mut self) -> Box<dyn Device<Poller = Epoll>> {
            Box::new(Balloon::new("balloon", &self.0))
        }

        fn poller(&self) -> MakePoller<Epoll> {
            epoll()
        }

        fn work(&mut self, guest: &mut Guest<Epoll>) {
            self.work_without(0, guest);
            self.work_without(1, guest);
        }

        fn work_without(&mut self, broken: usize, guest: &mut Guest<Epoll>) {
            let queue = usize::from(broken == 0);
            let discards = guest.discards.all().len();
            guest.request(queue, &[&7u32.to_le_bytes()], &[]);
            assert_eq!(guest.discards.all().len() - discards, usize::from(queue == 0));
        }

        fn answers_at_once(&self, queue: usize) -> bool {
            // Statistics stay until new ones are wanted.
            queue != 2
        }
    }

    virtio::testing::conformance!(rubber());
}

mod net {
    use super::*;
    use virtio::net::testing::{Frame, Wire};
    use virtio::net::{Net, Offloads};

    const RX: usize = 0;
    const TX: usize = 1;
    const FRAME: [u8; 60] = [0x5a; 60];

    struct Card(Wire);

    fn card(pairs: u16) -> Card {
        Card(Wire::new(pairs, Offloads::all()))
    }

    impl Card {
        fn send(&self, guest: &mut Guest<Epoll>) {
            self.0.ends().from_guest.clear();
            guest.request(TX, &[&[0; 12], &FRAME], &[]);
            assert_eq!(self.0.ends().from_guest[0].1.bytes, FRAME);
        }

        fn receive(&self, guest: &mut Guest<Epoll>) {
            let (_, buffers) = guest.add(RX, &[], &[2048]);
            guest.kick(RX);
            self.0.give(0, [Frame { header: [0; 12], bytes: FRAME.to_vec() }]);
            let used = guest.rings[RX].wait_used();
            assert_eq!(guest.bytes(buffers[0] + 12, used.len as usize - 12), FRAME);
        }
    }

    impl Subject for Card {
        type Poller = Epoll;

        fn device(&mut self) -> Box<dyn Device<Poller = Epoll>> {
            let mac = [0xba, 0xad, 0, 0xca, 0xfe, 1];
            // What was on its way to a card that is gone is lost.
            self.0.ends().to_guest.iter_mut().for_each(|frames| frames.clear());
            Box::new(Net::new("net", mac, Box::new(self.0.clone()), 2))
        }

        fn poller(&self) -> MakePoller<Epoll> {
            epoll()
        }

        fn work(&mut self, guest: &mut Guest<Epoll>) {
            self.send(guest);
            self.receive(guest);
        }

        fn work_without(&mut self, broken: usize, guest: &mut Guest<Epoll>) {
            if broken != TX {
                self.send(guest);
            }
            if broken != RX {
                self.receive(guest);
            }
        }

        fn looks_at_once(&self, queue: usize) -> bool {
            !queue.is_multiple_of(2) || queue + 1 == self.0.ends().to_guest.len() * 2 + 1
        }

        fn provoke(&mut self, queue: usize, guest: &mut Guest<Epoll>) -> bool {
            let pair = u16::try_from(queue / 2).unwrap();
            if pair > 0 {
                // It is not in use before the driver says so, to the control queue behind the queues of all pairs.
                let [low, high] = (pair + 1).to_le_bytes();
                let control = usize::from(guest.queues()) - 1;
                assert_eq!(guest.request(control, &[&[4, 0], &[low, high]], &[1]).1, [[0]]);
            }
            // More than one buffer holds: the device goes on until its driver has no more of them.
            self.0.give(pair, (0..4).map(|_| Frame { header: [0; 12], bytes: FRAME.to_vec() }));
            true
        }

        fn burden(&mut self, queue: usize, guest: &mut Guest<Epoll>) {
            if queue == RX {
                guest.add(RX, &[], &[2048]);
                self.0.give(0, [Frame { header: [0; 12], bytes: FRAME.to_vec() }]);
            } else {
                guest.add(queue, &[&[0; 12], &FRAME], &[]);
            }
            guest.kick(queue);
        }
    }

    virtio::testing::conformance!(card(1));
    virtio::testing::conformance!(with_pairs, card(2));
}

mod console {
    use std::sync::Arc;

    use super::*;
    use devices::console::ByteQueue;
    use virtio::console::{Console, Nobody, Stream};

    const CONTROL_RX: usize = 2;
    const CONTROL_TX: usize = 3;
    const RX: usize = 4;
    const TX: usize = 5;
    const DRIVER_READY: [u8; 8] = [0, 0, 0, 0, 0, 0, 1, 0];
    const PORT_READY: [u8; 8] = [1, 0, 0, 0, 3, 0, 1, 0];
    const PORT_OPEN: [u8; 8] = [1, 0, 0, 0, 6, 0, 1, 0];

    /// The host's side of a named port.
    struct Wire {
        input: Arc<ByteQueue>,
        output: Arc<ByteQueue>,
        /// What was typed last.
        typed: u8,
    }

    fn wire() -> Wire {
        // Room for all that odd chains can bring, or they would wait.
        let [input, output] = [0; 2].map(|_| Arc::new(ByteQueue::new(64 << 20)));
        Wire { input, output, typed: 0 }
    }

    impl Wire {
        /// The last of what came.
        fn take(&self) -> Vec<u8> {
            let (mut last, mut bytes) = (Vec::new(), vec![0; 64 << 10]);
            loop {
                match self.output.try_pop(&mut bytes) {
                    0 => return last,
                    count => last = bytes[..count].to_vec(),
                }
            }
        }
    }

    impl Subject for Wire {
        type Poller = Epoll;

        fn device(&mut self) -> Box<dyn Device<Poller = Epoll>> {
            let port = Stream::new(self.input.clone(), self.output.clone()).unwrap();
            Box::new(Console::new("console", Box::new(Nobody)).with_port("port", Box::new(port)))
        }

        fn poller(&self) -> MakePoller<Epoll> {
            epoll()
        }

        fn work(&mut self, guest: &mut Guest<Epoll>) {
            self.work_without(usize::MAX, guest);
        }

        fn work_without(&mut self, broken: usize, guest: &mut Guest<Epoll>) {
            if broken != TX {
                self.take();
                guest.request(TX, &[b"to the ", b"host"], &[]);
                assert!(self.take().ends_with(b"to the host"));
            }
            if broken == CONTROL_TX {
                return;
            }
            for message in [DRIVER_READY, PORT_READY, PORT_OPEN] {
                guest.request(CONTROL_TX, &[&message], &[]);
            }
            if broken != RX {
                self.typed = self.typed.wrapping_add(1);
                self.input.push(&[self.typed]).unwrap();
                // Behind what was typed while this queue was broken.
                let (_, buffers) = guest.add(RX, &[], &[64]);
                guest.kick(RX);
                let used = guest.rings[RX].wait_used();
                let text = guest.bytes(buffers[0], used.len as usize);
                assert_eq!(text.last(), Some(&self.typed), "{text:?}");
            }
        }

        fn provoke(&mut self, queue: usize, guest: &mut Guest<Epoll>) -> bool {
            match queue {
                CONTROL_RX => {
                    guest.request(CONTROL_TX, &[&DRIVER_READY], &[]);
                }
                RX => {
                    for message in [DRIVER_READY, PORT_READY, PORT_OPEN] {
                        guest.request(CONTROL_TX, &[&message], &[]);
                    }
                    self.input.push(b"!").unwrap();
                }
                _ => return false,
            }
            true
        }

        fn looks_at_once(&self, queue: usize) -> bool {
            // Data and messages for the driver wait until there are some; so do those of a console that nobody has.
            !matches!(queue, 0 | CONTROL_RX | RX)
        }
    }

    virtio::testing::conformance!(wire());
}

mod fs {
    use super::*;
    use virtio::fs::testing::{MemoryFs, init, request};
    use virtio::fs::{Caching, Fs};

    const REQUESTS: usize = 1;

    struct Folder(MemoryFs);

    impl Subject for Folder {
        type Poller = Epoll;

        fn device(&mut self) -> Box<dyn Device<Poller = Epoll>> {
            Box::new(Fs::new("fs0", "folder", Box::new(self.0.clone())))
        }

        fn poller(&self) -> MakePoller<Epoll> {
            epoll()
        }

        fn work(&mut self, guest: &mut Guest<Epoll>) {
            self.work_without(usize::MAX, guest);
        }

        fn work_without(&mut self, broken: usize, guest: &mut Guest<Epoll>) {
            for queue in (0..=REQUESTS).filter(|queue| *queue != broken) {
                let mount = request(26, 1, 0, &init(38, 0));
                assert_eq!(guest.request(queue, &[&mount], &[80]).0.len, 80);
                let open = request(27, 2, 1, &[0; 8]);
                let (used, out) = guest.request(queue, &[&open], &[16, 16]);
                assert_eq!((used.len, out[0][4]), (32, 0));
            }
        }
    }

    virtio::testing::conformance!(Folder(MemoryFs::new(Caching::Auto)));
}
