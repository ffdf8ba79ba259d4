//! Queues that a driver describes wrongly.

use super::{RING, Subject, guest};
use crate::queue::QueueConfig;

/// Bytes of the guest's memory.
const END: u64 = 16 << 20;

/// Every bad size and place on every queue: DEVICE_NEEDS_RESET, the other queues work, and all after a reset.
pub fn bad_rings<S: Subject>(subject: &mut S) {
    let mut guest = guest(subject);
    let size = u64::from(RING);
    let sizes = [0, 3, 65535, 0x8000].map(|size| (size, None, None, None));
    let descriptors = [END - 16 * (size - 1), END, u64::MAX - 15, 1 << 52, 0x1008];
    let drivers = [END - 4 - 2 * size, END, u64::MAX - 1, 0x4001];
    let devices = [END - 4 - 8 * size, END, u64::MAX - 3, 0x5002];
    let cases: Vec<_> = sizes
        .into_iter()
        .chain(descriptors.map(|bad| (RING, Some(bad), None, None)))
        .chain(drivers.map(|bad| (RING, None, Some(bad), None)))
        .chain(devices.map(|bad| (RING, None, None, Some(bad))))
        .collect();
    for broken in 0..guest.queues() {
        for case in &cases {
            guest.negotiate(subject.wanted());
            let (told, failures) = (guest.config_interrupts(), guest.failures.count());
            guest.activate_with(RING, |queue, config: &mut QueueConfig| {
                let (size, descriptors, driver, device) = *case;
                if queue == broken {
                    config.size = size;
                    config.descriptors = descriptors.unwrap_or(config.descriptors);
                    config.driver = driver.unwrap_or(config.driver);
                    config.device = device.unwrap_or(config.device);
                }
            });
            assert_eq!(guest.status(), 0x4f, "queue {broken} is refused: {case:x?}");
            assert!(guest.config_interrupts() > told, "and it is said");
            assert_eq!(guest.failures.count(), failures + 1, "to the machine too");
            guest.kick(broken.into());
            subject.work_without(broken.into(), &mut guest);
        }
    }
    guest.start(subject.wanted(), RING);
    subject.work(&mut guest);
}
