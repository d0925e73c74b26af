//! The sample disk against its published algorithm, written down a second time and naively.

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Context, ErrorKind, Extent, Mapping, SampleDevice, SampleError,
    SampleOptions, Status, WriteFlags, ZeroFlags, is_zero,
};
use proptest::prelude::*;

const G: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Whether the byte at `offset` is data, and its value, from the module's documentation.
fn naive(options: SampleOptions, offset: u64) -> (bool, u8) {
    let region = offset >> 24;
    let state = mix(options.seed ^ 0x6c61_796f_7574).wrapping_add(region.wrapping_mul(G));
    let hash = mix(state);
    let cell_size = match hash >> 60 {
        _ if region == 0 => 1 << 16,
        0..=7 => 1 << 24,
        8..=11 => 1 << 20,
        12..=14 => 1 << 16,
        _ => 1 << 12,
    };
    let cell = (offset & 0xff_ffff) / cell_size;
    let cell_hash = match cell_size {
        0x100_0000 => state,
        _ => mix(hash.wrapping_add((cell + 1).wrapping_mul(G))),
    };
    if (cell_hash >> 32) * 100 >= u64::from(options.data_percent) << 32 {
        return (false, 0);
    }
    let (page, row, lane) = (offset / 4096, offset % 4096 / 64, offset % 64 / 8);
    let mut state = mix(options
        .seed
        .wrapping_add((8 * page + lane + 1).wrapping_mul(G)));
    for _ in 0..=row {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
    }
    (true, state.to_le_bytes()[(offset % 8) as usize])
}

fn sample(text: &str) -> SampleDevice {
    SampleDevice::new(text.parse().expect("a sample"))
}

async fn read(device: &SampleDevice, offset: u64, length: usize) -> Buffer {
    let buffer = Buffer::from(&vec![0xaa; length][..]);
    device.read(offset, buffer).await.expect("within bounds")
}

async fn all_extents(device: &SampleDevice) -> Vec<Extent> {
    let (mut list, size) = (Vec::<Extent>::new(), device.info().size);
    while list.last().map_or(0, |last| last.range.end()) < size {
        let at = list.last().map_or(0, |last| last.range.end());
        let answer = device.extents(ByteRange::between(at, size), &Context::Allocation);
        let answer = answer.await.expect("extents");
        assert!(!answer.is_empty() && answer.len() <= 4096);
        list.extend(answer);
    }
    list
}

#[tokio::test]
async fn the_bytes_are_those_of_every_other_machine_and_version() {
    let device = sample("1M,data=100");
    assert_eq!(
        read(&device, 0, 16).await[..],
        PINNED_SEED_0,
        "seed 0 at offset 0"
    );
    let device = sample("1T,seed=1,data=100");
    assert_eq!(
        read(&device, (1 << 40) - 16, 16).await[..],
        PINNED_SEED_1,
        "seed 1 at the end of a TiB"
    );
    let extents = all_extents(&sample("64M,seed=7")).await;
    let layout = extents.iter().fold(0, |hash: u64, extent| {
        mix(hash ^ extent.range.end() ^ extent.status.0)
    });
    assert_eq!((extents.len(), layout), PINNED_LAYOUT);
}

/// Computed by another program, in another language.
const PINNED_SEED_0: [u8; 16] = [
    0xf4, 0x7d, 0xc5, 0x8c, 0x0e, 0x26, 0x61, 0x66, 0x3f, 0xea, 0x63, 0xe2, 0xf2, 0xcd, 0xdc, 0x3e,
];
const PINNED_SEED_1: [u8; 16] = [
    0x20, 0xf0, 0x84, 0x89, 0x74, 0x88, 0x48, 0x1e, 0x0d, 0xf2, 0xd7, 0xc7, 0xfb, 0xd8, 0x40, 0xf8,
];
const PINNED_LAYOUT: (usize, u64) = (179, 0x7121_5a9d_4097_33f0);

#[tokio::test]
async fn no_block_of_data_is_zero_and_no_two_are_equal() {
    let device = sample("4M,data=100");
    let bytes = read(&device, 0, 4 << 20).await;
    assert!(bytes.chunks(16).all(|block| !is_zero(block)));
    let mut blocks: Vec<_> = bytes.chunks(512).collect();
    blocks.sort_unstable();
    assert!(blocks.windows(2).all(|pair| pair[0] != pair[1]));
    let other = read(&sample("4M,seed=1,data=100"), 0, 4096).await;
    assert_ne!(other[..], bytes[..4096]);
}

#[tokio::test]
async fn the_share_of_data_is_about_what_was_asked_for() {
    for percent in [0, 1, 25, 60, 99, 100] {
        let device = sample(&format!("8G,seed=3,data={percent}"));
        let data: u64 = all_extents(&device)
            .await
            .iter()
            .filter(|extent| extent.status == Status::DATA)
            .map(|extent| extent.range.len())
            .sum();
        let share = data as f64 * 100.0 / device.info().size as f64;
        let tolerance = if percent % 100 == 0 { 0.0 } else { 4.0 };
        assert!(
            (share - f64::from(percent)).abs() <= tolerance,
            "{percent}: {share}"
        );
    }
}

#[tokio::test]
async fn holes_and_data_come_in_long_and_in_short_runs() {
    let extents = all_extents(&sample("8G")).await;
    for status in [Status::DATA, Status::HOLE_ZERO] {
        let mut lengths: Vec<_> = extents
            .iter()
            .filter(|extent| extent.status == status)
            .map(|extent| extent.range.len())
            .collect();
        lengths.sort_unstable();
        assert!(lengths[0] == 4096 && lengths[lengths.len() - 1] >= 16 << 20);
    }
}

#[tokio::test]
async fn a_hole_is_mapped_to_zeroes_as_far_as_it_surely_goes() {
    let device = sample("64M,seed=2");
    for extent in all_extents(&device).await {
        match device.mapping(extent.range) {
            Mapping::Zero { length } => {
                assert!(extent.status.is_hole() && (1..=extent.range.len()).contains(&length));
            }
            _ => assert!(!extent.status.is_hole()),
        }
    }
}

#[tokio::test]
async fn a_sample_is_read_only_and_ends_where_it_ends() {
    let device = sample("1000");
    let write = device.write(0, Buffer::zeroed(1), WriteFlags::empty());
    assert_eq!(write.await.expect_err("no").kind(), ErrorKind::ReadOnly);
    let error = device.read(999, Buffer::zeroed(2)).await.expect_err("no");
    assert_eq!(error.kind(), ErrorKind::OutOfBounds);
    let huge = sample("7E");
    let last = huge.read((7 << 60) - 4096, Buffer::zeroed(4096)).await;
    last.expect("an offset like any other");
}

#[test]
fn options_are_read_and_printed() {
    let options: SampleOptions = "4G,seed=1,data=30%".parse().expect("a sample");
    let expected = SampleOptions {
        size: 4 << 30,
        seed: 1,
        data_percent: 30,
    };
    assert_eq!(options, expected);
    assert_eq!(options.to_string().parse(), Ok(expected));
    let defaults: SampleOptions = "512".parse().expect("a sample");
    assert_eq!((defaults.seed, defaults.data_percent), (0, 25));
    let error = |text: &str| text.parse::<SampleOptions>().expect_err(text);
    assert!(matches!(error(""), SampleError::Size(_)));
    assert!(matches!(error("1G,data=101"), SampleError::Data(_)));
    assert!(matches!(error("1G,data=300"), SampleError::Data(_)));
    assert!(matches!(error("1G,seed=-1"), SampleError::Seed(_)));
    assert!(matches!(error("1G,sed=1"), SampleError::Unknown(_)));
    assert!(matches!(error("1G,"), SampleError::Unknown(_)));
}

proptest! {
    #[test]
    fn any_range_reads_as_the_algorithm_says(
        seed in any::<u64>(),
        data_percent in 0..=100_u8,
        offset in prop_oneof![0..64_u64 << 20, (0..i64::MAX as u64 - (1 << 20))],
        length in 1..9000_usize,
    ) {
        let options = SampleOptions { size: i64::MAX as u64, seed, data_percent };
        let device = SampleDevice::new(options);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let bytes = runtime.block_on(read(&device, offset, length));
        let range = ByteRange::new(offset, length as u64).expect("valid");
        let extents = runtime.block_on(device.extents(range, &Context::Allocation));
        let mut extents = extents.expect("extents").into_iter().peekable();
        for (at, byte) in (offset..).zip(&bytes[..]) {
            let (is_data, value) = naive(options, at);
            prop_assert_eq!(*byte, value, "offset {}", at);
            let extent = *extents.peek().expect("all of the range is known");
            prop_assert_eq!(extent.status.is_hole(), !is_data);
            if at + 1 == extent.range.end() {
                extents.next();
            }
        }
        prop_assert!(extents.next().is_none());
    }
}

#[tokio::test]
async fn a_checking_sample_takes_what_it_holds_and_nothing_else() {
    let text = "4M,seed=5,data=50";
    let plain = sample(text);
    let device = sample(text).checking();
    let extents = all_extents(&device).await;
    let hole = extents.iter().find(|extent| extent.status != Status::DATA);
    let hole = hole.expect("a hole").range;
    let data = extents.iter().find(|extent| extent.status == Status::DATA);
    let data = data.expect("data").range;
    for (offset, length) in [(0, 4 << 20), (1, 100_000), (data.start() + 7, 4096)] {
        let held = read(&plain, offset, length).await;
        let written = device.write(offset, held, WriteFlags::empty()).await;
        assert_eq!(written.expect("what it holds").len(), length);
        let mut other = read(&plain, offset, length).await;
        other[length - 1] ^= 1;
        let refused = device.write(offset, other, WriteFlags::empty()).await;
        assert_eq!(refused.expect_err("something else").kind(), ErrorKind::Io);
    }
    let (zero, none) = (ZeroFlags::empty(), WriteFlags::empty());
    device.zero(hole, zero).await.expect("zeroes already");
    device.trim(hole, none).await.expect("zeroes already");
    device.flush().await.expect("nothing to do");
    let across = ByteRange::between(0, 4 << 20);
    for refused in [
        device.zero(across, zero).await,
        device.trim(data, none).await,
    ] {
        assert_eq!(refused.expect_err("data").kind(), ErrorKind::Io);
    }
    let refused = plain.zero(hole, zero).await.expect_err("read-only");
    assert_eq!(refused.kind(), ErrorKind::ReadOnly);
}
