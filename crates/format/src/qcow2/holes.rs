//! Holes of the file that clusters lie in. An image whose clusters were allocated in advance is mostly made of them:
//! they read as zeroes, although the image calls them data.

use std::sync::OnceLock;

use blockferry_block::{ByteRange, Context, RangeSet};

use super::{geometry::Geometry, host::HostFile};

/// How often the file below is asked for its holes, and how many are kept of those it tells of. It mostly has none,
/// and says so at once.
const MOST_ANSWERS: usize = 16;
const MOST_HOLES: usize = 64 << 10;

/// The holes of a file that nobody writes, as far as they are known: asked for once, when they are first wanted.
#[derive(Default)]
pub(crate) struct Holes(OnceLock<RangeSet>);

impl Holes {
    /// Whole clusters of `file` that are holes.
    pub(crate) async fn of(&self, file: &HostFile, geometry: Geometry) -> &RangeSet {
        if let Some(known) = self.0.get() {
            return known;
        }
        let found = find(file, geometry).await;
        self.0.get_or_init(|| found)
    }
}

async fn find(file: &HostFile, geometry: Geometry) -> RangeSet {
    let device = file.device();
    let mut found = RangeSet::new();
    if !device.info().knows_allocation() {
        return found;
    }
    let mut rest = ByteRange::between(0, file.end());
    for _ in 0..MOST_ANSWERS {
        if rest.is_empty() || found.count() >= MOST_HOLES {
            break;
        }
        // Nothing is lost without an answer, or by one that is not to be believed, but time.
        let Ok(answer) = device.extents(rest, &Context::Allocation).await else {
            break;
        };
        let before = rest.start();
        for extent in answer {
            if extent.range.start() != rest.start() || !rest.contains(extent.range) {
                return found;
            }
            rest = rest.split_at(extent.range.len()).1;
            if extent.status.is_zero() && found.count() < MOST_HOLES {
                found.insert(extent.range.aligned_within(geometry.cluster_size()));
            }
        }
        if rest.start() == before {
            break;
        }
    }
    found
}
