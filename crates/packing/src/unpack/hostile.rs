//! What is compressed to harm, or was harmed, and the words for it.

use blockferry_block::ErrorKind;

use super::{
    tests::{image, memory, open, packed, read_all, unpack},
    *,
};

/// The failure of unpacking these bytes.
async fn failure(packing: Packing, bytes: &[u8]) -> Error {
    unpack(packing, bytes).await.expect_err("it is wrong")
}

/// The same with all else as it should be, but for the byte at `at`, counted from the end where it is negative.
async fn flipped(packing: Packing, bytes: &[u8], at: isize) -> String {
    let mut bytes = bytes.to_vec();
    let at = match at {
        0.. => at as usize,
        _ => bytes.len() - at.unsigned_abs(),
    };
    bytes[at] ^= 1;
    let error = failure(packing, &bytes).await;
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    error.to_string()
}

#[tokio::test]
async fn wrong_checksums_are_told() {
    let image = image(100_000);
    for (packing, at, words) in [
        (Packing::Gzip, -8, "gzip: wrong contents, or a wrong CRC-32"),
        (Packing::Gzip, -4, "gzip: wrong contents"),
        (Packing::Zstd, -1, "zstd: wrong contents ("),
        (
            Packing::Bzip2,
            10,
            "bzip2: wrong contents, or a wrong CRC-32",
        ),
        (Packing::Xz, -1, "xz: wrong contents"),
    ] {
        let bytes = packed(packing, &image);
        let text = flipped(packing, &bytes, at).await;
        assert!(text.contains(words), "{text}");
        assert!(
            text.ends_with("bytes were unpacked: the file is damaged"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn what_is_cut_off_or_followed_by_something_is_told_with_its_offset() {
    let image = image(100_000);
    for packing in Packing::ALL {
        let bytes = packed(packing, &image);
        for end in [bytes.len() - 1, bytes.len() / 2, 20] {
            let error = failure(packing, &bytes[..end]).await;
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            let words = format!("{packing}: it ends too early, at or before offset {end}, after ");
            assert!(error.to_string().contains(&words), "{error}");
        }
        for behind in [
            &b"garbage that is long enough"[..],
            b"x",
            b"\0\0\0x",
            b"\0\0\0\0\0\0\0\0garbage",
        ] {
            let error = failure(packing, &[&bytes, behind].concat()).await;
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            let at = bytes.len();
            let words = format!(
                "{packing}: there is something after its end, at or before offset {at}, after 100000 bytes were \
                 unpacked: the file is damaged"
            );
            assert!(error.to_string().contains(&words), "{error}");
        }
    }
    let two = [&image[..300], &image[300..]].map(|part| packed(Packing::Xz, part));
    let error = failure(Packing::Xz, &[&two[0], &[0; 7][..], &two[1]].concat()).await;
    assert!(
        error.to_string().contains("something after its end"),
        "{error}"
    );
    let two = [&image[..300], &image[300..]].map(|part| packed(Packing::Gzip, part));
    let error = failure(Packing::Gzip, &[&two[0], &[0; 8][..], &two[1]].concat()).await;
    assert!(
        error.to_string().contains("something after its end"),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_something_else_is_refused() {
    for packing in Packing::ALL {
        for bytes in [&b""[..], b"x", &[0; 10_000], b"BZh", b"\x1f\x8b"] {
            let error = failure(packing, bytes).await;
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            assert_eq!(
                error.to_string(),
                format!("it is not in the format {packing}")
            );
        }
    }
}

#[tokio::test]
async fn a_bomb_takes_no_more_than_it_may() {
    for packing in Packing::ALL {
        let bomb = packed(packing, &vec![0; 20 << 20]);
        let mut options = UnpackOptions {
            max_size: Some(5 << 20),
            ..UnpackOptions::default()
        };
        let unpacked = open(memory(&bomb), packing, &options).await.expect("open");
        let error = read_all(unpacked, &[256 << 10])
            .await
            .expect_err("too much");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(
            error.to_string(),
            "it holds more than the 5.0 MiB that max-size allows"
        );
        options.max_size = Some(20 << 20);
        let unpacked = open(memory(&bomb), packing, &options).await.expect("open");
        let whole = read_all(unpacked, &[256 << 10]).await.expect("just enough");
        assert_eq!(whole.len(), 20 << 20);
    }
}

#[tokio::test]
async fn what_needs_too_much_memory_is_refused_by_name() {
    // A window of 3.75 TiB, and a frame that says it holds nearly 2^64 bytes.
    let window = [
        0x28, 0xb5, 0x2f, 0xfd, 0, 0xff, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let frame = [
        0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0,
    ];
    for bytes in [window, frame] {
        let error = failure(Packing::Zstd, &bytes).await;
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let text = error.to_string();
        assert!(
            text.contains("window") && text.contains("512.0 MiB are the most"),
            "{text}"
        );
        assert!(text.contains("--long=31"), "{text}");
    }
    let options = UnpackOptions {
        memory: 1 << 20,
        ..UnpackOptions::default()
    };
    let image = image(5 << 20);
    let large = packed(Packing::Zstd, &image);
    for (packing, bytes) in [(Packing::Zstd, &large), (Packing::Xz, &solid_xz(&image))] {
        let refused = match open(memory(bytes), packing, &options).await {
            Ok(unpacked) => read_all(unpacked, &[256 << 10]).await.map(drop),
            Err(error) => Err(error),
        };
        match packing {
            // Its window is half of that at this level.
            Packing::Zstd => refused.expect("it fits"),
            _ => {
                let error = refused.expect_err("a dictionary of 8 MiB");
                assert_eq!(error.kind(), ErrorKind::Unsupported);
                assert!(error.to_string().contains("more memory"), "{error}");
            }
        }
    }
}

/// As `xz` makes it: one block.
fn solid_xz(image: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut packer = liblzma::write::XzEncoder::new(Vec::new(), 6);
    packer.write_all(image).expect("packed");
    packer.finish().expect("packed")
}

#[tokio::test]
async fn an_xz_file_with_checksums_that_nobody_knows_is_refused() {
    let mut bytes = packed(Packing::Xz, &image(1000));
    bytes[7] = 2;
    let crc = crc32fast::hash(&bytes[6..8]).to_le_bytes();
    bytes[8..12].copy_from_slice(&crc);
    let error = failure(Packing::Xz, &bytes).await;
    assert!(
        error.to_string().contains("xz: unknown checksums"),
        "{error}"
    );
}
