//! One member, stream or frame after the other, whatever the format calls them.

use blockferry_block::{Error, ErrorKind, Result};

use super::{UnpackOptions, bzip2, gzip, input::Pieces, xz, zstd};
use crate::Packing;

/// Unpacks one member after the other.
pub(super) trait Decoder: Send {
    /// Prepares for the member that begins with `head`: all of its header where that is short, or all that there is.
    ///
    /// # Errors
    /// Why it cannot be unpacked: it is of no use to go on.
    fn begin(&mut self, head: &[u8]) -> Result<(), Unfit>;

    /// Unpacks something of `input` into `output`, neither of which is bound to be used up. `is_end`: there is no more
    /// input behind that.
    ///
    /// # Errors
    /// What is wrong with it, or why it cannot be unpacked.
    fn step(&mut self, input: &[u8], output: &mut [u8], is_end: bool) -> Result<Step, Unfit>;
}

/// What a decoder has done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// Bytes of the input that are used up.
    pub(super) read: usize,
    /// Bytes of the output that are there.
    pub(super) written: usize,
    /// The member is whole, and was right.
    pub(super) is_ended: bool,
}

/// Why a member is not unpacked.
pub(super) enum Unfit {
    /// In words that stand alone.
    Damaged(String),
    /// It is as it should be, and too much for us.
    TooMuch(String),
}

impl From<&str> for Unfit {
    fn from(damage: &str) -> Self {
        Self::Damaged(damage.to_owned())
    }
}

/// All members of a stream. Zeroes may follow them, as on a tape or a device.
pub(super) struct Members {
    packing: Packing,
    decoder: Box<dyn Decoder>,
    is_inside: bool,
    /// Whether there was a member before.
    is_begun: bool,
    /// How many bytes were unpacked.
    unpacked: u64,
}

/// How much of a header a decoder sees in advance, in bytes.
const HEAD: usize = 18;

impl Members {
    pub(super) fn new(packing: Packing, options: &UnpackOptions) -> Result<Self> {
        let decoder: Box<dyn Decoder> = match packing {
            Packing::Gzip => Box::new(gzip::Gzip::new()),
            Packing::Xz => Box::new(xz::Xz::new(options)),
            Packing::Zstd => Box::new(zstd::Zstd::new(options)?),
            Packing::Bzip2 => Box::new(bzip2::Bzip2::new()),
        };
        Ok(Self {
            packing,
            decoder,
            is_inside: false,
            is_begun: false,
            unpacked: 0,
        })
    }

    /// Fills `output`; with fewer bytes only where everything was unpacked, and says with how many.
    ///
    /// # Errors
    /// What is wrong, or what reading failed with.
    pub(super) fn fill(&mut self, input: &mut Pieces, output: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < output.len() {
            if !self.is_inside && !self.begin(input)? {
                break;
            }
            let bytes = input.bytes()?;
            let is_end = bytes.is_empty();
            let count = bytes.len();
            let step = self.decoder.step(bytes, &mut output[done..], is_end);
            let step = step.map_err(|unfit| self.refused(unfit, input.position()))?;
            input.take(step.read.min(count));
            done += step.written;
            self.unpacked += step.written as u64;
            self.is_inside = !step.is_ended;
            if step.read == 0 && step.written == 0 && !step.is_ended {
                let damage = match is_end {
                    true => "it ends too early",
                    false => "it makes no sense",
                };
                return Err(self.damaged(damage, input.position()));
            }
        }
        Ok(done)
    }

    /// Begins the next member; false where there is none.
    fn begin(&mut self, input: &mut Pieces) -> Result<bool> {
        let start = input.position();
        if self.is_begun {
            let zeroes = input.take_zeroes()?;
            let rest = input.at_least(HEAD)?;
            if rest.is_empty() {
                return Ok(false);
            }
            // Only xz has padding between streams.
            let is_allowed = zeroes == 0 || self.packing == Packing::Xz && zeroes % 4 == 0;
            if !is_allowed || !self.packing.begins(rest) {
                return Err(self.damaged("there is something after its end", start));
            }
        } else if !self.packing.begins(input.at_least(HEAD)?) {
            let message = format!("it is not in the format {}", self.packing);
            return Err(Error::with_message(ErrorKind::InvalidInput, message));
        }
        let begun = self.decoder.begin(input.at_least(HEAD)?);
        begun.map_err(|unfit| self.refused(unfit, start))?;
        self.is_begun = true;
        self.is_inside = true;
        Ok(true)
    }

    fn refused(&self, unfit: Unfit, at: u64) -> Error {
        match unfit {
            Unfit::Damaged(damage) => self.damaged(&damage, at),
            Unfit::TooMuch(message) => {
                let message = format!("{}: {message}", self.packing);
                Error::with_message(ErrorKind::Unsupported, message)
            }
        }
    }

    fn damaged(&self, damage: &str, at: u64) -> Error {
        let message = format!(
            "{}: {damage}, at or before offset {at}, after {} bytes were unpacked: the file is damaged",
            self.packing, self.unpacked
        );
        Error::with_message(ErrorKind::Corrupt, message)
    }
}
