//! Holes of the file that clusters lie in. An image whose clusters were allocated in advance is mostly made of them:
//! they read as zeroes, although the image calls them data.

use std::sync::OnceLock;

use blockferry_block::{ByteRange, Context, Extent, RangeSet, Status, push_merged};

use crate::host::HostFile;

/// How often the file below is asked for its holes, and how many are kept of those it tells of. It mostly has none,
/// and says so at once.
const MOST_ANSWERS: usize = 16;
const MOST_HOLES: usize = 64 << 10;

/// The holes of a file that nobody writes, as far as they are known: asked for once, when they are first wanted.
#[derive(Default)]
pub(crate) struct Holes(OnceLock<RangeSet>);

impl Holes {
    /// Whole units of `file`, each of `unit` bytes, a power of two, that are holes.
    pub(crate) async fn of(&self, file: &HostFile, unit: u64) -> &RangeSet {
        if let Some(known) = self.0.get() {
            return known;
        }
        let found = find(file, unit).await;
        self.0.get_or_init(|| found)
    }
}

async fn find(file: &HostFile, unit: u64) -> RangeSet {
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
                found.insert(extent.range.aligned_within(unit));
            }
        }
        if rest.start() == before {
            break;
        }
    }
    found
}

/// Adds `range`, which lies from `host` on in a file that has `holes`.
pub(crate) fn push_host(list: &mut Vec<Extent>, range: ByteRange, host: u64, holes: &RangeSet) {
    let mut at = host;
    let guest = |host_offset: u64| range.start() + (host_offset - host);
    let mut push = |start: u64, end: u64, status| {
        let range = ByteRange::between(guest(start), guest(end));
        push_merged(list, Extent { range, status });
    };
    for hole in holes.present_in(ByteRange::between(host, host + range.len())) {
        push(at, hole.start(), Status::DATA);
        push(hole.start(), hole.end(), Status::ZERO);
        at = hole.end();
    }
    push(at, host + range.len(), Status::DATA);
}
