//! gzip: RFC 1952. The library reads headers and verifies CRC-32 and size.

use flate2::{Decompress, FlushDecompress, Status};

use super::members::{Decoder, Step, Unfit};

/// The window that every gzip file may need: 32 KiB.
const WINDOW_BITS: u8 = 15;

pub(super) struct Gzip(Decompress);

impl Gzip {
    pub(super) fn new() -> Self {
        Self(Decompress::new_gzip(WINDOW_BITS))
    }
}

impl Decoder for Gzip {
    fn begin(&mut self, _: &[u8]) -> Result<(), Unfit> {
        // Resetting would make it a decoder of something else.
        if self.0.total_in() > 0 {
            self.0 = Decompress::new_gzip(WINDOW_BITS);
        }
        Ok(())
    }

    fn step(&mut self, input: &[u8], output: &mut [u8], _: bool) -> Result<Step, Unfit> {
        let (read, written) = (self.0.total_in(), self.0.total_out());
        let status = self.0.decompress(input, output, FlushDecompress::None);
        let status = status.map_err(|error| match error.message() {
            Some("incorrect data check") => Unfit::from("wrong contents, or a wrong CRC-32"),
            Some(message) => Unfit::Damaged(format!("wrong contents ({message})")),
            None => Unfit::from("wrong contents"),
        })?;
        Ok(Step {
            read: (self.0.total_in() - read) as usize,
            written: (self.0.total_out() - written) as usize,
            is_ended: status == Status::StreamEnd,
        })
    }
}
