//! One cluster compressed, one cluster decompressed.
//!
//! Both keep their tables and contexts between clusters: each thread has one of its own, and nothing is allocated
//! for a cluster. Where the bytes lie in the file is not known here.

mod deflate;

use blockferry_block::Result;
use flate2::{Compress, FlushCompress, Status};
use zstd::zstd_safe::{self, CCtx, CParameter, DCtx};

use self::deflate::Deflater;
use super::{geometry::corrupt, header::Compression};

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CompressionSettings {
    pub(crate) kind: Compression,
    /// How hard: 1 to 9 for zlib, 1 to 22 for Zstandard; `None`: what pays.
    pub(crate) level: Option<u32>,
    /// How far back a zlib stream may refer: 4096 or 32768 bytes.
    pub(crate) window: u32,
}

/// Compresses cluster after cluster.
pub(crate) struct Compressor(Encoder);

enum Encoder {
    /// The fast one, for any window.
    Deflate(Deflater),
    /// For levels above what that one is worth, within the small window.
    Zlib(Box<Compress>, flate2::Compression),
    /// The same for the large window, which it always uses.
    Libdeflate(libdeflater::Compressor),
    /// For the large window: the fast one of that library, and ours for text, which is worth a little more time.
    Wide {
        fast: libdeflater::Compressor,
        thorough: Deflater,
    },
    Zstd(CCtx<'static>),
}

/// Decompresses cluster after cluster.
pub(crate) struct Decompressor {
    deflate: libdeflater::Decompressor,
    zstd: DCtx<'static>,
    /// For those who want a part of what comes out.
    whole: Vec<u8>,
}

impl Compressor {
    /// A compressor that works as `settings` say, which are what
    /// [`CreateOptions::check`](super::CreateOptions::check) allows.
    pub(crate) fn new(settings: &CompressionSettings) -> Self {
        let level = settings.level;
        let encoder = match (settings.kind, settings.window) {
            (Compression::Zlib, window @ ..32768) => match level {
                None | Some(..=8) => Encoder::Deflate(Deflater::new(window)),
                Some(level) => {
                    let level = flate2::Compression::new(level.min(9));
                    Encoder::Zlib(narrow(level), level)
                }
            },
            (Compression::Zlib, window) => match level {
                None => Encoder::Wide {
                    fast: libdeflate(1),
                    thorough: Deflater::new(window),
                },
                Some(2..=3) => Encoder::Deflate(Deflater::new(window)),
                Some(level) => Encoder::Libdeflate(libdeflate(level)),
            },
            (Compression::Zstd, _) => {
                let mut context = CCtx::create();
                // Level 2 takes two thirds of the time of 3, and 2 per cent more room.
                let level = level.unwrap_or(2).min(22) as i32;
                // Every level that the options allow is one that the library knows.
                let _ = context.set_parameter(CParameter::CompressionLevel(level));
                Encoder::Zstd(context)
            }
        };
        Self(encoder)
    }

    /// Compresses `cluster` into the beginning of `out`, which has room for a cluster, and returns how many bytes
    /// it took; `None` when they would be no fewer than the cluster's: then it is stored as it is, and what `out`
    /// holds is of no use.
    pub(crate) fn compress(&mut self, cluster: &[u8], out: &mut [u8]) -> Option<usize> {
        let room = cluster.len().checked_sub(1)?.min(out.len());
        let out = &mut out[..room];
        match &mut self.0 {
            Encoder::Deflate(encoder) => encoder.compress(cluster, out),
            Encoder::Zlib(encoder, level) => {
                encoder.reset();
                let status = encoder.compress(cluster, out, FlushCompress::Finish);
                if !matches!(status, Ok(Status::StreamEnd)) {
                    // zlib-rs 0.6.8 panics when it is reset within a stream again and again.
                    *encoder = narrow(*level);
                    return None;
                }
                usize::try_from(encoder.total_out()).ok()
            }
            Encoder::Libdeflate(encoder) => encoder.deflate_compress(cluster, out).ok(),
            Encoder::Wide { thorough, .. } if looks_like_text(cluster) => {
                thorough.compress(cluster, out)
            }
            Encoder::Wide { fast, .. } => fast.deflate_compress(cluster, out).ok(),
            Encoder::Zstd(context) => context.compress2(out, cluster).ok(),
        }
    }
}

/// An encoder of that level, 1 to 12, with a window of 32 KiB.
fn libdeflate(level: u32) -> libdeflater::Compressor {
    let level = libdeflater::CompressionLvl::new(level.clamp(1, 12) as i32);
    libdeflater::Compressor::new(level.unwrap_or_default())
}

/// Whether the bytes that are looked at, some here and there, are nearly all those of ASCII text.
fn looks_like_text(cluster: &[u8]) -> bool {
    const LOOKED_AT: usize = 256;
    let step = (cluster.len() / LOOKED_AT).max(1);
    let is_text = |byte: &u8| matches!(byte, b' '..=b'~' | b'\n' | b'\t' | b'\r');
    let seen = cluster.iter().step_by(step);
    let (all, text) = seen.fold((0_usize, 0_usize), |(all, text), byte| {
        (all + 1, text + usize::from(is_text(byte)))
    });
    text * 16 >= all * 15
}

/// An encoder with a window of 4 KiB.
fn narrow(level: flate2::Compression) -> Box<Compress> {
    Box::new(Compress::new_with_window_bits(level, false, 12))
}

impl Decompressor {
    pub(crate) fn new() -> Self {
        Self {
            deflate: libdeflater::Decompressor::new(),
            zstd: DCtx::create(),
            whole: Vec::new(),
        }
    }

    /// Decompresses what `stream` begins with into `cluster`, all of it. Others' bytes may follow: a descriptor
    /// counts whole sectors.
    ///
    /// # Errors
    /// `Corrupt` when it is no stream of that kind, is cut short, or makes fewer or more bytes than a cluster has.
    /// `cluster` may hold anything then.
    pub(crate) fn decompress(
        &mut self,
        kind: Compression,
        stream: &[u8],
        cluster: &mut [u8],
    ) -> Result<()> {
        let length = match kind {
            Compression::Zlib => self.deflate.deflate_decompress(stream, cluster).ok(),
            Compression::Zstd => self.decompress_zstd(stream, cluster),
        };
        match length {
            Some(length) if length == cluster.len() => Ok(()),
            Some(_) => Err(corrupt("a compressed cluster has too few bytes")),
            None => Err(corrupt("a compressed cluster cannot be decompressed")),
        }
    }

    /// Decompresses a grain of a VMDK image, a zlib stream (RFC 1950) of `size` bytes at most, into `out`: as much of
    /// it as fits. Others' bytes may follow.
    ///
    /// # Errors
    /// As [`decompress`](Self::decompress).
    pub(crate) fn decompress_grain(
        &mut self,
        stream: &[u8],
        out: &mut [u8],
        size: usize,
    ) -> Result<()> {
        let length = if out.len() == size {
            self.deflate.zlib_decompress(stream, out).ok()
        } else {
            self.whole.resize(size, 0);
            let length = self.deflate.zlib_decompress(stream, &mut self.whole).ok();
            let there = length.unwrap_or(0).min(out.len());
            out[..there].copy_from_slice(&self.whole[..there]);
            length
        };
        match length {
            Some(length) if length >= out.len() => Ok(()),
            Some(_) => Err(corrupt("it has too few bytes")),
            None => Err(corrupt("it cannot be decompressed")),
        }
    }

    fn decompress_zstd(&mut self, stream: &[u8], cluster: &mut [u8]) -> Option<usize> {
        let frame = zstd_safe::find_frame_compressed_size(stream).ok()?;
        self.zstd.decompress(cluster, stream.get(..frame)?).ok()
    }
}

#[cfg(test)]
mod tests;
