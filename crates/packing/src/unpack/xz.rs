//! xz: the .xz file format, version 1.2.1, on several threads where its blocks tell their sizes.

use std::thread;

use liblzma::stream::{Action, Error, MtStreamBuilder, Status, Stream};

use super::{
    UnpackOptions,
    members::{Decoder, Step, Unfit},
};

/// Where in the header of a stream the kind of its checksums is.
const CHECK: usize = 7;

/// The most threads: each holds a block, packed and unpacked.
const MOST_THREADS: usize = 64;

pub(super) struct Xz {
    stream: Option<Stream>,
    memory: u64,
    threads: u32,
    check: u8,
}

impl Xz {
    pub(super) fn new(options: &UnpackOptions) -> Self {
        let threads = match options.threads {
            0 => thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        Self {
            stream: None,
            memory: options.memory,
            threads: threads.min(MOST_THREADS) as u32,
            check: 0,
        }
    }
}

impl Decoder for Xz {
    fn begin(&mut self, head: &[u8]) -> Result<(), Unfit> {
        self.check = head.get(CHECK).copied().unwrap_or(0);
        // None, CRC32, CRC64, SHA-256: what is not known would not be verified.
        if !matches!(self.check, 0 | 1 | 4 | 10) {
            return Err(Unfit::from("unknown checksums"));
        }
        let mut builder = MtStreamBuilder::new();
        builder
            .threads(self.threads)
            // Where blocks are larger, one thread goes on.
            .memlimit_threading(self.memory)
            // A bit more than its dictionary.
            .memlimit_stop(self.memory.saturating_add(1 << 20));
        let decoder = builder.decoder();
        let decoder = decoder.map_err(|error| Unfit::TooMuch(error.to_string()))?;
        self.stream = Some(decoder);
        Ok(())
    }

    fn step(&mut self, input: &[u8], output: &mut [u8], is_end: bool) -> Result<Step, Unfit> {
        let Some(stream) = &mut self.stream else {
            return Err(Unfit::from("there is no stream"));
        };
        let (read, written) = (stream.total_in(), stream.total_out());
        let action = if is_end { Action::Finish } else { Action::Run };
        let status = stream.process(input, output, action);
        let status = status.map_err(|error| explain(&error, self.check))?;
        Ok(Step {
            read: (stream.total_in() - read) as usize,
            written: (stream.total_out() - written) as usize,
            is_ended: status == Status::StreamEnd,
        })
    }
}

fn explain(error: &Error, check: u8) -> Unfit {
    match error {
        Error::MemLimit => {
            let message = "it needs more memory to be unpacked than it may have";
            Unfit::TooMuch(message.to_owned())
        }
        Error::Options => Unfit::TooMuch("it was packed in a way that is not supported".to_owned()),
        Error::Data => match check {
            1 => Unfit::from("wrong contents, or a wrong CRC32"),
            4 => Unfit::from("wrong contents, or a wrong CRC64"),
            10 => Unfit::from("wrong contents, or a wrong SHA-256"),
            _ => Unfit::from("wrong contents"),
        },
        error => Unfit::Damaged(error.to_string()),
    }
}
