//! Zstandard: RFC 8878. The library verifies the checksums of frames, where they have some.

use std::io;

use blockferry_block::HumanSize;
use zstd::stream::raw::{DParameter, Decoder as Frames, InBuffer, Operation, OutBuffer};

use super::{
    UnpackOptions,
    members::{Decoder, Step, Unfit},
};

/// The magic of a frame; others hold nothing.
const MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();

/// The least and the largest logarithm of a window that the library takes.
const WINDOW_LOGS: (u32, u32) = (10, 31);

pub(super) struct Zstd {
    frames: Frames<'static>,
    largest_window: u64,
}

impl Zstd {
    pub(super) fn new(options: &UnpackOptions) -> io::Result<Self> {
        let (least, largest) = WINDOW_LOGS;
        let log = options.memory.max(1).ilog2().clamp(least, largest);
        let mut frames = Frames::new()?;
        frames.set_parameter(DParameter::WindowLogMax(log))?;
        Ok(Self {
            frames,
            largest_window: 1 << log,
        })
    }
}

impl Decoder for Zstd {
    fn begin(&mut self, head: &[u8]) -> Result<(), Unfit> {
        if let Some(window) = window(head).filter(|window| *window > self.largest_window) {
            let (window, most) = (HumanSize(window), HumanSize(self.largest_window));
            return Err(Unfit::TooMuch(format!(
                "it needs a window of {window} to be unpacked, and {most} are the most here; what \
                 'zstd -dc --long=31' writes can be read from a pipe"
            )));
        }
        let ready = self.frames.reinit();
        ready.map_err(|error| Unfit::Damaged(error.to_string()))
    }

    fn step(&mut self, input: &[u8], output: &mut [u8], _: bool) -> Result<Step, Unfit> {
        let mut input = InBuffer::around(input);
        let mut output = OutBuffer::around(output);
        let left = self.frames.run(&mut input, &mut output);
        let left = left.map_err(|error| Unfit::Damaged(format!("wrong contents ({error})")))?;
        Ok(Step {
            read: input.pos(),
            written: output.pos(),
            is_ended: left == 0,
        })
    }
}

/// How much of what was unpacked a frame refers to, in bytes (section 3.1.1.1.2); `None` where it does not say.
fn window(head: &[u8]) -> Option<u64> {
    let (magic, rest) = head.split_first_chunk()?;
    let (descriptor, rest) = rest.split_first()?;
    if *magic != MAGIC {
        return None;
    }
    let is_single_segment = descriptor & 0x20 != 0;
    if !is_single_segment {
        let window = *rest.first()?;
        let base = 1_u64 << (10 + (window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    // All of it.
    let at = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size = 1 << (descriptor >> 6);
    let mut bytes = [0; 8];
    bytes[..size].copy_from_slice(rest.get(at..at + size)?);
    let number = u64::from_le_bytes(bytes);
    Some(if size == 2 { number + 256 } else { number })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_says_how_large_its_window_is() {
        for (header, expected) in [
            (&[0x00, 0x58][..], Some(2 << 20)),
            (&[0x00, 0x59], Some((2 << 20) + (256 << 10))),
            (&[0x00, 0xff], Some((1 << 41) + (1 << 38) * 7)),
            (&[0x20, 7], Some(7)),
            (&[0x60, 1, 1], Some(513)),
            (&[0xa1, 9, 1, 0, 0, 1], Some((1 << 24) + 1)),
            (&[0xe0, 0, 0, 0, 0, 0, 0, 0, 0x80], Some(1 << 63)),
            (&[0xe0, 0], None),
            (&[0x00], None),
            (&[], None),
        ] {
            let head = [&MAGIC[..], header].concat();
            assert_eq!(window(&head), expected, "{header:?}");
        }
        assert_eq!(window(b"\x50\x2a\x4d\x18\0\xff"), None);
    }
}
