//! Images that are damaged, or lie.

use blockferry_block::{Buffer, ErrorKind};

use super::{builder::Builder, contents, details, open};
use crate::{testing, vpc::footer::checksum};

fn sound() -> Builder {
    Builder::dynamic(5 * 4096 + 512, 4096)
        .with(0, 7)
        .with(2, 9)
        .with(5, 4)
}

#[tokio::test]
async fn the_copy_of_the_footer_stands_in_for_it() {
    let whole = sound().build();
    for damage in 0..3 {
        let mut bytes = whole.clone();
        let end = bytes.len();
        match damage {
            0 => bytes.truncate(end - 512),
            1 => bytes[end - 500] ^= 1,
            _ => bytes.extend([0; 1000]),
        }
        let image = open(bytes).await.expect("the copy is sound");
        assert!(details(&*image).is_footer_damaged, "{damage}");
        assert!(contents(&*image).await == sound().disk(), "{damage}");
    }
    let mut bytes = whole;
    bytes[100] ^= 1;
    let image = open(bytes).await.expect("the footer is sound");
    assert!(!details(&*image).is_footer_damaged);
}

#[tokio::test]
async fn a_fixed_image_without_its_footer_is_none() {
    let mut bytes = vec![3; 68 * 512];
    bytes.extend(Builder::fixed(68 * 512).footer());
    let end = bytes.len();
    let refused = |bytes: Vec<u8>| async {
        let error = open(bytes).await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        error.to_string()
    };
    assert!(
        refused(bytes[..end - 512].to_vec())
            .await
            .contains("it ends with something else")
    );
    let mut damaged = bytes.clone();
    damaged[end - 3] ^= 1;
    assert!(refused(damaged).await.contains("the footer's checksum is"));
    let short = refused(bytes[512..].to_vec()).await;
    assert!(
        short.contains("the disk has 34816 bytes, and the file only 34304"),
        "{short}"
    );
    let mut only_copy = Builder::fixed(68 * 512).footer().to_vec();
    only_copy.resize(70 * 512, 1);
    assert!(refused(only_copy).await.contains("stands at its beginning"));
    assert!(refused(vec![1; 510]).await.contains("too short"));
}

#[tokio::test]
async fn blocks_in_the_wrong_place_are_told_by_those_who_want_them() {
    let table = sound().table() as usize;
    for (entry, message) in [
        (
            1_u32,
            "block 2 lies at 0x200, in the header or the table of blocks",
        ),
        (
            0,
            "block 2 lies at 0x0, in the header or the table of blocks",
        ),
        (
            3,
            "block 2 lies at 0x600, in the header or the table of blocks",
        ),
        (
            0x00ff_ffff,
            "block 2 lies at 0x1fffffe00, past the end of the file",
        ),
        (
            0xffff_fffe,
            "block 2 lies at 0x1fffffffc00, past the end of the file",
        ),
        (4, "block 2 lies at 0x800, where there is another one, too"),
        (5, "block 2 lies at 0xa00, where there is another one, too"),
    ] {
        let mut bytes = sound().build();
        bytes[table + 8..table + 12].copy_from_slice(&entry.to_be_bytes());
        let image = open(bytes).await.expect("the rest is sound");
        image
            .read(4096, Buffer::zeroed(4096))
            .await
            .expect("not in it");
        let read = image.read(4096, Buffer::zeroed(4097)).await;
        let error = read.expect_err("damage");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(message), "{error}");
    }
}

#[tokio::test]
async fn a_file_cut_short_anywhere_is_an_error_or_what_is_left() {
    let whole = sound().build();
    for length in (0..whole.len()).step_by(97) {
        match open(whole[..length].to_vec()).await {
            Ok(image) => {
                if let Err(error) = image.read(0, Buffer::zeroed(5 * 4096 + 512)).await {
                    assert_eq!(error.kind(), ErrorKind::Corrupt);
                }
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt),
        }
    }
}

/// What is wrong with the beginning of an image.
async fn look(bytes: Vec<u8>) -> blockferry_block::Result<()> {
    testing::look(&*open(bytes).await?).await
}

/// Changes some bytes of an image, and makes all sums right again.
fn changed(mut bytes: Vec<u8>, place: usize, value: &[u8]) -> Vec<u8> {
    let end = bytes.len() - 512;
    let both = if place < 512 { [0, end] } else { [0; 2] };
    for start in both {
        bytes[start + place..][..value.len()].copy_from_slice(value);
    }
    for (start, length, at) in [(0, 512, 64), (end, 512, 64), (512, 1024, 36)] {
        let part = &mut bytes[start..start + length];
        let sum = checksum(part, at);
        part[at..at + 4].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

#[tokio::test]
async fn every_lie_ends_in_one_line() {
    let lies: &[(usize, &[u8], &str)] = &[
        (12, &[0, 2], "VHD version 0x20000 is not supported"),
        (60, &[0, 0, 0, 9], "image type 9 is not known"),
        (
            60,
            &[0, 0, 0, 2],
            "the disk has 20992 bytes, and the file only 15872 before its footer",
        ),
        (
            48,
            &[1],
            "the disk has 72057594037948928 bytes, more than the largest VHD, 2190433320960",
        ),
        (
            16,
            &[0x7f; 8],
            "the header lies at 0x7f7f7f7f7f7f7f7f, past the end of the file",
        ),
        (
            16,
            &[0xff; 8],
            "the header lies at 0xffffffffffffffff, past the end of the file",
        ),
        (22, &[4], "there is no header at 0x400"),
        (512, b"CXSPARSE", "there is no header at 0x200"),
        (
            512 + 24,
            &[0, 2],
            "VHD header version 0x20000 is not supported",
        ),
        (
            512 + 32,
            &[0, 0, 16, 1],
            "there are no blocks of 4097 bytes",
        ),
        (512 + 32, &[0, 0, 1, 0], "there are no blocks of 256 bytes"),
        (
            512 + 28,
            &[0, 0, 0, 5],
            "the disk has 20992 bytes, and its 5 blocks of 4096 bytes have fewer",
        ),
        (
            512 + 16,
            &[0x7f; 8],
            "the file ends before the end of its table of blocks",
        ),
        (
            512 + 16,
            &[0xff; 8],
            "the file ends before the end of its table of blocks",
        ),
        (60, &[0, 0, 0, 4], "it has a parent and does not name it"),
    ];
    for (place, value, message) in lies {
        let bytes = changed(sound().build(), *place, value);
        let error = look(bytes).await.expect_err(message).to_string();
        assert!(error.contains(message), "{place}: {error}");
        assert!(!error.contains(char::is_control), "{error}");
    }
    look(sound().build()).await.expect("the truth");
    let named = Builder::differencing(8192, 4096, [1; 16]).utf16_locator(*b"W2ru", "base\n.vhd");
    let mut bytes = named.build();
    let error = look(bytes.clone()).await.expect_err("not allowed");
    assert!(!error.to_string().contains(char::is_control), "{error}");
    bytes = changed(bytes, 512 + 576 + 16, &[0x70; 8]);
    let error = look(bytes).await.expect_err("a lie").to_string();
    let message =
        "a name of the parent has 18 bytes at 0x7070707070707070, which are not in the file";
    assert!(error.contains(message), "{error}");
}

#[tokio::test]
async fn every_byte_of_the_header_and_the_table_may_be_anything() {
    let whole = sound().build();
    for place in (0..100).chain(512..1100).chain(1536..1568) {
        for value in [0, 1, 0x7f, 0x81, 0xff] {
            let bytes = changed(whole.clone(), place, &[value]);
            if let Err(error) = look(bytes).await {
                assert!(!error.to_string().contains(char::is_control), "{error}");
            }
        }
    }
}
