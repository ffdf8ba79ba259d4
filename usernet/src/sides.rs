//! Who began a conversation: the guest, or somebody outside through a forward. Each side has a share of every limit, so that
//! neither can shut the other out.

/// Who began a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The guest.
    Guest,
    /// A peer that came in by a forward.
    Outside,
}

/// Conversations of each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sides {
    guest: usize,
    outside: usize,
}

impl Sides {
    /// Those of one side.
    pub(crate) fn of(&self, side: Side) -> usize {
        match side {
            Side::Guest => self.guest,
            Side::Outside => self.outside,
        }
    }

    /// One more.
    pub(crate) fn add(&mut self, side: Side) {
        *self.of_mut(side) += 1;
    }

    /// One less.
    pub(crate) fn remove(&mut self, side: Side) {
        *self.of_mut(side) -= 1;
    }

    /// All of them.
    pub(crate) fn total(&self) -> usize {
        self.guest + self.outside
    }

    fn of_mut(&mut self, side: Side) -> &mut usize {
        match side {
            Side::Guest => &mut self.guest,
            Side::Outside => &mut self.outside,
        }
    }
}

/// The most that one side may have where both together may have `limit`: a quarter is left to the other.
pub(crate) fn share(limit: usize) -> usize {
    limit - limit / 4
}
