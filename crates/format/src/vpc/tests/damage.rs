//! Images that are damaged, or lie.

use blockferry_block::{Buffer, ErrorKind};

use super::{builder::Builder, contents, details, open};

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
        let error = open(bytes).await.err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        error.to_string()
    };
    assert!(
        refused(bytes[..end - 512].to_vec())
            .await
            .contains("does not end")
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
            "block 2 lies at 0x1fffffe00, where the file has ended",
        ),
        (
            0xffff_fffe,
            "block 2 lies at 0x1fffffffc00, where the file has ended",
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
