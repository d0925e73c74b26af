use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use proptest::prelude::*;

use super::*;

const ZLIB: CompressionSettings = CompressionSettings {
    kind: Compression::Zlib,
    level: None,
    window: 4096,
};
const WIDE: CompressionSettings = CompressionSettings {
    window: 32768,
    ..ZLIB
};
const ZSTD: CompressionSettings = CompressionSettings {
    kind: Compression::Zstd,
    ..ZLIB
};

/// Random bytes, the same ones for the same seed.
fn noise(length: usize, mut state: u64) -> Vec<u8> {
    state |= 1;
    let bytes = (0..length).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    });
    bytes.collect()
}

/// Words in a random order: what text looks like to a compressor.
fn text(length: usize, seed: u64) -> Vec<u8> {
    let words = noise(length, seed).into_iter().flat_map(|byte| {
        let word = "the quick brown fox jumps over a lazy dog and runs through every cluster of an image\n";
        let words: Vec<_> = word.split_inclusive(' ').collect();
        words[usize::from(byte) % words.len()].bytes()
    });
    words.take(length).collect()
}

/// Inflates as a reader does that has only a window of `bits` and takes and gives a few bytes at a time.
fn inflate_in_pieces(stream: &[u8], bits: u8, length: usize) -> Vec<u8> {
    let mut inflater = Decompress::new_with_window_bits(false, bits);
    let mut bytes = Vec::new();
    let mut piece = [0; 97];
    loop {
        let rest = &stream[inflater.total_in() as usize..];
        let before = inflater.total_out();
        let status = inflater
            .decompress(
                &rest[..rest.len().min(61)],
                &mut piece,
                FlushDecompress::None,
            )
            .expect("a stream within the window");
        bytes.extend_from_slice(&piece[..(inflater.total_out() - before) as usize]);
        if status == Status::StreamEnd {
            assert_eq!(inflater.total_in() as usize, stream.len());
            return bytes;
        }
        let stuck = rest.is_empty() && inflater.total_out() == before;
        assert!(bytes.len() <= length && !stuck, "the stream does not end");
    }
}

/// Compresses, and checks what comes out by every reader there is. Returns its length.
fn check(
    settings: &CompressionSettings,
    compressor: &mut Compressor,
    cluster: &[u8],
) -> Option<usize> {
    let mut out = vec![0xa5; cluster.len() + 64];
    let (room, beyond) = out.split_at_mut(cluster.len());
    let length = compressor.compress(cluster, room);
    assert!(
        beyond.iter().all(|byte| *byte == 0xa5),
        "written beyond the room"
    );
    let length = length?;
    assert!(length < cluster.len());
    let mut back = vec![0; cluster.len()];
    let mut decompressor = Decompressor::new();
    for stream in [&out[..length], &out] {
        back.fill(0x5a);
        decompressor
            .decompress(settings.kind, stream, &mut back)
            .expect("our own stream");
        assert!(back == cluster, "another cluster came back");
    }
    if settings.kind == Compression::Zlib {
        let bits = if settings.window == 4096 { 12 } else { 15 };
        let back = inflate_in_pieces(&out[..length], bits, cluster.len());
        assert!(back == cluster, "another cluster came back in pieces");
    }
    Some(length)
}

/// The wide window by the encoder that makes the small one by default.
fn wide_of_ours() -> CompressionSettings {
    CompressionSettings {
        level: Some(2),
        ..WIDE
    }
}

/// All settings there are.
fn settings() -> Vec<CompressionSettings> {
    let levels = |kind: CompressionSettings, most: u32| {
        (0..=most).map(move |level| CompressionSettings {
            level: (level > 0).then_some(level),
            ..kind
        })
    };
    levels(ZLIB, 9)
        .chain(levels(WIDE, 9))
        .chain(levels(ZSTD, 22))
        .collect()
}

#[test]
fn every_setting_gives_the_cluster_back() {
    for settings in settings() {
        let mut compressor = Compressor::new(&settings);
        for bits in [9, 14] {
            let length = 1 << bits;
            let mut half = noise(length / 2, 3);
            half.extend_from_slice(&text(length / 2, 4));
            for cluster in [vec![0; length], vec![7; length], text(length, 5), half] {
                let made = check(&settings, &mut compressor, &cluster);
                assert!(made.is_some(), "{settings:?} {length}");
            }
        }
    }
}

#[test]
fn what_does_not_shrink_is_given_up() {
    for settings in settings() {
        let mut compressor = Compressor::new(&settings);
        for bits in [9, 13] {
            let cluster = noise(1 << bits, 11);
            assert_eq!(
                check(&settings, &mut compressor, &cluster),
                None,
                "{settings:?}"
            );
            assert!(check(&settings, &mut compressor, &text(1 << bits, 1)).is_some());
        }
        assert_eq!(check(&settings, &mut compressor, &[]), None);
        assert_eq!(check(&settings, &mut compressor, &[1]), None);
    }
}

#[test]
fn clusters_that_do_not_shrink_may_follow_each_other() {
    for settings in settings() {
        let mut compressor = Compressor::new(&settings);
        let mut out = vec![0; 4096];
        for seed in 0..24 {
            let cluster = noise(4096, seed << 8);
            assert_eq!(
                compressor.compress(&cluster, &mut out),
                None,
                "{settings:?}"
            );
        }
        let cluster = text(4096, 1);
        assert!(check(&settings, &mut compressor, &cluster).is_some());
    }
}

#[test]
fn clusters_of_several_segments_come_back() {
    // Matches across the boundaries, stored parts between others, and places beyond the first 64 KiB.
    let mut cluster = text(100_000, 1);
    cluster.extend_from_slice(&noise(131_072, 2));
    cluster.extend_from_slice(&[0; 70_000]);
    cluster.extend_from_slice(&noise(3000, 3).repeat(33));
    cluster.extend_from_slice(&text(262_144, 4));
    cluster.truncate(1 << 19);
    for settings in [ZLIB, WIDE, wide_of_ours()] {
        let mut compressor = Compressor::new(&settings);
        for _ in 0..2 {
            let length = check(&settings, &mut compressor, &cluster).expect("most of it shrinks");
            assert!(length < cluster.len() / 2, "{settings:?} {length}");
        }
    }
}

#[test]
fn what_comes_out_depends_on_the_cluster_alone() {
    for settings in [ZLIB, WIDE, wide_of_ours(), ZSTD] {
        let cluster = text(65536, 8);
        let mut expected = vec![0; 65536];
        let length = Compressor::new(&settings).compress(&cluster, &mut expected);
        let mut used = Compressor::new(&settings);
        for other in [
            text(65536, 8),
            noise(65536, 1),
            text(1 << 17, 5),
            vec![0; 512],
        ] {
            used.compress(&other, &mut vec![0; other.len()]);
            let mut out = vec![0; 65536];
            assert_eq!(used.compress(&cluster, &mut out), length);
            let length = length.expect("text shrinks");
            assert!(out[..length] == expected[..length], "{settings:?}");
        }
    }
}

#[test]
fn the_largest_clusters_shrink_too() {
    for settings in [ZLIB, WIDE, wide_of_ours(), ZSTD] {
        let mut compressor = Compressor::new(&settings);
        let cluster = text(2 << 20, 9);
        let length = check(&settings, &mut compressor, &cluster).expect("text shrinks");
        assert!(length < cluster.len() / 3, "{settings:?} {length}");
    }
}

#[test]
fn a_small_room_is_never_overrun() {
    let cluster = text(4096, 2);
    for settings in settings() {
        let mut compressor = Compressor::new(&settings);
        let full = compressor
            .compress(&cluster, &mut [0; 4096])
            .expect("text shrinks");
        for room in [0, 1, 7, 8, 64, full - 1, full] {
            let mut out = vec![0; 4096];
            let length = compressor.compress(&cluster, &mut out[..room]);
            assert!(length.is_none_or(|length| length <= room));
            assert!(out[room..].iter().all(|byte| *byte == 0));
        }
    }
}

/// One stream of either kind that holds `cluster`, made by libraries.
fn streams(cluster: &[u8]) -> [(Compression, Vec<u8>); 2] {
    let mut deflate = Vec::with_capacity(cluster.len() * 2 + 64);
    Compress::new(flate2::Compression::new(6), false)
        .compress_vec(cluster, &mut deflate, FlushCompress::Finish)
        .expect("room enough");
    let frame = zstd::bulk::compress(cluster, 3).expect("room enough");
    [(Compression::Zlib, deflate), (Compression::Zstd, frame)]
}

#[test]
fn others_bytes_after_a_stream_do_no_harm() {
    let cluster = text(65536, 3);
    for (kind, stream) in streams(&cluster) {
        for after in [vec![0; 511], vec![0xff; 600], noise(300, 5), stream.clone()] {
            let mut bytes = stream.clone();
            bytes.extend_from_slice(&after);
            let mut back = vec![0; cluster.len()];
            Decompressor::new()
                .decompress(kind, &bytes, &mut back)
                .expect("a stream with others' bytes after it");
            assert!(back == cluster);
        }
    }
}

#[test]
fn streams_of_another_length_are_corrupt() {
    let cluster = text(65536, 3);
    for (kind, stream) in streams(&cluster) {
        let mut decompressor = Decompressor::new();
        for length in [512, 65535, 65537, 1 << 17] {
            let error = decompressor
                .decompress(kind, &stream, &mut vec![0; length])
                .expect_err("another length");
            assert_eq!(
                error.kind(),
                blockferry_block::ErrorKind::Corrupt,
                "{kind:?}"
            );
        }
        let cut = &stream[..stream.len() - 1];
        for stream in [cut, &stream[..9], &stream[..0], &noise(4096, 17)] {
            let mut back = vec![0; cluster.len()];
            assert!(
                decompressor.decompress(kind, stream, &mut back).is_err(),
                "{kind:?}"
            );
        }
        let mut back = vec![0; cluster.len()];
        decompressor
            .decompress(kind, &stream, &mut back)
            .expect("a context that has seen errors still works");
    }
}

#[test]
fn a_bomb_fills_no_more_than_the_cluster() {
    let zeroes = vec![0; 64 << 20];
    for (kind, stream) in streams(&zeroes) {
        let mut back = vec![1; 65536];
        assert!(
            Decompressor::new()
                .decompress(kind, &stream, &mut back)
                .is_err()
        );
    }
}

/// A cluster of the sort that images hold, of any size that clusters have up to 128 KiB.
fn cluster() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        (1..20_000_usize, any::<u64>()).prop_map(|(length, seed)| noise(length, seed)),
        (1..20_000_usize, any::<u64>()).prop_map(|(length, seed)| text(length, seed)),
        (1..20_000_usize, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]),
        (1..200_usize, 2..2000_usize, any::<u64>())
            .prop_map(|(length, times, seed)| noise(length, seed).repeat(times)),
        prop::collection::vec(0..4_u8, 1..5000),
        prop::collection::vec(any::<u8>(), 1..2000),
        // Few and far between, so that codes get long.
        (1..20_000_usize, any::<u64>()).prop_map(|(length, seed)| {
            let skewed = noise(length, seed).into_iter();
            skewed.map(|byte| byte.leading_zeros() as u8 * 3).collect()
        }),
    ];
    (prop::collection::vec(part, 1..8), 9..=17_u32).prop_map(|(parts, bits)| {
        let parts = parts.concat();
        parts.into_iter().cycle().take(1 << bits).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_cluster_comes_back(cluster in cluster()) {
        for settings in [ZLIB, WIDE, wide_of_ours(), ZSTD] {
            check(&settings, &mut Compressor::new(&settings), &cluster);
        }
    }

    #[test]
    fn any_cluster_comes_back_at_any_level(cluster in cluster(), setting in 0..43_usize) {
        let settings = settings()[setting];
        check(&settings, &mut Compressor::new(&settings), &cluster);
    }

    #[test]
    fn damage_is_an_error_or_another_cluster(
        cluster in cluster(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        for (kind, mut stream) in streams(&cluster) {
            for (index, byte) in &damage {
                *index.get_mut(&mut stream[..]) = *byte;
            }
            let mut back = vec![0; cluster.len()];
            let _ = Decompressor::new().decompress(kind, &stream, &mut back);
        }
    }
}
