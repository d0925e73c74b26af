//! Digests against those of other tools, and against the definition written down naively.

use blockferry_block::{Buffer, ByteRange};
use proptest::prelude::*;
use sha2::Digest as _;

use super::{Algorithm, Digest, DigestOptions, HashThreads, ImageDigest, Work, blocks::ZeroBlock};

/// The definition, word for word, over SHA-256.
fn naive(bytes: &[u8], block_size: usize) -> String {
    let mut all = Vec::new();
    for block in bytes.chunks(block_size) {
        all.extend(sha2::Sha256::digest(block));
    }
    all.extend((bytes.len() as u64).to_le_bytes());
    let digest = sha2::Sha256::digest(&all);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A part of an image, and whether it is told as a run of zeroes.
#[derive(Clone, Debug)]
struct Part {
    range: ByteRange,
    zero: bool,
}

fn digest(options: DigestOptions, bytes: &[u8], parts: &[Part]) -> Option<Digest> {
    let work = Work::new(Some(ZeroBlock::new(options)), None);
    let mut image = ImageDigest::new(ZeroBlock::new(options));
    for part in parts {
        let (start, end) = (part.range.start() as usize, part.range.end() as usize);
        match part.zero {
            true => image.add_zeroes(part.range),
            false => image.add(work.compute(part.range.start(), &bytes[start..end])),
        }
    }
    image.finish(bytes.len() as u64)
}

fn whole(bytes: &[u8]) -> Vec<Part> {
    let range = ByteRange::between(0, bytes.len() as u64);
    vec![Part { range, zero: false }]
}

/// What `seq 1 100000 | head -c 200000` prints.
fn numbers() -> Vec<u8> {
    let lines = (1..=100_000).flat_map(|number| format!("{number}\n").into_bytes());
    lines.take(200_000).collect()
}

/// Computed by this script, where `holes` is the numbers, 300,000 zeroes, `1`, and 99,999 zeroes:
///
/// ```sh
/// blkhash() { # ALGORITHM BLOCKSIZE FILE
///     { split -b $2 --filter="$1sum" $3 | cut -d' ' -f1 | tr -d '\n'
///       printf %016x $(stat -c %s $3) | fold -w2 | tac | tr -d '\n'
///     } | tr a-f A-F | basenc --base16 -d | $1sum
/// }
/// ```
#[test]
fn digests_are_those_that_other_tools_compute() {
    let numbers = numbers();
    let mut holes = numbers.clone();
    holes.resize(500_000, 0);
    holes.push(b'1');
    holes.resize(600_000, 0);
    for (bytes, options, expected) in [
        (&numbers[..], "md5", "c99604ffe49a45a4b84db7a894e7152a"),
        (
            &numbers,
            "sha1/4k",
            "a3138c89eaf4426792480f62c1ceb4415dc044b0",
        ),
        (
            &numbers,
            "sha256",
            "f8677122dcb8b1a47dca49439c40eb4fcb03a62e42460eed7ba7844e77268aba",
        ),
        (
            &numbers,
            "sha512/512",
            "153e6736a45c0dd368d3fb8eaf33e65fbf272a1f9af3b9251526f21f6a42ae84\
             670e25f1e1f6463196b550724cf52b2ad39c496521b285afa95ca6a812e4ad11",
        ),
        (
            &numbers,
            "sha256/1M",
            "66d5c4fe7a602c1fced96f7f0e935b2ea8e39933721e91db03e7220f0cdc7600",
        ),
        (&[], "sha1", "05fe405753166f125559e7c9ac558654f107c7e9"),
        (
            &numbers[..65_536],
            "sha256",
            "d04d64b9fc3834ecaecadbb033e6f8f45f8e3d7f3a41840ad55e97904a0b98da",
        ),
        (&numbers[..1], "md5", "9d4781569cce41b2d782cc5ba89dc885"),
        (&holes, "md5", "cd27fff143187f72a7a0a848d6419234"),
        (
            &holes,
            "sha1/4k",
            "70c6f7e0d3058c201b72c9919d6efbc3044f9665",
        ),
        (
            &holes,
            "sha256/1M",
            "11f799cda47fc98ab9477cc512d38684809082cb7519465986e47bb1d4b42268",
        ),
    ] {
        let options: DigestOptions = options.parse().expect("valid");
        let computed = digest(options, bytes, &whole(bytes)).expect("whole");
        assert_eq!(computed.to_string(), expected, "{options}");
    }
}

#[test]
fn an_image_with_a_part_missing_has_no_digest() {
    let bytes = numbers();
    let options = DigestOptions::new(Algorithm::Sha256, 4096).expect("valid");
    for (start, end) in [
        (0, 1),
        (0, 4096),
        (5000, 5001),
        (8192, 12288),
        (199_999, 200_000),
    ] {
        let around = [(0, start), (end, 200_000)].map(|(start, end)| Part {
            range: ByteRange::between(start, end),
            zero: false,
        });
        assert_eq!(digest(options, &bytes, &around), None, "{start} to {end}");
    }
    let more = ImageDigest::new(ZeroBlock::new(options));
    assert_eq!(more.finish(1), None);
}

#[test]
fn a_hole_of_many_tebibytes_is_one_entry_while_it_waits() {
    let options = DigestOptions::default();
    let mut image = ImageDigest::new(ZeroBlock::new(options));
    let piece = 128_u64 << 20;
    let pieces = 1..(16_u64 << 40) / piece;
    // Neither forwards nor backwards nor from both ends does it fall apart.
    let (low, high): (Vec<_>, Vec<_>) = pieces.partition(|index| index % 2 == 0);
    for index in high.into_iter().rev().chain(low) {
        let start = index * piece;
        image.add_zeroes(ByteRange::between(start, start + piece));
    }
    assert_eq!(image.ahead_len(), 1);
}

#[test]
fn zeroes_are_the_same_whether_told_or_read() {
    let size = 3_000_001_usize;
    let bytes = vec![0; size];
    let options = DigestOptions::default();
    let told = digest(
        options,
        &bytes,
        &[Part {
            range: ByteRange::between(0, size as u64),
            zero: true,
        }],
    );
    let expected = naive(&bytes, 65_536);
    assert_eq!(told.expect("whole").to_string(), expected);
    let read = digest(options, &bytes, &whole(&bytes)).expect("whole");
    assert_eq!(read.to_string(), expected);
}

/// An image, how it is cut, and in which order its parts come.
fn images() -> impl Strategy<Value = (Vec<u8>, Vec<Part>)> {
    let holes = prop::collection::vec((0..40_000_usize, 1..20_000_usize), 0..4);
    let cuts = prop::collection::vec(0..40_000_u64, 0..12);
    let aligned = prop_oneof![Just(1_u64), Just(512), Just(4096)];
    let image = (0..40_000_usize, holes, cuts, aligned);
    let parts = image.prop_map(|(size, holes, cuts, aligned)| {
        let mut bytes: Vec<u8> = (0..size).map(|at| (at * 7 / 1000) as u8 | 1).collect();
        for (start, length) in holes {
            let end = (start + length).min(size);
            bytes[start.min(size)..end].fill(0);
        }
        let mut edges: Vec<_> = cuts
            .into_iter()
            .map(|cut| (cut - cut % aligned).min(size as u64))
            .chain([0, size as u64])
            .collect();
        edges.sort_unstable();
        edges.dedup();
        let parts: Vec<_> = edges
            .windows(2)
            .map(|edge| Part {
                range: ByteRange::between(edge[0], edge[1]),
                zero: bytes[edge[0] as usize..edge[1] as usize]
                    .iter()
                    .all(|byte| *byte == 0),
            })
            .collect();
        (bytes, parts)
    });
    parts.prop_flat_map(|(bytes, parts)| (Just(bytes), Just(parts).prop_shuffle()))
}

proptest! {
    #[test]
    fn cuts_holes_and_order_do_not_matter(
        (bytes, parts) in images(),
        block_size in prop::sample::select(vec![512_u32, 4096, 16_384, 65_536]),
    ) {
        let options = DigestOptions::new(Algorithm::Sha256, block_size.into()).expect("valid");
        let computed = digest(options, &bytes, &parts).expect("whole");
        prop_assert_eq!(computed.to_string(), naive(&bytes, block_size as usize));
    }
}

#[tokio::test]
async fn threads_compute_what_the_caller_would_and_give_the_buffer_back() {
    let bytes = numbers();
    let work = Work::new(Some(ZeroBlock::new(DigestOptions::default())), Some(4096));
    let threads = HashThreads::new(work.clone());
    let pieces = bytes.chunks(65_536).enumerate().map(|(index, piece)| {
        let offset = index as u64 * 65_536;
        (offset, piece, threads.hash(offset, Buffer::from(piece)))
    });
    for (offset, piece, hashed) in pieces.collect::<Vec<_>>() {
        let (buffer, digests) = hashed.await.expect("hashed");
        assert!(*buffer == *piece);
        assert_eq!(digests, work.compute(offset, piece));
    }
}

#[tokio::test]
async fn a_panic_while_hashing_is_an_error_and_the_threads_go_on() {
    // Nothing can be cut into blocks of no length.
    let threads = HashThreads::new(Work::new(None, Some(0)));
    for _ in 0..10 {
        let hashed = threads.hash(0, Buffer::from(&[1, 2, 3][..])).await;
        assert!(hashed.is_err());
    }
}

#[tokio::test]
async fn threads_end_although_nobody_waits_for_what_they_do() {
    let threads = HashThreads::new(Work::new(
        Some(ZeroBlock::new(DigestOptions::default())),
        None,
    ));
    for offset in 0..100 {
        drop(threads.hash(offset << 20, Buffer::zeroed(1 << 20)));
    }
    let last = threads.hash(0, Buffer::zeroed(1));
    drop(threads);
    // Done or given up: no one is left waiting.
    let _ = last.await;
}
