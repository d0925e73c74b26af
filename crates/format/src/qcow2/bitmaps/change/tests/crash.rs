//! The power is cut at any point: the image has the old bitmaps or the new ones.

use blockferry_block::testing::{ForgetfulDevice, Survival};

use super::*;
use crate::qcow2::write::tests::{backed, with_order};

/// The image whose header is `change`d, and written as we write it.
async fn with_header(image: &MemoryDevice, change: impl FnOnce(&mut Header)) -> Arc<MemoryDevice> {
    let mut header = Header::read(image).await.expect("sound");
    change(&mut header);
    let encoded = header.encode().expect("it fits");
    let mut bytes = image.contents();
    bytes[..header.geometry.cluster_size() as usize].fill(0);
    bytes[..encoded.len()].copy_from_slice(&encoded);
    Arc::new(MemoryDevice::from_bytes(bytes).growable())
}

/// Cuts a change of an image anywhere, and returns the image after it. `is_atomic` where nothing but the old and the
/// new bitmaps may be seen, ever.
async fn cut_everywhere(
    what: &str,
    image: &Arc<MemoryDevice>,
    name: &str,
    change: &BitmapChange,
    is_atomic: bool,
) -> Arc<MemoryDevice> {
    let old = seen(&**image).await;
    let old_header = Header::read(&**image).await.expect("sound");
    let below = Arc::new(ForgetfulDevice::new(image.contents()));
    change_bitmap(below.clone(), name, change)
        .await
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let bytes = below.cut(usize::MAX, Survival::Nothing);
    let whole = Arc::new(MemoryDevice::from_bytes(bytes).growable());
    let new = seen(&*whole).await;
    check_clean(&whole, what).await;
    for events in 0..=below.events() {
        let seeds = (0..2).map(|seed| seed + 100 * events as u64);
        let some = seeds.flat_map(|seed| [Survival::Events(seed), Survival::Sectors(seed)]);
        for survival in [Survival::Nothing, Survival::Everything]
            .into_iter()
            .chain(some)
        {
            let left = MemoryDevice::from_bytes(below.cut(events, survival));
            let what = format!("{what}, cut after {events}, {survival:?}");
            let report = check(&left).await.expect("checked");
            assert!(report.is_consistent(), "{what}: {report:?}");
            let found = seen(&left).await;
            let is_right = found == old || found == new || !is_atomic && found.is_empty();
            assert!(is_right, "{what}: {found:?}");
            let header = Header::read(&left).await.expect("sound");
            assert_eq!(header.backing, old_header.backing, "{what}");
            assert_eq!(header.backing_format, old_header.backing_format, "{what}");
            assert_eq!(header.unknown, old_header.unknown, "{what}");
            assert_eq!(header.l1, old_header.l1, "{what}");
        }
    }
    whole
}

/// All that can be done, one after the other.
async fn cut_all(what: &str, image: Arc<MemoryDevice>, is_atomic: bool) -> Arc<MemoryDevice> {
    let header = Header::read(&*image).await.expect("sound");
    let geometry = header.geometry;
    let other = rich_source(geometry.cluster_bits, geometry.size, 512).await;
    let mut image = image;
    for (name, change) in [
        ("a", add(512)),
        ("b", add(65536)),
        ("a", merge("s", Some(&other))),
        ("b", merge("a", None)),
        ("b", BitmapChange::Disable),
        ("b", BitmapChange::Enable),
        ("a", BitmapChange::Clear),
        ("a", BitmapChange::Remove),
        ("b", BitmapChange::Remove),
        ("c", add(4096)),
    ] {
        image = cut_everywhere(what, &image, name, &change, is_atomic).await;
    }
    image
}

#[tokio::test]
async fn a_cut_leaves_the_old_bitmaps_or_the_new_ones() {
    for bits in [9, 12] {
        // Tables of several clusters, or one.
        let size = if bits == 9 { 300 << 10 } else { 3 << 20 };
        let image = ImageBuilder::new(bits, size + 512);
        cut_all("plain", memory(&image), true).await;
        cut_all("backed", memory(&backed(image.clone())), true).await;
        cut_all("wide refcounts", memory(&with_order(image, 6)), true).await;
    }
}

#[tokio::test]
async fn a_cut_is_as_harmless_wherever_the_extension_lies() {
    let image = backed(ImageBuilder::new(12, 1 << 20));
    let image = changed(&memory(&image), "z", &add(512)).await;
    // Names of features come behind it, and something that nobody knows.
    let first = with_header(&image, |_| ()).await;
    cut_everywhere("first", &first, "z", &BitmapChange::Remove, true).await;
    let followed = with_header(&image, |header| header.unknown.push((0x1234, vec![7; 40]))).await;
    cut_everywhere("followed", &followed, "z", &BitmapChange::Remove, true).await;
    let far = with_header(&image, |header| header.unknown.push((0x1234, vec![7; 400]))).await;
    let far = cut_everywhere("far", &far, "z", &BitmapChange::Remove, true).await;
    // It was left where it is, and serves the next one.
    cut_everywhere("again", &far, "y", &add(512), true).await;
}

#[tokio::test]
async fn where_two_sectors_have_the_extension_nobody_believes_it_meanwhile() {
    for length in (480..=512).step_by(8) {
        let image = memory(&ImageBuilder::new(12, 1 << 20));
        let unknown = (0x1234, vec![7; length]);
        let image = with_header(&image, |header| header.unknown.push(unknown)).await;
        let start = 112 + 8 + 392 + length as u64;
        // What changes is the number, the length and the place.
        let is_atomic = (start + 8) / 512 == (start + 31) / 512;
        cut_all(&format!("at {start}"), image, is_atomic).await;
    }
}

#[tokio::test]
async fn names_make_room_in_small_clusters() {
    for (length, has_room) in [
        (100, true),
        (180, true),
        (300, true),
        (340, true),
        (350, false),
    ] {
        let mut image = ImageBuilder::new(9, 300 << 10);
        image.backing = Some((vec![b'n'; length], "qcow2".to_owned()));
        let image = memory(&image);
        let what = format!("a name of {length} bytes");
        if has_room {
            cut_all(&what, image, true).await;
            continue;
        }
        let before = check(&*image).await.expect("checked");
        let below = copy(&image);
        let error = change_bitmap(below.clone(), "b", &add(512)).await;
        let error = error.expect_err(&what);
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        assert_eq!(
            check(&*copy(&below)).await.expect("checked").leaks,
            before.leaks
        );
        assert!(seen(&*copy(&below)).await.is_empty());
    }
}

#[tokio::test]
async fn a_cut_while_refcounts_grow_is_as_harmless() {
    // A block of refcounts covers 64 clusters, and the table that there is at first 4096: the file is larger than that.
    let image = with_order(ImageBuilder::new(9, 64 << 20), 6);
    let image = memory(&image);
    let other = source(9, 64 << 20, 512, (0..32).map(|_| Pattern::Bits(vec![0x81]))).await;
    let image = cut_everywhere("many", &image, "a", &add(512), true).await;
    cut_everywhere("many", &image, "a", &merge("s", Some(&other)), true).await;
}
