//! What a map looks like: lines or JSON, extents or sums of each type.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use crate::block::{Context, Extent, Status};

use super::super::super::{
    options::MapJob,
    significant::Significant,
    style::{Colour, Paint},
};

/// What the map looks like.
pub(super) struct Shape<'a> {
    context: &'a Context,
    json: bool,
    colour: Colour,
    size: u64,
    /// The bytes of each status, where only sums are wanted.
    totals: Option<BTreeMap<u64, u64>>,
    /// Whether a JSON list has a member already.
    begun: bool,
}

impl<'a> Shape<'a> {
    pub(super) fn new(job: &'a MapJob, colour: Colour, size: u64) -> Self {
        Self {
            context: &job.context,
            json: job.json,
            colour,
            size,
            totals: job.totals.then(BTreeMap::new),
            begun: false,
        }
    }

    /// The next extent.
    pub(super) fn extent(&mut self, extent: Extent, output: &mut impl Write) -> io::Result<()> {
        let (offset, length, status) = (extent.range.start(), extent.range.len(), extent.status);
        if let Some(totals) = &mut self.totals {
            *totals.entry(status.0).or_default() += length;
            return Ok(());
        }
        let meaning = meaning(self.context, status);
        if self.json {
            let member = format!(
                "{{ \"offset\": {offset}, \"length\": {length}, \"type\": {}{}}}",
                status.0,
                json_description(&meaning)
            );
            return self.member(&member, output);
        }
        let line = format!("{offset:>10}  {length:>10}  {:>3}  {meaning}", status.0);
        self.line(&line, status, output)
    }

    /// What comes after the last extent.
    pub(super) fn end(&mut self, output: &mut impl Write) -> io::Result<()> {
        let totals = self.totals.take();
        let empty = if totals.is_some() { "[]\n" } else { "[\n\n]\n" };
        for (status, bytes) in totals.unwrap_or_default() {
            let percent = 100.0 * bytes as f64 / self.size.max(1) as f64;
            let meaning = meaning(self.context, Status(status));
            if self.json {
                let member = format!(
                    "{{ \"size\": {bytes}, \"percent\": {}, \"type\": {status}{} }}",
                    Significant(percent, 6),
                    json_description(&meaning)
                );
                self.member(&member, output)?;
            } else {
                let line = format!("{bytes:>10} {percent:>5.1}% {status:>3} {meaning}");
                self.line(&line, Status(status), output)?;
            }
        }
        if self.json {
            let end = if self.begun { "\n]\n" } else { empty };
            output.write_all(end.as_bytes())?;
        }
        output.flush()
    }

    fn line(&self, line: &str, status: Status, output: &mut impl Write) -> io::Result<()> {
        let line = line.trim_end();
        match paint(self.context, status) {
            Some(paint) => {
                let (on, off) = (self.colour.paint(paint), self.colour.paint(Paint::Normal));
                writeln!(output, "{on}{line}{off}")
            }
            None => writeln!(output, "{line}"),
        }
    }

    fn member(&mut self, member: &str, output: &mut impl Write) -> io::Result<()> {
        let before = if self.begun { ",\n" } else { "[\n" };
        self.begun = true;
        write!(output, "{before}{member}")
    }
}

fn json_description(meaning: &str) -> String {
    match meaning {
        "" => String::new(),
        _ => format!(", \"description\": \"{meaning}\""),
    }
}

/// What a status means in a context; empty where that is not known.
fn meaning(context: &Context, status: Status) -> String {
    let word = match (context, status.0) {
        (Context::Allocation, 0) => "data",
        (Context::Allocation, 1) => "hole",
        (Context::Allocation, 2) => "zero",
        (Context::Allocation, 3) => "hole,zero",
        (Context::DirtyBitmap(_), 0) => "clean",
        (Context::DirtyBitmap(_), 1) => "dirty",
        (Context::AllocationDepth, 0) => "absent",
        (Context::AllocationDepth, 1) => "local",
        (Context::AllocationDepth, depth) => return format!("backing depth {depth}"),
        _ => "",
    };
    word.to_owned()
}

/// The colour of a status, where it has one.
fn paint(context: &Context, status: Status) -> Option<Paint> {
    match (context, status.0) {
        (Context::Allocation, 0) => Some(Paint::BoldBlack),
        (Context::DirtyBitmap(_), 0) => Some(Paint::Green),
        (Context::DirtyBitmap(_), 1) => Some(Paint::Red),
        (Context::AllocationDepth, 1) => Some(Paint::Inverse),
        (Context::AllocationDepth, 2..) => Some(Paint::OnWhite),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_context_has_its_own_words() {
        let bitmap = Context::DirtyBitmap("b".to_owned());
        assert_eq!(meaning(&bitmap, Status(0)), "clean");
        assert_eq!(meaning(&bitmap, Status(1)), "dirty");
        let depth = |depth| meaning(&Context::AllocationDepth, Status(depth));
        assert_eq!(depth(0), "absent");
        assert_eq!(depth(1), "local");
        assert_eq!(depth(2), "backing depth 2");
        assert_eq!(meaning(&Context::Allocation, Status(4)), "");
    }

    #[test]
    fn only_what_stands_out_is_painted() {
        assert_eq!(
            paint(&Context::Allocation, Status(0)),
            Some(Paint::BoldBlack)
        );
        assert_eq!(paint(&Context::Allocation, Status(3)), None);
        assert_eq!(paint(&Context::AllocationDepth, Status(0)), None);
        assert_eq!(
            paint(&Context::AllocationDepth, Status(9)),
            Some(Paint::OnWhite)
        );
    }
}
