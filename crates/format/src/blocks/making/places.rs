//! Which blocks have places in the file.

/// The places of blocks that were given out so far: the next one is the first behind all others.
#[derive(Default)]
pub(super) struct Places {
    /// By the numbers of blocks; [`NONE`] for those without a place, and there are none behind the last.
    places: Vec<u32>,
    given: u32,
}

/// No place. There are fewer blocks.
const NONE: u32 = u32::MAX;

impl Places {
    /// The place of block `index`, if it has one.
    pub(super) fn find(&self, index: u64) -> Option<u32> {
        let place = self.places.get(usize::try_from(index).ok()?);
        place.copied().filter(|place| *place != NONE)
    }

    /// The place of block `index`, which it gets now if it has none, and whether it does. The number was checked
    /// against what an image can have.
    pub(super) fn take(&mut self, index: u64) -> (u32, bool) {
        if let Some(place) = self.find(index) {
            return (place, false);
        }
        let index = index as usize;
        if self.places.len() <= index {
            self.places.resize(index + 1, NONE);
        }
        let place = self.given;
        self.given += 1;
        self.places[index] = place;
        (place, true)
    }

    /// Takes back the place of block `index`, if it was the last to be given out. There is nothing in it any more.
    pub(super) fn take_back(&mut self, index: u64) {
        if let Some(place) = self.find(index)
            && place + 1 == self.given
        {
            self.places[index as usize] = NONE;
            self.given = place;
        }
    }

    /// The places of the first `count` blocks.
    pub(super) fn to_list(&self, count: u64) -> Vec<Option<u32>> {
        (0..count).map(|index| self.find(index)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_in_a_row_and_taken_back_from_the_end() {
        let mut places = Places::default();
        assert_eq!(places.take(7), (0, true));
        assert_eq!(places.take(2), (1, true));
        assert_eq!(places.take(7), (0, false));
        places.take_back(7);
        assert_eq!(places.find(7), Some(0));
        places.take_back(2);
        assert_eq!((places.find(2), places.take(3)), (None, (1, true)));
        assert_eq!(places.to_list(4), [None, None, None, Some(1)]);
    }
}
