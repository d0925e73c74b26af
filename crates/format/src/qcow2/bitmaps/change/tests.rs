//! Bitmaps that change: as qemu-img has them, cut anywhere, without room, and merged beside a row of bits.

mod crash;
mod failures;
mod merge;
mod qemu;

use blockferry_block::{Extent, MemoryDevice, push_merged};

use super::*;
use crate::qcow2::{
    BitmapDetails, check,
    testing::ImageBuilder,
    write::tests::{check_clean, copy, memory},
};

/// A bitmap as one sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    details: BitmapDetails,
    /// What is dirty and what is not; nothing where it was in use.
    ranges: Vec<Extent>,
}

/// All that the image says of its bitmaps.
async fn seen(below: &dyn BlockDevice) -> Vec<Seen> {
    let header = Header::read(below).await.expect("a sound header");
    let bitmaps = read_directory(below, &header)
        .await
        .expect("a sound directory");
    let disk = ByteRange::between(0, header.geometry.size);
    let mut seen = Vec::new();
    for bitmap in bitmaps {
        let mut ranges = Vec::new();
        let mut at = 0;
        while at < disk.end() && bitmap.is_consistent() {
            let rest = ByteRange::between(at, disk.end());
            let found = bitmap
                .extents(below, header.geometry, rest, 100)
                .await
                .expect("sound");
            at = found.last().expect("an answer").range.end();
            for extent in found {
                push_merged(&mut ranges, extent);
            }
        }
        let details = bitmap.details;
        seen.push(Seen { details, ranges });
    }
    seen
}

fn add(granularity: u64) -> BitmapChange {
    BitmapChange::Add {
        granularity: Some(granularity),
    }
}

fn merge(source: &str, image: Option<&Arc<MemoryDevice>>) -> BitmapChange {
    BitmapChange::Merge {
        source: source.to_owned(),
        image: image.map(|image| Arc::clone(image) as Arc<dyn BlockDevice>),
    }
}

/// The image after a change that succeeds. Nothing of it is lost.
async fn changed(
    below: &Arc<MemoryDevice>,
    name: &str,
    change: &BitmapChange,
) -> Arc<MemoryDevice> {
    let below = copy(below);
    change_bitmap(below.clone(), name, change)
        .await
        .expect("changed");
    check_clean(&below, name).await;
    copy(&below)
}

/// Which bits of an image's bitmap "s" are set.
enum Pattern {
    Nothing,
    Everything,
    /// As stored.
    Bits(Vec<u8>),
}

/// An image whose bitmap "s" has these bits, a pattern for each of its clusters. Its refcounts know nothing of them: it
/// is only read.
async fn source(
    cluster_bits: u32,
    size: u64,
    granularity: u64,
    patterns: impl IntoIterator<Item = Pattern>,
) -> Arc<MemoryDevice> {
    let image = memory(&ImageBuilder::new(cluster_bits, size));
    let image = changed(&image, "s", &add(granularity)).await;
    let header = Header::read(&*image).await.expect("sound");
    let bitmaps = read_directory(&*image, &header).await.expect("sound");
    let table = bitmaps[0].table;
    let cluster = 1_usize << cluster_bits;
    let mut bytes = image.contents();
    bytes.resize(bytes.len().next_multiple_of(cluster), 0);
    for (at, pattern) in (table.start()..table.end()).step_by(8).zip(patterns) {
        let word = match pattern {
            Pattern::Nothing => Bits::Zeroes,
            Pattern::Everything => Bits::Ones,
            Pattern::Bits(bits) => {
                let place = bytes.len();
                bytes.extend(&bits[..bits.len().min(cluster)]);
                bytes.resize(place + cluster, 0);
                Bits::Host(place as u64)
            }
        };
        let at = at as usize;
        bytes[at..at + 8].copy_from_slice(&word.encode().to_be_bytes());
    }
    Arc::new(MemoryDevice::from_bytes(bytes))
}

/// One with something of everything.
async fn rich_source(cluster_bits: u32, size: u64, granularity: u64) -> Arc<MemoryDevice> {
    let patterns = (0_u32..).map(|number| match number % 4 {
        0 => Pattern::Bits(vec![0b0101_0010, 0, 0xff, 1]),
        1 => Pattern::Nothing,
        2 => Pattern::Everything,
        _ => Pattern::Bits((0..1 << cluster_bits).map(|at| (at % 251) as u8).collect()),
    });
    source(cluster_bits, size, granularity, patterns).await
}

#[tokio::test]
async fn bitmaps_come_change_and_go_and_nothing_is_lost() {
    for (cluster_bits, granularity) in [(9, 512), (9, 65536), (12, 512), (16, 65536)] {
        let size = (5 << 20) + 512;
        let first = memory(&ImageBuilder::new(cluster_bits, size));
        let mut image = first.clone();
        for name in ["a", "b", "a name that is longer"] {
            image = changed(&image, name, &add(granularity)).await;
        }
        let names = seen(&*image).await;
        let names: Vec<_> = names.iter().map(|seen| &seen.details.name[..]).collect();
        assert_eq!(names, ["a", "b", "a name that is longer"]);
        let other = rich_source(cluster_bits, size, 512).await;
        image = changed(&image, "b", &merge("s", Some(&other))).await;
        image = changed(&image, "a", &merge("b", None)).await;
        let both = seen(&*image).await;
        assert_eq!(both[0].ranges, both[1].ranges);
        assert!(both[0].ranges.iter().any(|extent| extent.status.0 == 1));
        // Nothing new: nothing is written.
        for change in [merge("b", None), merge("a", None), BitmapChange::Enable] {
            let same = changed(&image, "a", &change).await;
            assert!(same.contents() == image.contents());
        }
        image = changed(&image, "b", &BitmapChange::Disable).await;
        image = changed(&image, "b", &BitmapChange::Clear).await;
        let cleared = seen(&*image).await;
        assert!(!cleared[1].details.auto && cleared[0].details.auto);
        assert_eq!(cleared[1].ranges, cleared[2].ranges);
        assert_eq!(cleared[0], both[0]);
        image = changed(&image, "b", &BitmapChange::Enable).await;
        for name in ["b", "a", "a name that is longer"] {
            image = changed(&image, name, &BitmapChange::Remove).await;
        }
        assert!(seen(&*image).await.is_empty());
        let header = Header::read(&*image).await.expect("sound");
        assert_eq!(header.bitmaps, None);
        assert_eq!(header, Header::read(&*first).await.expect("sound"));
    }
}

#[tokio::test]
async fn the_usual_granularity_is_that_of_a_cluster_within_bounds() {
    for (cluster_bits, granularity) in
        [(9, 4096), (12, 4096), (14, 16384), (16, 65536), (21, 65536)]
    {
        let image = memory(&ImageBuilder::new(cluster_bits, 1 << 20));
        let change = BitmapChange::Add { granularity: None };
        let image = changed(&image, "b", &change).await;
        assert_eq!(seen(&*image).await[0].details.granularity, granularity);
    }
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_and_nothing_is_changed() {
    let image = memory(&ImageBuilder::new(16, 10 << 20));
    let image = changed(&image, "b", &add(65536)).await;
    let huge = memory(&ImageBuilder::new(16, 64 << 40));
    let none = memory(&ImageBuilder::new(16, 0));
    let mut old = ImageBuilder::new(16, 1 << 20);
    old.geometry.version = 2;
    let old = memory(&old);
    let other = source(16, 11 << 20, 512, []).await;
    let long = "n".repeat(1024);
    let invalid = ErrorKind::InvalidInput;
    for (image, name, change, kind, part) in [
        (&image, "b", add(512), invalid, "\"b\" already"),
        (&image, "", add(512), invalid, "1 to 1023"),
        (&image, &long[..], add(512), invalid, "1 to 1023"),
        (&image, "c", add(0), invalid, "power of two"),
        (&image, "c", add(256), invalid, "power of two"),
        (&image, "c", add(1000), invalid, "power of two"),
        (&image, "c", add(4 << 30), invalid, "power of two"),
        (&huge, "c", add(512), invalid, "too large"),
        (&none, "c", add(512), invalid, "without a byte"),
        (&old, "c", add(512), ErrorKind::Unsupported, "version 2"),
        (
            &image,
            "c",
            BitmapChange::Remove,
            ErrorKind::NotFound,
            "no bitmap \"c\"",
        ),
        (
            &image,
            "c",
            BitmapChange::Clear,
            ErrorKind::NotFound,
            "no bitmap \"c\"",
        ),
        (
            &image,
            "b",
            merge("c", None),
            ErrorKind::NotFound,
            "no bitmap \"c\"",
        ),
        (
            &image,
            "b",
            merge("c", Some(&other)),
            ErrorKind::NotFound,
            "no bitmap \"c\"",
        ),
        (
            &image,
            "b",
            merge("s", Some(&other)),
            invalid,
            "different sizes",
        ),
    ] {
        let before = image.contents();
        let error = change_bitmap(image.clone(), name, &change).await;
        let error = error.expect_err(part);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(part), "{error}");
        assert!(image.contents() == before, "{part}");
    }
}

#[tokio::test]
async fn what_was_in_use_can_only_be_removed() {
    let image = memory(&ImageBuilder::new(16, 10 << 20));
    let image = changed(&image, "b", &add(65536)).await;
    let image = changed(&image, "c", &add(65536)).await;
    let header = Header::read(&*image).await.expect("sound");
    let bitmaps = read_directory(&*image, &header).await.expect("sound");
    let (place, flags) = bitmaps[0].flags.expect("read");
    let mut bytes = image.contents();
    bytes[place as usize..][..4].copy_from_slice(&Bitmap::in_use(flags).to_be_bytes());
    let image = Arc::new(MemoryDevice::from_bytes(bytes).growable());
    for (name, change) in [
        ("b", BitmapChange::Clear),
        ("b", BitmapChange::Enable),
        ("b", BitmapChange::Disable),
        ("b", merge("c", None)),
        ("c", merge("b", None)),
    ] {
        let error = change_bitmap(copy(&image), name, &change).await;
        let error = error.expect_err("inconsistent");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(
            error.to_string().contains("\"b\" is inconsistent"),
            "{error}"
        );
    }
    // It stays as it is while others change.
    let image = changed(&image, "d", &add(512)).await;
    let image = changed(&image, "c", &BitmapChange::Disable).await;
    let in_use: Vec<_> = seen(&*image).await;
    let in_use: Vec<_> = in_use.iter().map(|seen| seen.details.in_use).collect();
    assert_eq!(in_use, [true, false, false]);
    let image = changed(&image, "b", &BitmapChange::Remove).await;
    assert_eq!(seen(&*image).await.len(), 2);
}

#[tokio::test]
async fn bitmaps_that_nobody_believes_are_none() {
    let image = memory(&ImageBuilder::new(16, 10 << 20));
    let image = changed(&image, "b", &add(65536)).await;
    let mut bytes = image.contents();
    // The bit of the bitmaps, and one that nobody knows.
    bytes[88..96].copy_from_slice(&[0, 0, 0, 0, 1, 0, 0, 0]);
    let image = Arc::new(MemoryDevice::from_bytes(bytes).growable());
    let error = change_bitmap(image.clone(), "b", &BitmapChange::Remove).await;
    assert_eq!(error.expect_err("none").kind(), ErrorKind::NotFound);
    change_bitmap(image.clone(), "new", &add(512))
        .await
        .expect("added");
    let image = copy(&image);
    let seen = seen(&*image).await;
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].details.name, "new");
    assert_eq!(image.contents()[88..96], [0, 0, 0, 0, 0, 0, 0, 1]);
    // What it had before is lost, as whoever took the bit away lost it.
    let report = check(&*image).await.expect("checked");
    assert!(report.is_consistent() && report.leaks > 0, "{report:?}");
}
