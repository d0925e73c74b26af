//! A map with offsets: which image of the chain each part is in, and where in its file.

use std::io::{self, Write};

use serde::Serialize;

use crate::{endpoint::printable, inspect::MapEntry};

/// One entry, as JSON has it.
#[derive(Serialize)]
struct Member<'a> {
    start: u64,
    length: u64,
    depth: usize,
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
}

/// Entries on their way to the output.
pub(super) struct Offsets<'a, W> {
    json: bool,
    begun: bool,
    output: &'a mut W,
}

impl<'a, W: Write> Offsets<'a, W> {
    pub(super) fn new(json: bool, output: &'a mut W) -> Self {
        let begun = false;
        Self {
            json,
            begun,
            output,
        }
    }

    pub(super) fn entry(&mut self, entry: &MapEntry) -> io::Result<()> {
        let file = entry.file.as_ref().map(|file| printable(file.as_os_str()));
        let (start, length) = (entry.range.start(), entry.range.len());
        if !self.json {
            let place = match (entry.offset, &file) {
                (Some(offset), Some(file)) => format!("{offset:>12}  {file}"),
                _ => String::new(),
            };
            let depth = entry.depth;
            let line = format!(
                "{start:>10}  {length:>10}  {depth:>3}  {:<10}  {place}",
                kind(entry)
            );
            return writeln!(self.output, "{}", line.trim_end());
        }
        let before = if self.begun { ",\n" } else { "[\n" };
        self.begun = true;
        let member = Member {
            start,
            length,
            depth: entry.depth,
            present: entry.present,
            zero: entry.zero,
            data: entry.data,
            compressed: entry.compressed,
            offset: entry.offset,
            file: file.as_deref(),
        };
        write!(self.output, "{before}{}", serde_json::to_string(&member)?)
    }

    pub(super) fn end(self) -> io::Result<()> {
        if self.json {
            let end = if self.begun { "\n]\n" } else { "[]\n" };
            self.output.write_all(end.as_bytes())?;
        }
        self.output.flush()
    }
}

/// What a part is, in a word.
fn kind(entry: &MapEntry) -> &'static str {
    match entry {
        MapEntry {
            compressed: true, ..
        } => "compressed",
        MapEntry {
            data: true,
            zero: true,
            ..
        } => "data,zero",
        MapEntry { data: true, .. } => "data",
        MapEntry { present: false, .. } => "absent",
        _ => "zero",
    }
}
