//! As much as goes, one way. Every byte is really received, and a sample of them is looked at.

use std::{
    io::{Read, Write},
    sync::mpsc,
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use blockferry_bench::{Address, Stream};

use crate::link::Links;

/// How much is received at a time at most.
const RECEIVE: usize = 1 << 20;

/// Of so many bytes received one word is looked at.
const SAMPLE: u64 = 4096;

/// The bytes of a word, the unit of what is sent.
const WORD: u64 = 8;

/// Sends `bytes` bytes in writes of `write` bytes. Returns GB/s.
pub(crate) fn run(
    from: &Address,
    to: &Address,
    bytes: u64,
    write: u64,
    streams: u16,
) -> Result<f64> {
    ensure!(
        write >= WORD && write.is_multiple_of(WORD),
        "a write is a multiple of 8 bytes"
    );
    let mut links = Links::new(from, to)?;
    let mut pairs = Vec::new();
    for number in 0..streams {
        let share = bytes / u64::from(streams);
        let rest = bytes % u64::from(streams);
        let length = share + u64::from(u64::from(number) < rest);
        let pattern = Pattern {
            stream: number,
            write,
        };
        pairs.push((links.open()?, pattern, length, pattern.buffer()?));
    }

    // The first that fails ends the program, whatever the others wait for.
    let (sender, results) = mpsc::channel();
    let started = Instant::now();
    for (link, pattern, length, buffer) in pairs {
        let (sent, received) = (sender.clone(), sender.clone());
        let (client, target) = (link.client, link.target);
        thread::spawn(move || {
            let result = send(client, pattern, length, buffer).context("sending");
            // Only a program that has failed listens no more.
            let _ = sent.send(result.map(|()| None));
        });
        thread::spawn(move || {
            let result = receive(target, pattern, length).context("receiving");
            let _ = received.send(result.map(Some));
        });
    }
    drop(sender);
    let mut last = started;
    for result in results {
        if let Some(end) = result? {
            last = last.max(end);
        }
    }
    #[allow(clippy::cast_precision_loss, reason = "a rate needs no more digits")]
    let bytes = bytes as f64;
    Ok(bytes / last.duration_since(started).as_secs_f64() / 1e9)
}

/// Sends `length` bytes, then waits until the other side has no more to say.
fn send(mut stream: Stream, pattern: Pattern, length: u64, mut buffer: Vec<u8>) -> Result<()> {
    let mut sent = 0;
    while sent < length {
        let stamp = pattern.word(sent).to_le_bytes();
        buffer[..stamp.len()].copy_from_slice(&stamp);
        let now = usize::try_from(pattern.write.min(length - sent))?;
        stream.write_all(&buffer[..now])?;
        sent += pattern.write;
    }
    stream.finish()?;
    let answered = stream.read(&mut [0])?;
    ensure!(answered == 0, "an answer, where none was given");
    Ok(())
}

/// Receives `length` bytes and the end of the stream. Returns when the last byte came.
fn receive(mut stream: Stream, pattern: Pattern, length: u64) -> Result<Instant> {
    let mut buffer = vec![0; RECEIVE];
    let mut received = 0;
    let mut last = Instant::now();
    loop {
        let now = stream.read(&mut buffer)?;
        if now == 0 {
            ensure!(received == length, "{received} bytes of {length} came");
            return Ok(last);
        }
        pattern.check(received, &buffer[..now])?;
        received += now as u64;
        if received >= length {
            last = Instant::now();
        }
    }
}

/// What a stream sends: words that say where in their write they are, and at the beginning of each write which stream
/// and which write it is.
#[derive(Clone, Copy)]
struct Pattern {
    stream: u16,
    /// The bytes of a write.
    write: u64,
}

impl Pattern {
    /// The word at `position`, a multiple of 8, of the stream.
    fn word(self, position: u64) -> u64 {
        /// Odd, so that no two words of a write are the same.
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        match position % self.write {
            0 => u64::from(self.stream) << 48 | (position / self.write),
            within => (within / WORD).wrapping_mul(SPREAD),
        }
    }

    /// A write, but for its first word.
    fn buffer(self) -> Result<Vec<u8>> {
        let mut buffer = vec![0; usize::try_from(self.write)?];
        for (position, word) in (0..).step_by(8).zip(buffer.chunks_exact_mut(8)) {
            word.copy_from_slice(&self.word(position).to_le_bytes());
        }
        Ok(buffer)
    }

    /// Looks at the first word of each sample that lies in `bytes`, which came at `position`, and at the last whole word.
    fn check(self, position: u64, bytes: &[u8]) -> Result<()> {
        let end = position + bytes.len() as u64;
        let samples = (position.next_multiple_of(SAMPLE)..end).step_by(4096);
        let last = (end / WORD * WORD).checked_sub(WORD);
        for at in samples.chain(last.filter(|at| *at >= position)) {
            let start = usize::try_from(at - position)?;
            if let Some(word) = bytes[start..].first_chunk() {
                let word = u64::from_le_bytes(*word);
                ensure!(
                    word == self.word(at),
                    "at {at} came {word:#x}, not {:#x}",
                    self.word(at)
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATTERN: Pattern = Pattern {
        stream: 3,
        write: 16384,
    };

    /// The first bytes of the stream, as they are sent.
    fn sent(writes: u64) -> Vec<u8> {
        let words = (0..writes * PATTERN.write).step_by(8);
        words
            .flat_map(|at| PATTERN.word(at).to_le_bytes())
            .collect()
    }

    #[test]
    fn what_was_sent_is_accepted_in_any_pieces() {
        let bytes = sent(4);
        for piece in [1, 7, 8, 4096, 5000, 65536] {
            let mut position = 0;
            for part in bytes.chunks(piece) {
                PATTERN.check(position, part).unwrap();
                position += part.len() as u64;
            }
        }
    }

    #[test]
    fn bytes_that_are_lost_repeated_or_of_another_stream_are_noticed() {
        let bytes = sent(4);
        PATTERN.check(0, &bytes[8..]).unwrap_err();
        PATTERN.check(16384, &bytes[..16384]).unwrap_err();
        PATTERN.check(16384, &bytes[32768..]).unwrap_err();
        let other = Pattern {
            stream: 2,
            ..PATTERN
        };
        other.check(0, &bytes).unwrap_err();
    }

    #[test]
    fn a_prepared_write_is_what_the_pattern_says() {
        let buffer = PATTERN.buffer().unwrap();
        assert_eq!(buffer[8..], sent(1)[8..]);
    }
}
