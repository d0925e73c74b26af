//! Bitmaps of disks that get another size: as qemu-img has them, and cut anywhere.

use blockferry_block::{Context, Extent};

use super::*;
use crate::qcow2::Image;

const MIB: u64 = 1 << 20;

/// An image of 3 MiB with bitmaps, in which qemu wrote.
fn image(directory: &Path, options: &str) {
    qemu_img(directory, &format!("create -q -f qcow2 -o {options} a 3M"));
    for words in ["-g 512 a fine", "-g 64k a coarse", "--disable a idle"] {
        qemu_img(directory, &format!("bitmap --add {words}"));
    }
    let writes = ["write -P 1 0 300k", "write -P 2 2900k 172k"];
    qemu_io(directory, "a", &writes);
}

/// The image `bytes`, the last part of whose bitmap "idle" is all ones without a place.
fn all_dirty(mut bytes: Vec<u8>) -> Vec<u8> {
    let word = bytes
        .windows(4)
        .rposition(|name| name == b"idle")
        .map(|name| name - 24)
        .expect("it is in the directory");
    let table = header_word(&bytes, word) as usize;
    let entries = u32::from_be_bytes(bytes[word + 8..][..4].try_into().expect("four")) as usize;
    let last = table + (entries - 1) * 8;
    bytes[last..last + 8].copy_from_slice(&1_u64.to_be_bytes());
    bytes
}

fn header_word(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight"))
}

/// What each bitmap of the image says, by its name; `None` for one that was in use.
async fn dirty(below: Arc<dyn BlockDevice>) -> Vec<(String, Option<Vec<Extent>>)> {
    let image = Image::open(below, &NoRelatives, &OpenOptions::default()).await;
    let image = image.expect("opened");
    let mut said = Vec::new();
    for bitmap in details(&image).bitmaps {
        let context = Context::DirtyBitmap(bitmap.name.clone());
        let mut found: Vec<Extent> = Vec::new();
        let mut at = 0;
        while at < image.info().size && !bitmap.in_use {
            let rest = ByteRange::between(at, image.info().size);
            let more = image.extents(rest, &context).await.expect("told");
            at = more.last().expect("an answer").range.end();
            for extent in more {
                blockferry_block::push_merged(&mut found, extent);
            }
        }
        said.push((bitmap.name, (!bitmap.in_use).then_some(found)));
    }
    said.sort_by(|(one, _), (other, _)| one.cmp(other));
    said
}

#[tokio::test]
async fn bitmaps_are_those_that_qemu_makes_of_them() {
    if !is_installed() {
        return;
    }
    for options in ["cluster_size=512", "cluster_size=4k", "cluster_size=64k"] {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        image(directory, options);
        fs::copy(directory.join("a"), directory.join("b")).expect("copied");
        // Within a bit, to more clusters of bits, to a longer table, and back.
        for size in [
            3 * MIB + 512,
            5 * MIB + 77 * 512,
            2 * MIB,
            140 * MIB,
            141 * MIB,
            4 * MIB - 512,
            10 * MIB,
            // What qemu grows from the middle of a cluster shows what was there before.
            64 << 10,
            3 * MIB,
        ] {
            let what = format!("{options}, {size}");
            qemu_img(directory, &format!("resize -q --shrink a {size}"));
            let resized = resize(open(directory, "b"), &NoRelatives, size, &shrinking()).await;
            resized.unwrap_or_else(|error| panic!("{what}: {error:?}"));
            let [theirs, ours] = ["a", "b"].map(|name| open(directory, name));
            let (theirs, ours) = (dirty(theirs).await, dirty(ours).await);
            assert!(ours.iter().all(|(_, said)| said.is_some()), "{what}");
            for (ours, theirs) in ours.iter().zip(&theirs) {
                assert_eq!(ours, theirs, "{what}");
            }
            let report = qemu_check(directory, "b");
            for wrong in ["corruptions", "leaks", "check-errors"] {
                assert_eq!(number(&report, wrong), 0, "{what}: {report}");
            }
            let compared = qemu_img(directory, "compare -f qcow2 -F qcow2 a b");
            assert!(compared.contains("identical"), "{what}: {compared}");
            // Both take part in what is written from here on.
            for name in ["a", "b"] {
                let write = format!("write -P 3 {} 512", (size / 2).next_multiple_of(512) - 512);
                qemu_io(directory, name, &[&write]);
            }
        }
        qemu_img(directory, "bitmap --merge coarse b fine");
        qemu_img(directory, "bitmap --remove b idle");
    }
}

#[tokio::test]
async fn what_is_dirty_to_the_end_is_not_dirty_behind_it() {
    if !is_installed() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    for options in ["cluster_size=512", "cluster_size=64k"] {
        for size in [3 * MIB + 512, 140 * MIB] {
            let _ = fs::remove_file(directory.join("a"));
            image(directory, options);
            let bytes = all_dirty(fs::read(directory.join("a")).expect("there"));
            fs::write(directory.join("a"), bytes).expect("written");
            let options = ResizeOptions::default();
            let resized = resize(open(directory, "a"), &NoRelatives, size, &options).await;
            resized.expect("resized");
            let said = dirty(open(directory, "a")).await;
            let (name, said) = said.last().expect("three");
            assert_eq!(name, "idle");
            let said = said.as_ref().expect("consistent");
            let [.., dirty, clean] = &said[..] else {
                panic!("{said:?}");
            };
            assert_eq!((dirty.status.0, dirty.range.end()), (1, 3 * MIB));
            let new = ByteRange::between(3 * MIB, size);
            assert_eq!((clean.status.0, clean.range), (0, new));
            let report = qemu_check(directory, "a");
            for wrong in ["corruptions", "leaks", "check-errors"] {
                assert_eq!(number(&report, wrong), 0, "{size}: {report}");
            }
        }
    }
}

#[tokio::test]
async fn bitmaps_that_cannot_have_the_size_are_refused_by_name() {
    if !is_installed() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    image(directory, "cluster_size=64k");
    let before = fs::read(directory.join("a")).expect("there");
    for (size, part) in [(0, "without a byte"), (4 << 40, "too large")] {
        let resized = resize(open(directory, "a"), &NoRelatives, size, &shrinking()).await;
        let error = resized.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(part), "{error}");
    }
    assert!(fs::read(directory.join("a")).expect("there") == before);
    let mut in_use = before;
    let name = in_use.windows(4).rposition(|name| name == b"fine");
    in_use[name.expect("there") - 24 + 15] |= 1;
    fs::write(directory.join("a"), in_use).expect("written");
    let options = ResizeOptions::default();
    let resized = resize(open(directory, "a"), &NoRelatives, 9 * MIB, &options).await;
    let error = resized.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        error.to_string().contains("\"fine\" is inconsistent"),
        "{error}"
    );
}

#[tokio::test]
async fn a_cut_leaves_bitmaps_that_are_right_or_that_nobody_believes() {
    if !is_installed() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    image(directory, "cluster_size=512");
    let bytes = all_dirty(fs::read(directory.join("a")).expect("there"));
    let memory = |bytes: Vec<u8>| Arc::new(MemoryDevice::from_bytes(bytes).growable());
    for size in [140 * MIB, 2 * MIB - 512] {
        let old = dirty(memory(bytes.clone())).await;
        let below = Arc::new(ForgetfulDevice::new(bytes.clone()));
        let resized = resize(below.clone(), &NoRelatives, size, &shrinking()).await;
        resized.expect("resized");
        let whole = memory(below.cut(usize::MAX, Survival::Nothing));
        let new = dirty(whole.clone()).await;
        check_clean(&whole, "the end").await;
        let step = 1 + below.events() / 100;
        for events in (0..=below.events()).step_by(step) {
            let number = events as u64;
            let survival = match events / step % 4 {
                0 => Survival::Everything,
                1 => Survival::Events(number),
                2 => Survival::Nothing,
                _ => Survival::Sectors(number),
            };
            let what = format!("{size}, cut after {events}");
            let left = memory(below.cut(events, survival));
            let report = check_image(&*left).await.expect("checked");
            assert!(report.is_consistent(), "{what}: {report:?}");
            let is_new = Header::read(&*left).await.expect("sound").geometry.size == size;
            let right = if is_new { &new } else { &old };
            for ((name, said), (_, right)) in dirty(left).await.iter().zip(right) {
                assert!(said.is_none() || said == right, "{what}: {name}");
            }
        }
    }
}

#[tokio::test]
async fn a_disk_that_cannot_grow_keeps_its_bitmaps() {
    if !is_installed() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    image(directory, "cluster_size=512");
    let bytes = all_dirty(fs::read(directory.join("a")).expect("there"));
    let old = dirty(Arc::new(MemoryDevice::from_bytes(bytes.clone()))).await;
    // There is room for the tables and not for what is to be allocated, or not even for them.
    for room in [0, 3000, 200 << 10] {
        let mut cramped = bytes.clone();
        cramped.resize(cramped.len() + room, 0);
        let below = Arc::new(MemoryDevice::from_bytes(cramped));
        let options = with(Preallocation::Full);
        let resized = resize(below.clone(), &NoRelatives, 140 * MIB, &options).await;
        let error = resized.expect_err("no room");
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        let report = check_image(&*below).await.expect("checked");
        assert!(report.is_consistent(), "{room}: {report:?}");
        assert_eq!(dirty(below).await, old, "{room}");
    }
}
