//! bzip2. The library verifies the checksums of blocks and of the whole.

use bzip2::{Decompress, Error, Status};

use super::members::{Decoder, Step, Unfit};

pub(super) struct Bzip2(Decompress);

impl Bzip2 {
    pub(super) fn new() -> Self {
        Self(Decompress::new(false))
    }
}

impl Decoder for Bzip2 {
    fn begin(&mut self, _: &[u8]) -> Result<(), Unfit> {
        if self.0.total_in() > 0 {
            *self = Self::new();
        }
        Ok(())
    }

    fn step(&mut self, input: &[u8], output: &mut [u8], _: bool) -> Result<Step, Unfit> {
        let (read, written) = (self.0.total_in(), self.0.total_out());
        let status = self.0.decompress(input, output);
        let status = status.map_err(|error| match error {
            Error::DataMagic => Unfit::from("there is no block"),
            _ => Unfit::from("wrong contents, or a wrong CRC-32"),
        })?;
        if status == Status::MemNeeded {
            return Err(Unfit::from("not enough memory"));
        }
        Ok(Step {
            read: (self.0.total_in() - read) as usize,
            written: (self.0.total_out() - written) as usize,
            is_ended: status == Status::StreamEnd,
        })
    }
}
