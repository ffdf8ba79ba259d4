//! Shares of a limit: who began a conversation, and whose it is. Neither a side nor a guest can shut the others out.

/// Who began a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The guest.
    Guest,
    /// A peer that came in by a forward.
    Outside,
}

/// A guest, as limits count it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct GuestId(pub(crate) u16);

impl GuestId {
    /// The guest of a network of its own; in a shared network whoever is not known yet.
    pub(crate) const FIRST: Self = GuestId(0);

    fn index(self) -> usize {
        self.0.into()
    }
}

/// Conversations of each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Sides {
    guest: usize,
    outside: usize,
}

impl Sides {
    fn of(&self, side: Side) -> usize {
        match side {
            Side::Guest => self.guest,
            Side::Outside => self.outside,
        }
    }

    fn of_mut(&mut self, side: Side) -> &mut usize {
        match side {
            Side::Guest => &mut self.guest,
            Side::Outside => &mut self.outside,
        }
    }

    fn total(&self) -> usize {
        self.guest + self.outside
    }
}

/// Conversations of all guests.
///
/// One guest may have three quarters of a limit, and its peers from outside as well. Several guests share it by what is free: each
/// may have as many as are left for the others. So one that takes all it can has half, two have a third each, and there is
/// always something left for the next.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    all: Sides,
    each: PerGuest<Sides>,
}

impl Shares {
    /// None yet, of so many guests.
    pub(crate) fn new(guests: u16) -> Self {
        Shares { all: Sides::default(), each: PerGuest::new(guests) }
    }

    /// Whether one side of a guest may have one more of `limit` for all.
    pub(crate) fn has_room(&self, guest: GuestId, side: Side, limit: usize) -> bool {
        let total = self.all.total();
        match self.each.own(guest) {
            None => total < limit && self.all.of(side) < limit - limit / 4,
            Some(own) => own.of(side) < limit.saturating_sub(total),
        }
    }

    /// Whether one side of a guest may have one more of `limit` for this side.
    pub(crate) fn side_has_room(&self, guest: GuestId, side: Side, limit: usize) -> bool {
        let taken = self.all.of(side);
        match self.each.own(guest) {
            None => taken < limit,
            Some(own) => own.of(side) < limit.saturating_sub(taken),
        }
    }

    /// All of them.
    #[cfg(test)]
    pub(crate) fn total(&self) -> usize {
        self.all.total()
    }

    /// One more.
    pub(crate) fn add(&mut self, guest: GuestId, side: Side) {
        self.change(guest, |sides| *sides.of_mut(side) += 1);
    }

    /// One less.
    pub(crate) fn remove(&mut self, guest: GuestId, side: Side) {
        self.change(guest, |sides| *sides.of_mut(side) -= 1);
    }

    fn change(&mut self, guest: GuestId, change: impl Fn(&mut Sides)) {
        change(&mut self.all);
        if let Some(own) = self.each.own_mut(guest) {
            change(own);
        }
    }
}

/// What each of several guests has; nothing where there is only one. A guest that is not known has what the first has.
#[derive(Debug, Default)]
pub(crate) struct PerGuest<T>(Option<Box<[T]>>);

impl<T: Copy + Default> PerGuest<T> {
    /// Nothing yet, of so many guests.
    pub(crate) fn new(guests: u16) -> Self {
        PerGuest((guests > 1).then(|| vec![T::default(); guests.into()].into_boxed_slice()))
    }

    /// That of a guest. `None`: there is only one guest.
    pub(crate) fn own(&self, guest: GuestId) -> Option<T> {
        let each = self.0.as_deref()?;
        each.get(guest.index()).or(each.first()).copied()
    }

    /// The same, to be changed.
    pub(crate) fn own_mut(&mut self, guest: GuestId) -> Option<&mut T> {
        let each = self.0.as_deref_mut()?;
        let index = if guest.index() < each.len() { guest.index() } else { 0 };
        each.get_mut(index)
    }
}

/// Units of a limit that each of several guests has.
pub(crate) type Holdings = PerGuest<usize>;

impl Holdings {
    /// A guest has `more` and then `less`.
    pub(crate) fn change(&mut self, guest: GuestId, more: usize, less: usize) {
        if let Some(own) = self.own_mut(guest) {
            *own = (*own + more).saturating_sub(less);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_that_takes_all_it_can_leaves_as_much_as_it_has() {
        let mut shares = Shares::new(4);
        let mut take = |guest| {
            let mut taken = 0;
            while shares.has_room(GuestId(guest), Side::Guest, 120) {
                shares.add(GuestId(guest), Side::Guest);
                taken += 1;
            }
            taken
        };
        assert_eq!((take(1), take(2), take(3)), (60, 30, 15));
        // What one gives back is there for the others.
        for _ in 0..60 {
            shares.remove(GuestId(1), Side::Guest);
        }
        assert!(shares.has_room(GuestId(3), Side::Guest, 120));
    }

    #[test]
    fn each_side_of_a_guest_has_a_share() {
        for guests in [1, 4] {
            let mut shares = Shares::new(guests);
            while shares.has_room(GuestId(0), Side::Outside, 40) {
                shares.add(GuestId(0), Side::Outside);
            }
            assert!(shares.has_room(GuestId(0), Side::Guest, 40));
            assert!(!shares.side_has_room(GuestId(0), Side::Outside, 20));
            assert!(shares.side_has_room(GuestId(0), Side::Guest, 1));
        }
    }
}
