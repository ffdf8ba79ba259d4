//! A write or a sync of a commit fails, the commit is tried again, and the power is cut in all of that.

use super::*;

/// What fails of a commit.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Write(usize),
    Barrier(usize),
}

/// An image at `start`; then a commit that failed, another one that brought the same and more to the medium, and one more.
struct Retried {
    rig: Rig,
    start: Vec<u8>,
    /// The models before, and after each commit, and the number of events by then.
    committed: Vec<(usize, Vec<u8>)>,
}

impl Retried {
    /// `None` if the commit has less to write than what is to fail.
    fn new(cluster: u32, fault: Fault) -> Option<Self> {
        let mut rig = Rig::new(cluster, 29);
        (0..20).for_each(|_| rig.write());
        rig.commit();
        let start = fs::read(&rig.path).unwrap();
        let mut committed = vec![(0, rig.model.clone())];
        lock(&rig.held_writes().log).clear();
        (0..20).for_each(|_| rig.write());
        match fault {
            Fault::Write(number) => *lock(&rig.held_writes().write_fails) = Some((number, libc::EIO)),
            Fault::Barrier(number) => *lock(&rig.held_writes().fails) = Some((number, libc::EIO)),
        }
        rig.try_commit().err()?;
        for _ in 0..2 {
            (0..4).for_each(|_| rig.write());
            rig.commit();
            committed.push((lock(&rig.held_writes().log).len(), rig.model.clone()));
        }
        Some(Retried { rig, start, committed })
    }

    fn assert_cuts(mut self, fault: Fault, times: u64) {
        let events = lock(&self.rig.held_writes().log).clone();
        let is_end =
            |(index, event): (usize, &Event)| matches!(event, Event::Barrier | Event::Lost).then_some(index);
        let mut cuts: Vec<usize> = events.iter().enumerate().filter_map(is_end).collect();
        cuts.push(events.len());
        for time in 0..times {
            let cut =
                if time == 0 { events.len() } else { cuts[self.rig.dice.below(cuts.len() as u64) as usize] };
            // The data of a sync that failed are lost for good: what was there before them is left.
            let from = match fault {
                Fault::Write(_) => self.committed.iter().rposition(|(events, _)| *events <= cut).unwrap(),
                Fault::Barrier(_) => 0,
            };
            let models: Vec<Vec<u8>> =
                self.committed[from..].iter().map(|(_, model)| model.clone()).collect();
            println!("{fault:?}, cut after {cut} of {} events", events.len());
            self.rig.assert_cut(&self.start, &events[..cut], models.iter());
        }
    }
}

#[test]
fn a_commit_of_which_a_write_or_a_sync_failed_is_made_good_by_the_next() {
    let soak = std::env::var("MINIVMM_SOAK").is_ok_and(|soak| soak == "1");
    let (cuts, step) = if soak { (20, 1) } else { (2, 4) };
    for cluster in [512, 65536] {
        let faults: [fn(usize) -> Fault; 2] = [Fault::Write, Fault::Barrier];
        for (fault, step) in faults.into_iter().zip([step, 1]) {
            let mut tried = 0;
            for number in (0..).step_by(step) {
                let Some(retried) = Retried::new(cluster, fault(number)) else { break };
                retried.assert_cuts(fault(number), cuts);
                tried += 1;
            }
            assert!(tried > 1, "clusters of {cluster} bytes: {:?} {tried}", fault(0));
        }
    }
}
