//! Images from strangers: whatever is in them, there is an answer or an error in one line, after few reads.

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Context, Error, ErrorKind, MemoryDevice, Operation, Result,
    testing::FaultyDevice,
};
use blockferry_format::{
    NoRelatives, OpenOptions,
    vmdk::{self, Details},
};

use crate::samples::{DISK, Sample};

/// How often a file may be read from, for all that is done with it.
const MOST_READS: u64 = 2000;

fn device(bytes: Vec<u8>) -> Arc<FaultyDevice> {
    Arc::new(FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(bytes))))
}

/// Opens an image, reads all of a small one, and asks what is known of it.
async fn look(below: Arc<dyn BlockDevice>) -> Result<Vec<u8>> {
    let options = OpenOptions::default();
    let image = vmdk::open(below, &NoRelatives, &options).await?;
    let size = image.info().size;
    let mut bytes = Vec::new();
    let mut failure = None;
    for piece in ByteRange::between(0, size.min(1 << 20)).pieces(10_000) {
        match image
            .read(piece.start(), Buffer::zeroed(piece.len() as usize))
            .await
        {
            Ok(read) => bytes.extend_from_slice(&read),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    for context in [Context::Allocation, Context::AllocationDepth] {
        let mut at = 0;
        for _ in 0..100 {
            let range = ByteRange::between(at, size);
            match image.extents(range, &context).await {
                Ok(list) => {
                    assert_eq!(list.is_empty(), range.is_empty());
                    for extent in list {
                        assert_eq!(extent.range.start(), at);
                        assert!(!extent.range.is_empty() && range.contains(extent.range));
                        at = extent.range.end();
                    }
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
    }
    let _ = image.mapping(ByteRange::between(0, size));
    failure.map_or(Ok(bytes), Err)
}

fn is_one_line(error: &Error) -> bool {
    !error.to_string().contains(char::is_control)
}

#[tokio::test]
async fn the_samples_are_sound() {
    let mut expected = vec![7; 8192];
    expected.resize(DISK as usize, 0);
    let read = look(device(Sample::sparse().0)).await.expect("sound");
    assert!(read == expected);
    expected[4096..].fill(0);
    let read = look(device(Sample::stream().0)).await.expect("sound");
    assert!(read == expected);
}

#[tokio::test]
async fn every_lie_ends_in_one_line() {
    let le = |number: u64| number.to_le_bytes();
    let cases: Vec<(Sample, &str)> = vec![
        (Sample(Vec::new()), "it is too short to be a VMDK image"),
        (
            Sample(vec![0; 4096]),
            "it is not a VMDK image: it begins with something else",
        ),
        (
            Sample::sparse().cut(100),
            "it is too short to be a VMDK image",
        ),
        (
            Sample::sparse().with(4, &[4]),
            "VMDK version 4 is not supported",
        ),
        (
            Sample::sparse().with(73, b"\r\n"),
            "it was changed by a transfer as text",
        ),
        (
            Sample::sparse().with(77, &[2]),
            "the compression 2 is not supported",
        ),
        (
            Sample::sparse().with(20, &le(0)),
            "grains of 0 sectors are not a power of two",
        ),
        (Sample::sparse().with(20, &le(1 << 40)), "are too large"),
        (
            Sample::sparse().with(44, &[0; 4]),
            "a grain table has 1 to 512 entries, not 0",
        ),
        (
            Sample::sparse().with(44, &[0xff; 4]),
            "a grain table has 1 to 512 entries, not 4294967295",
        ),
        (
            Sample::sparse().with(12, &le(u64::MAX)),
            "there are no disks of 18446744073709551615 sectors",
        ),
        (
            Sample::sparse().with(12, &le(1 << 53)),
            "entries, which is too much",
        ),
        (
            Sample::sparse().with(12, &le(1 << 28)),
            "lies past the end of the file",
        ),
        (
            Sample::sparse().with(56, &le(u64::MAX - 1)),
            "lies past the end of the file",
        ),
        (
            Sample::sparse().with(56, &le(1 << 54)),
            "lies past the end of the file",
        ),
        (Sample::sparse().with(28, &le(0)), "it has no descriptor"),
        (
            Sample::sparse().with(28, &le(u64::MAX)),
            "its descriptor lies past the end of the file",
        ),
        (
            Sample::sparse().with(36, &le(u64::MAX)),
            "which is too long",
        ),
        (
            Sample::sparse().with(4 * 512, &[0xff; 4]),
            "the grain table 0 for offset 0x0 lies at 0x1fffffffe00, past the end of the file",
        ),
        (
            Sample::sparse().with(5 * 512, &[0xff; 4]),
            "lies at 0x1fffffffe00, past the end of the file",
        ),
        (
            Sample::sparse().with_line("RW 1 FLAT \"a\" 0\nRW 1 FLAT \"/etc/passwd\" 0"),
            "names other extents",
        ),
        (Sample::stream().cut(12 * 512), "it was cut short"),
        (Sample::stream().cut(1024), "it was cut short"),
        (
            Sample::stream().with(11 * 512 + 12, &le(64)),
            "the footer contradicts the header",
        ),
        (
            Sample::stream().with(5 * 512 + 8, &[0; 4]),
            "there is no grain",
        ),
        (
            Sample::stream().with(5 * 512, &[8]),
            "it is another grain, that of sector 8",
        ),
        (
            Sample::stream().with(5 * 512 + 8, &[0xff; 4]),
            "which is too much",
        ),
        (
            Sample::stream().with(5 * 512 + 12, &[0; 4]),
            "it cannot be decompressed",
        ),
        (
            Sample::stream().with(7 * 512, &[0xff; 4]),
            "past the end of the file",
        ),
        (Sample(b"COWD\x01\0\0\0".to_vec()), "it is an extent"),
        (Sample(vec![b'#'; 2 << 20]), "it is not a VMDK image"),
        (Sample::descriptor(""), "names no extents"),
        (Sample::descriptor("RW 0 ZERO"), "an extent of no sectors"),
        (
            Sample::descriptor("RW 1 FLAT \"/etc/passwd\" 0"),
            "it needs the extent \"/etc/passwd\", which nobody allowed to be opened",
        ),
        (
            Sample::descriptor("RW 1 SPARSE \"a\x1b[2J\""),
            "it needs the extent \"a\\u{1b}[2J\", which nobody allowed",
        ),
        (
            Sample::descriptor("RW 1 VMFS \"/dev/sda\""),
            "it needs the extent \"/dev/sda\"",
        ),
        (
            Sample::descriptor("RW 1 SESPARSE \"a\""),
            "extents of the kind SESPARSE are not supported",
        ),
        (
            Sample::descriptor("RW 1 VMFSRDM \"a\""),
            "extents of the kind VMFSRDM are not supported",
        ),
        (Sample::descriptor("RW 1 \x07\" \"a\""), "are not supported"),
        (
            Sample::descriptor("NOACCESS 1 FLAT \"a\" 0"),
            "an extent without access is not supported",
        ),
        (
            Sample::descriptor("RW 1 ZERO\nparentFileNameHint=\"/etc/passwd\""),
            "says that it has none",
        ),
        (
            Sample(b"CID=1\nparentCID=2\nRW 1 ZERO\nparentFileNameHint=\"/etc/passwd\"".to_vec()),
            "it needs the backing file \"/etc/passwd\"",
        ),
        (
            Sample(b"CID=1\nparentCID=2\nRW 1 ZERO\n".to_vec()),
            "does not name it",
        ),
    ];
    let mut wrong = Vec::new();
    for (number, (sample, said)) in cases.into_iter().enumerate() {
        let below = device(sample.0);
        let Err(error) = look(below.clone()).await else {
            wrong.push(format!("{number} {said}: it was read"));
            continue;
        };
        assert!(is_one_line(&error), "{error}");
        if !error.to_string().contains(said) {
            wrong.push(format!("{number} {said}: {error}"));
        }
        let below_again: Arc<dyn BlockDevice> = below.clone();
        if let Err(error) = Details::read(&below_again).await {
            assert!(is_one_line(&error), "{error}");
        }
        assert!(below.calls(Operation::Read) < MOST_READS);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn every_byte_may_be_anything() {
    for whole in [Sample::sparse().0, Sample::stream().0] {
        let places = (0..600).chain((4 * 512..whole.len()).step_by(7));
        for place in places {
            for value in [0, 0x81, 0xff] {
                let Some(before) = whole.get(place) else {
                    continue;
                };
                if *before == value {
                    continue;
                }
                let mut bytes = whole.clone();
                bytes[place] = value;
                let below = device(bytes);
                if let Err(error) = look(below.clone()).await {
                    assert!(is_one_line(&error), "{place} {value}: {error}");
                }
                let reads = below.calls(Operation::Read);
                assert!(reads < MOST_READS, "{place} {value}: {reads} reads");
            }
        }
    }
}

#[tokio::test]
async fn a_stream_cut_short_anywhere_is_an_error() {
    let whole = Sample::stream().0;
    for length in (0..whole.len()).step_by(7) {
        let error = look(device(whole[..length].to_vec()))
            .await
            .expect_err("cut short");
        assert!(is_one_line(&error), "{length}: {error}");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{length}: {error}");
    }
}

#[tokio::test]
async fn a_disk_above_the_bound_is_refused() {
    let mut options = OpenOptions::default();
    options.max_size = Some(DISK - 1);
    for sample in [Sample::sparse(), Sample::descriptor("RW 32 ZERO")] {
        let refused = vmdk::open(device(sample.0), &NoRelatives, &options).await;
        let error = refused.expect_err("too large");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    options.max_size = Some(DISK);
    let opened = vmdk::open(device(Sample::sparse().0), &NoRelatives, &options).await;
    opened.expect("just so large");
}
