//! Packed files for tests, made with the libraries' encoders.

use bzip2::write::BzEncoder;
use flate2::{Compress, Compression, FlushCompress, write::GzEncoder};
use liblzma::stream::{Action, Check, Filters, LzmaOptions, Status, Stream};
use std::io::Write;
use zstd::bulk::Compressor;

/// `length` bytes as disks have them: zeroes, text, and noise.
pub(super) fn image(length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 4096);
    let mut state = 1_u64;
    while bytes.len() < length {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        match state >> 62 {
            0 => bytes.resize(bytes.len() + 10_000, 0),
            1 => bytes.extend_from_slice(format!("line {state}\n").repeat(99).as_bytes()),
            _ => bytes
                .extend((0..500_u64).map(|at| (state >> (at % 40)) as u8 ^ ((at * at) >> 3) as u8)),
        }
    }
    bytes.truncate(length);
    bytes
}

/// One xz stream, in blocks of `block` bytes.
pub(super) fn xz(image: &[u8], block: usize, check: Check) -> Vec<u8> {
    let options = LzmaOptions::new_preset(1).expect("a preset");
    let mut filters = Filters::new();
    filters.lzma2(&options);
    xz_with(&filters, image, block, check)
}

/// The same, with other filters.
pub(super) fn xz_with(filters: &Filters, image: &[u8], block: usize, check: Check) -> Vec<u8> {
    let mut stream = Stream::new_stream_encoder(filters, check).expect("an encoder");
    let mut packed = Vec::with_capacity(image.len() + (1 << 20));
    let last = image.chunks(block).count();
    for (index, block) in image.chunks(block).enumerate() {
        let action = if index + 1 == last {
            Action::Finish
        } else {
            Action::FullFlush
        };
        let start = stream.total_in();
        loop {
            let rest = &block[(stream.total_in() - start) as usize..];
            let status = stream
                .process_vec(rest, &mut packed, action)
                .expect("encoded");
            if status == Status::StreamEnd {
                break;
            }
        }
    }
    packed
}

/// What bgzip makes, in blocks of `block` bytes, 65,280 at most.
pub(super) fn bgzf(image: &[u8], block: usize) -> Vec<u8> {
    let mut packed = Vec::new();
    for block in image.chunks(block).chain([&[][..]]) {
        let body = deflate(block, FlushCompress::Finish);
        let last = u16::try_from(18 + body.len() + 8 - 1).expect("a small block");
        packed.extend_from_slice(&[
            0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 6, 0, b'B', b'C', 2, 0,
        ]);
        packed.extend_from_slice(&last.to_le_bytes());
        packed.extend_from_slice(&body);
        packed.extend_from_slice(&crc32fast::hash(block).to_le_bytes());
        packed.extend_from_slice(&(block.len() as u32).to_le_bytes());
    }
    packed
}

/// What dictzip makes, in chunks of `chunk` bytes.
pub(super) fn dictzip(image: &[u8], chunk: u16) -> Vec<u8> {
    let chunks = image.chunks(chunk.into());
    let bodies: Vec<_> = chunks
        .map(|chunk| deflate(chunk, FlushCompress::Full))
        .collect();
    let mut field = Vec::new();
    for number in [1, chunk, bodies.len() as u16] {
        field.extend_from_slice(&number.to_le_bytes());
    }
    for body in &bodies {
        field.extend_from_slice(&(body.len() as u16).to_le_bytes());
    }
    let mut packed = vec![0x1f, 0x8b, 8, 4 | 8, 0, 0, 0, 0, 2, 3];
    packed.extend_from_slice(&(field.len() as u16 + 4).to_le_bytes());
    packed.extend_from_slice(b"RA");
    packed.extend_from_slice(&(field.len() as u16).to_le_bytes());
    packed.extend_from_slice(&field);
    packed.extend_from_slice(b"disk.raw\0");
    packed.extend(bodies.concat());
    packed.extend(deflate(&[], FlushCompress::Finish));
    packed.extend_from_slice(&crc32fast::hash(image).to_le_bytes());
    packed.extend_from_slice(&(image.len() as u32).to_le_bytes());
    packed
}

fn deflate(bytes: &[u8], flush: FlushCompress) -> Vec<u8> {
    let mut deflater = Compress::new(Compression::default(), false);
    let mut packed = Vec::with_capacity(bytes.len() + 4096);
    deflater
        .compress_vec(bytes, &mut packed, flush)
        .expect("deflated");
    assert_eq!(deflater.total_in() as usize, bytes.len());
    packed
}

/// What gzip makes.
pub(super) fn gzip(image: &[u8]) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::default());
    packer.write_all(image).expect("packed");
    packer.finish().expect("packed")
}

/// Frames of `frame` bytes, with checksums of their own or without.
fn frames(image: &[u8], frame: usize, checksums: bool) -> Vec<Vec<u8>> {
    let mut packer = Compressor::new(3).expect("a packer");
    packer.include_checksum(checksums).expect("an option");
    let frames = image.chunks(frame);
    frames
        .map(|frame| packer.compress(frame).expect("packed"))
        .collect()
}

/// Several frames that tell their sizes, with something to skip between them.
pub(super) fn zstd(image: &[u8], frame: usize) -> Vec<u8> {
    let mut packed = Vec::new();
    for frame in frames(image, frame, true) {
        packed.extend_from_slice(&[0x53, 0x2a, 0x4d, 0x18, 5, 0, 0, 0, 1, 2, 3, 4, 5]);
        packed.extend_from_slice(&frame);
    }
    packed
}

/// The seekable format, with checksums in its table or in its frames.
pub(super) fn seekable(image: &[u8], frame: usize, in_table: bool) -> Vec<u8> {
    let mut packed = Vec::new();
    let mut table = Vec::new();
    for (frame, contents) in frames(image, frame, !in_table)
        .iter()
        .zip(image.chunks(frame))
    {
        packed.extend_from_slice(frame);
        table.extend_from_slice(&(frame.len() as u32).to_le_bytes());
        table.extend_from_slice(&(contents.len() as u32).to_le_bytes());
        if in_table {
            let hash = twox_hash::XxHash64::oneshot(0, contents) as u32;
            table.extend_from_slice(&hash.to_le_bytes());
        }
    }
    let count = image.chunks(frame).count() as u32;
    table.extend_from_slice(&count.to_le_bytes());
    table.push(if in_table { 0x80 } else { 0 });
    table.extend_from_slice(&0x8f92_eab1_u32.to_le_bytes());
    packed.extend_from_slice(&0x184d_2a5e_u32.to_le_bytes());
    packed.extend_from_slice(&(table.len() as u32).to_le_bytes());
    packed.extend_from_slice(&table);
    packed
}

/// One frame that does not tell its size.
pub(super) fn zstd_stream(image: &[u8]) -> Vec<u8> {
    let mut packer = zstd::stream::write::Encoder::new(Vec::new(), 3).expect("a packer");
    packer.include_checksum(true).expect("an option");
    packer.write_all(image).expect("packed");
    packer.finish().expect("packed")
}

/// What bzip2 makes.
pub(super) fn bzip2(image: &[u8]) -> Vec<u8> {
    let mut packer = BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    packer.write_all(image).expect("packed");
    packer.finish().expect("packed")
}

/// Everything that can be read anywhere: the filter, what it is, and the file.
pub(super) fn all(image: &[u8]) -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let halves = image.split_at(image.len() / 2);
    let mut streams = xz(halves.0, 30_000, Check::Crc32);
    streams.extend_from_slice(&[0; 12]);
    streams.extend(xz(halves.1, 50_000, Check::Sha256));
    streams.extend_from_slice(&[0; 8]);
    let options = LzmaOptions::new_preset(1).expect("a preset");
    let mut filters = Filters::new();
    // A distance of 4.
    filters.delta_properties(&[3]).expect("a filter");
    filters.x86().lzma2(&options);
    vec![
        ("xz", "blocks", xz(image, 40_000, Check::Crc64)),
        ("xz", "streams with padding", streams),
        ("xz", "one block", xz(image, image.len(), Check::Crc64)),
        (
            "xz",
            "filters",
            xz_with(&filters, image, 64_000, Check::Crc64),
        ),
        ("gzip", "bgzip", bgzf(image, 20_000)),
        ("gzip", "dictzip", dictzip(image, 30_000)),
        ("zstd", "frames", zstd(image, 33_000)),
        ("zstd", "one frame", zstd(image, image.len())),
        ("zstd", "seekable", seekable(image, 25_000, false)),
        (
            "zstd",
            "seekable with checksums",
            seekable(image, 25_000, true),
        ),
    ]
}
