//! Cylinders, heads and sectors: what Virtual PC takes the size of a disk from (specification, "Appendix: CHS
//! Calculation").

use super::footer::SECTOR;

/// A geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) cylinders: u16,
    pub(super) heads: u8,
    /// On each track.
    pub(super) sectors: u8,
}

impl Geometry {
    /// The largest one, 127.5 GiB, which larger disks have, too.
    pub(super) const LARGEST: Self = Self {
        cylinders: u16::MAX,
        heads: 16,
        sectors: 255,
    };

    /// How many sectors there are.
    pub(super) fn count(self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors)
    }

    /// The size of a disk with this geometry in bytes.
    pub(super) fn size(self) -> u64 {
        self.count() * SECTOR
    }

    /// The geometry that the specification gives a disk of so many sectors: of as many or fewer.
    fn of(count: u64) -> Self {
        if count == 0 {
            // As qemu has it.
            return Self {
                cylinders: 0,
                heads: 0,
                sectors: 0,
            };
        }
        let count = count.min(Self::LARGEST.count());
        let (heads, sectors) = if count >= 65535 * 16 * 63 {
            (16, 255)
        } else {
            let tracks = count / 17;
            let heads = tracks.div_ceil(1024).max(4);
            if tracks < heads * 1024 && heads <= 16 {
                (heads, 17)
            } else if count / 31 < 16 * 1024 {
                (16, 31)
            } else {
                (16, 63)
            }
        };
        // All of it is small: 65535 cylinders, 16 heads and 255 sectors at most.
        Self {
            cylinders: (count / sectors / heads) as u16,
            heads: heads as u8,
            sectors: sectors as u8,
        }
    }

    /// The smallest of these geometries that has room for so many sectors, or the largest one.
    pub(super) fn with_room(count: u64) -> Self {
        let least = count.min(Self::LARGEST.count());
        let mut tried = least;
        loop {
            let geometry = Self::of(tried);
            if geometry.count() >= least {
                return geometry;
            }
            // A few thousand steps: as many as there are sectors on a cylinder.
            tried += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_geometry_has_room_for_what_was_asked_for() {
        assert_eq!(Geometry::with_room(0).count(), 0);
        for count in [
            1,
            67,
            68,
            69,
            20_479,
            1_000_000,
            4_194_304,
            33_554_432,
            267_382_799,
        ] {
            let geometry = Geometry::with_room(count);
            assert!(geometry.count() >= count, "{count}: {geometry:?}");
            let cylinder = u64::from(geometry.heads) * u64::from(geometry.sectors);
            assert!(
                geometry.count() < count + 2 * cylinder,
                "{count}: {geometry:?}"
            );
        }
        for count in [267_382_800, 1 << 40] {
            assert_eq!(Geometry::with_room(count), Geometry::LARGEST);
        }
    }
}
