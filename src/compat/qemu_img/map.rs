//! `qemu-img map`.

use std::{
    ffi::OsString,
    io::{self, BufWriter, Write},
    process::ExitCode,
};

use crate::{
    block::{Access, ByteRange},
    cli::{commands::runtime, failure::Failure, output::unprinted},
    endpoint::{Endpoint, open_device, printable},
    inspect::{MapEntry, Places, View},
};

use super::{
    super::getopt::{Argument, Flag},
    command::{Command, Done},
    looking::{Looking, Opt, bytes, opening, output, own},
    node::{SECTOR, name_of},
};

const HELP: &str = "\
Tells where the data of an image lies, in it and in the images behind it.

Usage: qemu-img map [OPTIONS] FILE

  -f, --format=FMT         Format of FILE
      --image-opts         FILE is a description: driver=qcow2,file.filename=PATH
      --object OBJECT      tls-creds-x509,id=ID,dir=DIR,endpoint=client
      --output=human|json  Lines for people, or JSON
  -s, --start-offset=SIZE  Begin there
  -l, --max-length=SIZE    Tell of so much
  -U, --force-share        Understood; images are never locked
  -h, --help               Show this text
";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Own {
    Length,
    Start,
}

const FLAGS: &[Flag<Opt<Own>>] = {
    use Argument::Required;
    &[
        output(),
        own("start-offset", Some(b's'), Required, Own::Start),
        own("max-length", Some(b'l'), Required, Own::Length),
    ]
};

/// Which part is told of.
#[derive(Clone, Copy, Debug, Default)]
struct Wanted {
    start: u64,
    length: Option<u64>,
}

pub(super) fn run(_: &Command, words: Vec<OsString>) -> Done {
    let mut looking = Looking::default();
    let mut wanted = Wanted::default();
    let operands = looking.read(FLAGS, words, HELP, |option, value| {
        match option {
            Own::Start => wanted.start = bytes("start offset", value)?,
            Own::Length => wanted.length = Some(bytes("max length", value)?),
        }
        Ok(())
    })?;
    let source = looking.source(&operands)?;
    let mut output = BufWriter::new(io::stdout().lock());
    let runtime = runtime()?;
    let told = runtime.block_on(map(&source, wanted, looking.json, &mut output));
    runtime.shutdown_background();
    match told?.and_then(|scattered| output.flush().map(|()| scattered)) {
        Ok(Whole::Yes) => Ok(ExitCode::SUCCESS),
        Ok(Whole::Scattered) => {
            let message = "File contains external, encrypted or compressed clusters.";
            Err(Failure::failed(message).into())
        }
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            Err(Failure::reader_gone().into())
        }
        Err(error) => Err(unprinted(&error).into()),
    }
}

/// Whether all data lies somewhere in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whole {
    Yes,
    Scattered,
}

/// What ends the telling early.
enum End {
    Scattered,
    Output(io::Error),
}

async fn map(
    source: &Endpoint,
    wanted: Wanted,
    json: bool,
    output: &mut impl Write,
) -> Result<io::Result<Whole>, Failure> {
    let opened = open_device(source, Access::ReadOnly, &opening()).await?;
    let mut places = Places::of(source, &opened, View::Qemu);
    places.rename_first(name_of(source));
    let size = places.size();
    let rounded = match opened.connection.layers().chain().next() {
        // QEMU counts bytes in sectors.
        None => size.next_multiple_of(SECTOR),
        Some(_) => size,
    };
    let end = wanted.length.map_or(rounded, |length| {
        wanted.start.saturating_add(length).min(rounded)
    });
    let range = ByteRange::between(wanted.start.min(end), end);
    let mut printer = Printer {
        json,
        begun: false,
        last: None,
        output,
    };
    if let Err(error) = printer.begin() {
        return Ok(Err(error));
    }
    let told = places
        .each(range, |entry| printer.entry(entry, size))
        .await?;
    let told = told.and_then(|()| printer.pad(range, size, rounded));
    opened.connection.close().await?;
    Ok(match told.and_then(|()| printer.end(wanted.start)) {
        Ok(()) => Ok(Whole::Yes),
        Err(End::Scattered) => printer.output.flush().map(|()| Whole::Scattered),
        Err(End::Output(error)) => Err(error),
    })
}

/// Prints entries as they come.
struct Printer<'a, W> {
    json: bool,
    begun: bool,
    /// An entry that ends with the disk, which may go on behind it.
    last: Option<MapEntry>,
    output: &'a mut W,
}

impl<W: Write> Printer<'_, W> {
    fn begin(&mut self) -> io::Result<()> {
        if self.json {
            return self.output.write_all(b"[");
        }
        let [offset, length, mapped, file] = ["Offset", "Length", "Mapped to", "File"];
        writeln!(self.output, "{offset:<16}{length:<16}{mapped:<16}{file}")
    }

    /// The next entry of a disk of `size` bytes.
    fn entry(&mut self, entry: MapEntry, size: u64) -> Result<(), End> {
        if entry.range.end() == size {
            self.last = Some(entry);
            return Ok(());
        }
        self.print(&entry)
    }

    /// What lies between the end of the disk and that of its last sector: zeroes.
    fn pad(&mut self, range: ByteRange, size: u64, rounded: u64) -> Result<(), End> {
        let last = self.last.take();
        let behind = range.intersection(ByteRange::between(size, rounded));
        match last {
            Some(last) if behind.is_empty() => self.print(&last),
            Some(mut last) if last.zero && !last.data => {
                last.range = ByteRange::between(last.range.start(), behind.end());
                self.print(&last)
            }
            Some(last) => {
                self.print(&last)?;
                self.print(&MapEntry {
                    range: behind,
                    zero: true,
                    data: false,
                    offset: last.offset.map(|offset| offset + last.range.len()),
                    ..last
                })
            }
            None => Ok(()),
        }
    }

    fn print(&mut self, entry: &MapEntry) -> Result<(), End> {
        let printed = match self.json {
            true => self.print_json(entry),
            false if entry.data && entry.offset.is_none() => return Err(End::Scattered),
            false if entry.data && !entry.zero => self.print_line(entry),
            false => Ok(()),
        };
        printed.map_err(End::Output)
    }

    fn print_line(&mut self, entry: &MapEntry) -> io::Result<()> {
        let hex = |number: u64| match number {
            0 => "0".to_owned(),
            number => format!("{number:#x}"),
        };
        let (start, length) = (hex(entry.range.start()), hex(entry.range.len()));
        let offset = hex(entry.offset.unwrap_or(0));
        let file = entry.file.as_ref().map(|file| printable(file.as_os_str()));
        let file = file.unwrap_or_default();
        writeln!(self.output, "{start:<16}{length:<16}{offset:<16}{file}")
    }

    fn print_json(&mut self, entry: &MapEntry) -> io::Result<()> {
        if self.begun {
            self.output.write_all(b",\n")?;
        }
        self.begun = true;
        let MapEntry {
            range,
            depth,
            present,
            zero,
            data,
            compressed,
            ..
        } = entry;
        write!(
            self.output,
            "{{ \"start\": {}, \"length\": {}, \"depth\": {depth}, \"present\": {present}, \"zero\": {zero}, \
             \"data\": {data}, \"compressed\": {compressed}",
            range.start(),
            range.len()
        )?;
        if let Some(offset) = entry.offset {
            write!(self.output, ", \"offset\": {offset}")?;
        }
        self.output.write_all(b"}")
    }

    /// The end, and where nothing was told an entry of nothing.
    fn end(&mut self, start: u64) -> Result<(), End> {
        if !self.json {
            return Ok(());
        }
        if !self.begun {
            let nothing = MapEntry {
                range: ByteRange::between(start, start),
                depth: 0,
                present: false,
                zero: false,
                data: false,
                compressed: false,
                offset: None,
                file: None,
            };
            self.print_json(&nothing).map_err(End::Output)?;
        }
        self.output.write_all(b"]\n").map_err(End::Output)
    }
}
