//! Rows of sixteen bytes as `nbddump` prints them; rows that only repeat the one before are left out.

use std::{
    io::{self, Write},
    ops::Range,
};

use crate::cli::style::{Colour, Paint};

/// Bytes in a row.
const ROW: usize = 16;

/// A dump while it is printed.
pub(super) struct Hexdump<W> {
    output: W,
    colour: Colour,
    /// Where the row that is being collected begins, and where the last row ends.
    rest: Range<u64>,
    /// The bytes that there are, whether they are dumped or not.
    size: u64,
    /// The row that is being collected.
    row: Vec<u8>,
    /// The last row that was printed, filled up with zeroes.
    printed: Option<[u8; ROW]>,
    /// Whether rows have been left out since.
    squeezing: bool,
}

impl<W: Write> Hexdump<W> {
    /// A dump of `range` of `size` bytes. What is given beyond its end is not printed.
    pub(super) fn new(output: W, colour: Colour, range: Range<u64>, size: u64) -> Self {
        Self {
            output,
            colour,
            rest: range,
            size,
            row: Vec::with_capacity(ROW),
            printed: None,
            squeezing: false,
        }
    }

    /// The next bytes.
    pub(super) fn bytes(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() && self.missing() > 0 {
            let (now, later) = bytes.split_at(bytes.len().min(self.missing()));
            self.row.extend_from_slice(now);
            bytes = later;
            if self.missing() == 0 {
                self.finish_row()?;
            }
        }
        Ok(())
    }

    /// The next `length` bytes are zeroes. Takes no longer for many than for a few.
    pub(super) fn zeroes(&mut self, mut length: u64) -> io::Result<()> {
        while length > 0 && self.missing() > 0 {
            if self.row.is_empty() && self.squeezing && self.printed == Some([0; ROW]) {
                // The very last row is printed, whatever is in it.
                let before_last = self.size.saturating_sub(self.rest.start + 1);
                let left_out = length.min(before_last).min(self.length()) / ROW as u64;
                self.rest.start += left_out * ROW as u64;
                length -= left_out * ROW as u64;
            }
            let now = length.min(self.missing() as u64);
            self.bytes(&[0; ROW][..now as usize])?;
            length -= now;
        }
        Ok(())
    }

    /// Writes out what is buffered.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }

    /// The bytes from the beginning of the row on.
    fn length(&self) -> u64 {
        self.rest.end.saturating_sub(self.rest.start)
    }

    /// How many bytes the row lacks.
    fn missing(&self) -> usize {
        let whole = self.length().min(ROW as u64) as usize;
        whole.saturating_sub(self.row.len())
    }

    fn finish_row(&mut self) -> io::Result<()> {
        // As the tool does: rows are compared as if filled up with zeroes, and what ends a dump that is cut
        // short is left out like any other.
        let mut row = [0; ROW];
        row[..self.row.len()].copy_from_slice(&self.row);
        let is_last = self.size.saturating_sub(self.rest.start) <= ROW as u64;
        if self.printed == Some(row) && !is_last {
            if !self.squeezing {
                self.squeezing = true;
                let mark = match self.colour {
                    Colour::Always => "☆",
                    Colour::Never => "*",
                };
                writeln!(self.output, "{mark}")?;
            }
        } else {
            self.squeezing = false;
            self.print_row()?;
            self.printed = Some(row);
        }
        self.rest.start += self.row.len() as u64;
        self.row.clear();
        Ok(())
    }

    fn print_row(&mut self) -> io::Result<()> {
        let bar = match self.colour {
            Colour::Always => '│',
            Colour::Never => '|',
        };
        self.paint(Paint::Green)?;
        write!(self.output, "{:010x}", self.rest.start)?;
        self.paint(Paint::Grey)?;
        self.output.write_all(b": ")?;
        for index in 0..ROW {
            match self.row.get(index).copied() {
                Some(byte) => self.number(byte)?,
                None => {
                    if index == self.row.len() {
                        self.paint(Paint::Grey)?;
                    }
                    self.output.write_all(b"   ")?;
                }
            }
            if index == ROW / 2 - 1 {
                self.output.write_all(b" ")?;
            }
        }
        if self.row.len() == ROW {
            self.paint(Paint::Grey)?;
        }
        write!(self.output, "{bar}")?;
        for index in 0..self.row.len() {
            self.character(self.row[index])?;
        }
        self.paint(Paint::Grey)?;
        let padding = ROW - self.row.len();
        writeln!(self.output, "{:padding$}{bar}", "")?;
        self.paint(Paint::Normal)
    }

    fn number(&mut self, byte: u8) -> io::Result<()> {
        self.paint(if byte == 0 {
            Paint::Grey
        } else {
            Paint::BoldBlue
        })?;
        write!(self.output, "{byte:02x} ")
    }

    fn character(&mut self, byte: u8) -> io::Result<()> {
        let dot = match self.colour {
            Colour::Always => '·',
            Colour::Never => '.',
        };
        let (paint, shown) = match byte {
            _ if byte.is_ascii_alphanumeric() => (Paint::BoldRed, char::from(byte)),
            b' '..=b'~' => (Paint::BoldMagenta, char::from(byte)),
            _ => (Paint::Grey, dot),
        };
        self.paint(paint)?;
        write!(self.output, "{shown}")
    }

    fn paint(&mut self, paint: Paint) -> io::Result<()> {
        write!(self.output, "{}", self.colour.paint(paint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZEROES: &str = "00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00 |................|";

    /// Dumps `bytes`, of which runs of zeroes are given as such.
    fn dump(bytes: &[u8], offset: u64, runs: bool) -> String {
        let size = offset + bytes.len() as u64;
        dump_of(bytes, offset, size, runs)
    }

    /// The same of the beginning of something longer.
    fn dump_of(bytes: &[u8], offset: u64, size: u64, runs: bool) -> String {
        let mut output = Vec::new();
        let end = offset + bytes.len() as u64;
        let mut dump = Hexdump::new(&mut output, Colour::Never, offset..end, size);
        for part in bytes.chunk_by(|one, other| (*one == 0) == (*other == 0)) {
            match runs && part[0] == 0 {
                true => dump.zeroes(part.len() as u64).expect("written"),
                false => dump.bytes(part).expect("written"),
            }
        }
        String::from_utf8(output).expect("text")
    }

    #[test]
    fn a_row_has_offset_numbers_and_characters() {
        assert_eq!(
            dump(b"hello, world!\n\x7f\x80~", 0, false),
            "0000000000: 68 65 6c 6c 6f 2c 20 77  6f 72 6c 64 21 0a 7f 80 |hello, world!...|\n\
             0000000010: 7e                                               |~               |\n"
        );
        assert_eq!(dump(b"", 0, false), "");
    }

    #[test]
    fn rows_begin_where_the_dump_does() {
        let text = dump(&[1; 17], 15, false);
        assert!(text.starts_with("000000000f: 01 "), "{text}");
        assert!(text.contains("\n000000001f: 01  "), "{text}");
    }

    #[test]
    fn repeated_rows_are_left_out_but_never_the_last() {
        for (length, middle) in [(16, ""), (32, ""), (48, "*\n"), (1 << 20, "*\n")] {
            let first = format!("0000000000: {ZEROES}\n");
            let last = match length {
                16 => String::new(),
                _ => format!("{:010x}: {ZEROES}\n", length - 16),
            };
            for runs in [false, true] {
                assert_eq!(
                    dump(&vec![0; length], 0, runs),
                    format!("{first}{middle}{last}"),
                    "{length}"
                );
            }
        }
        let text = dump(&[b'a'; 33], 0, false);
        assert_eq!(text.lines().nth(1), Some("*"));
        assert_eq!(
            text.lines().nth(2),
            Some("0000000020: 61                                               |a               |")
        );
    }

    #[test]
    fn a_dump_that_is_cut_short_may_end_with_the_mark() {
        for length in [17, 31, 32, 48, 100] {
            for runs in [false, true] {
                assert_eq!(
                    dump_of(&vec![0; length], 0, 1000, runs),
                    format!("0000000000: {ZEROES}\n*\n"),
                    "{length}"
                );
            }
        }
        let text = dump_of(&[b'a'; 33], 0, 100, false);
        assert!(text.contains("\n*\n0000000020: 61 "), "{text}");
    }

    #[test]
    fn runs_of_zeroes_print_as_zeroes_do() {
        let mut state = 1_u32;
        for _ in 0..200 {
            let mut bytes = Vec::new();
            for _ in 0..10 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let length = (state >> 24) as usize;
                bytes.extend(vec![(state >> 20 & 1) as u8; length]);
            }
            let offset = u64::from(state >> 8 & 0xff);
            let size = offset + bytes.len() as u64 + u64::from(state >> 4 & 31);
            assert_eq!(
                dump_of(&bytes, offset, size, true),
                dump_of(&bytes, offset, size, false)
            );
        }
    }

    #[test]
    fn a_hole_of_an_exbibyte_takes_no_time() {
        let mut output = Vec::new();
        let mut dump = Hexdump::new(&mut output, Colour::Never, 0..1 << 60, 1 << 60);
        dump.zeroes(1 << 60).expect("written");
        assert_eq!(
            String::from_utf8(output).expect("text"),
            format!("0000000000: {ZEROES}\n*\nffffffffffffff0: {ZEROES}\n")
        );
    }

    #[test]
    fn colours_come_with_finer_characters() {
        let mut output = Vec::new();
        let mut dump = Hexdump::new(&mut output, Colour::Always, 0..2, 2);
        dump.bytes(b"a\0").expect("written");
        let text = String::from_utf8(output).expect("text");
        assert!(
            text.starts_with("\x1b[22;32m0000000000\x1b[22;90m: \x1b[1;34m61 \x1b[22;90m00 "),
            "{text:?}"
        );
        assert!(text.contains("│\x1b[1;31ma\x1b[22;90m·"), "{text:?}");
        assert!(text.ends_with("│\n\x1b[0m"), "{text:?}");
    }
}
