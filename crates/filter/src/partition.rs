//! `partition`: one partition of each disk, by its number.

mod gpt;
mod mbr;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, ByteRange, Error, ErrorKind, Exports, HumanSize, Operation, Parameter,
    ParameterType, Result, SliceDevice,
};

use crate::{
    Filter, FilterKind, Layer,
    offset::{PART, each_part},
    window::Window,
};
use gpt::GptFlaw;

pub(crate) static PARTITION: FilterKind = FilterKind {
    name: "partition",
    syntax: "partition:NUMBER[,sector-size=SIZE]",
    help: "One partition of the disk",
    parameters: &[
        Parameter::new(
            "number",
            ParameterType::Number,
            "Which one: of an MBR 1 to 4, logical ones from 5 on; of a GPT the number of its entry",
        )
        .first()
        .required(),
        Parameter::new(
            "sector-size",
            ParameterType::Choice(&["auto", "512", "4096"]),
            "What the table counts in, in bytes; 'auto': where a GPT is found, 512 for an MBR",
        )
        .or("auto"),
    ],
    effects: PART,
    build: |values| {
        let number = values.number::<u64>("number").unwrap_or(0);
        match u32::try_from(number) {
            Ok(number @ 1..) => Ok(Arc::new(Partition {
                number,
                sector_size: values.number("sector-size"),
            })),
            _ => Err("partitions are numbered from 1 on".to_owned()),
        }
    },
};

/// Shows one partition of each disk.
///
/// The table is read when an export is opened. A GPT whose first header or entries are damaged is read from its
/// copy at the end of the disk. A partition that is not there does not open (`NotFound`), and neither does one
/// that leaves the disk or overlaps another one (`InvalidInput`): the error says where it lies, and
/// [`Offset`](crate::Offset) shows it all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, 1 or more: of an MBR 1 to 4, logical ones from 5 on as Linux counts them; of a GPT that of its
    /// entry.
    pub number: u32,
    /// What the table counts in, in bytes: 512 or 4096. `None`: where the header of a GPT is found; 512 for an
    /// MBR, which does not tell.
    pub sector_size: Option<u32>,
}

impl Filter for Partition {
    fn kind(&self) -> &'static FilterKind {
        &PARTITION
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        let Self {
            number,
            sector_size,
        } = *self;
        Ok(each_part(PARTITION.name, below, move |device| {
            Box::pin(async move {
                let table = PartitionTable::read(&*device, sector_size).await?;
                let range = table.find(number)?;
                SliceDevice::new(device, range.start(), Some(range.len()))
            })
        }))
    }
}

/// The partitions of a disk.
#[derive(Clone, Debug)]
pub struct PartitionTable {
    entries: Vec<TableEntry>,
    /// The size of the disk, in bytes.
    disk: u64,
    /// Why there may be more partitions than are known.
    flaw: Option<&'static str>,
}

/// A partition, as a table has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableEntry {
    number: u32,
    /// Where it is said to lie; `None` where that can be no place.
    range: Option<ByteRange>,
    /// Printable; empty for none.
    name: String,
    /// Whether it is only there to hold logical ones.
    is_extended: bool,
    /// The extended partition that this one must lie in.
    container: Option<ByteRange>,
}

/// The sizes that sectors can have, in bytes.
const SECTOR_SIZES: [u32; 2] = [512, 4096];

/// How many partitions a message speaks of.
const MOST_SHOWN: usize = 16;

impl PartitionTable {
    /// Reads the table of `device`; for `sector_size` see [`Partition::sector_size`]. The time and the memory that
    /// this takes are bounded, whatever is in it.
    ///
    /// # Errors
    /// `InvalidInput` where there is no table or it is damaged, or sectors cannot have that size; and what reading
    /// fails with.
    pub async fn read(device: &dyn BlockDevice, sector_size: Option<u32>) -> Result<Self> {
        if sector_size.is_some_and(|size| !SECTOR_SIZES.contains(&size)) {
            let message = "sectors have 512 or 4096 bytes";
            return Err(refused(ErrorKind::InvalidInput, message));
        }
        let mut window = Window::new(device);
        let disk = window.size();
        let first = ByteRange::between(0, disk.min(mbr::SECTOR as u64));
        let entries = mbr::entries(window.bytes(first).await?);
        let is_protective = entries.is_some_and(|all| all.iter().any(|one| one.is_protective()));
        let is_used = entries.is_some_and(|all| all.iter().any(|one| one.is_used()));
        // A GPT that is not announced is what was there before the MBR, unless that is empty.
        if is_protective || !is_used {
            let mut flaws = is_protective.then_some((GptFlaw::Missing, GptFlaw::Missing));
            for size in SECTOR_SIZES {
                if sector_size.is_some_and(|only| only != size) {
                    continue;
                }
                match gpt::partitions(&mut window, size.into()).await? {
                    Ok(entries) => {
                        return Ok(Self {
                            entries,
                            disk,
                            flaw: None,
                        });
                    }
                    Err((GptFlaw::Missing, GptFlaw::Missing)) => {}
                    Err(found) => flaws = Some(found),
                }
            }
            if let Some((first, copy)) = flaws {
                let message = format!("its GPT is damaged: {first}; of its copy: {copy}");
                return Err(refused(ErrorKind::InvalidInput, message));
            }
        }
        let Some(first) = entries else {
            let message = "it has no partition table, neither MBR nor GPT";
            return Err(refused(ErrorKind::InvalidInput, message));
        };
        let sector_size = u64::from(sector_size.unwrap_or(SECTOR_SIZES[0]));
        let (entries, flaw) = mbr::partitions(&mut window, first, sector_size).await?;
        Ok(Self {
            entries,
            disk,
            flaw,
        })
    }

    /// The numbers of the partitions that there are.
    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        self.entries.iter().map(|entry| entry.number)
    }

    /// Where the partition of that number lies.
    ///
    /// # Errors
    /// `NotFound` where there is none: the message lists those that there are. `InvalidInput` where it is one that
    /// holds others, leaves the disk, or overlaps another one.
    pub fn find(&self, number: u32) -> Result<ByteRange> {
        let entry = self.entries.iter().find(|entry| entry.number == number);
        let Some(entry) = entry else {
            let mut message = format!("there is no partition {number}: {}", self.list());
            if let Some(flaw) = self.flaw {
                message = format!("{message}; {flaw}");
            }
            return Err(refused(ErrorKind::NotFound, message));
        };
        let invalid =
            |why: String| refused(ErrorKind::InvalidInput, format!("partition {number} {why}"));
        if entry.is_extended {
            return Err(invalid(format!(
                "is the extended one, which only holds others: {}",
                self.list()
            )));
        }
        let Some(range) = entry.range else {
            return Err(invalid("has an impossible place".to_owned()));
        };
        let place = format!("offset {}, length {}", range.start(), range.len());
        if range.end() > self.disk {
            let disk = self.disk;
            return Err(invalid(format!(
                "leaves the disk: {place}; the disk has {disk} bytes"
            )));
        }
        if entry.container.is_some_and(|all| !all.contains(range)) {
            return Err(invalid(format!("leaves the extended one: {place}")));
        }
        if let Some(other) = self.entries.iter().find(|other| overlap(entry, other)) {
            let other = other.number;
            return Err(invalid(format!("overlaps partition {other}: {place}")));
        }
        Ok(range)
    }

    fn list(&self) -> String {
        let shown = self.entries.iter().take(MOST_SHOWN).map(TableEntry::show);
        let mut shown: Vec<_> = shown.collect();
        let more = self.entries.len() - shown.len();
        if more > 0 {
            shown.push(format!("{more} more"));
        }
        match shown.is_empty() {
            true => "there are none".to_owned(),
            false => format!("there are {}", shown.join(", ")),
        }
    }
}

impl TableEntry {
    /// Its number, its size and its name.
    fn show(&self) -> String {
        let size = match self.range {
            Some(range) => HumanSize(range.len()).to_string(),
            None => "of no size".to_owned(),
        };
        let extended = if self.is_extended { ", extended" } else { "" };
        let name = match self.name.is_empty() {
            true => String::new(),
            false => format!(", '{}'", self.name),
        };
        format!("{} ({size}{extended}{name})", self.number)
    }
}

/// Whether two partitions have bytes in common that one does not lend to the other.
fn overlap(one: &TableEntry, other: &TableEntry) -> bool {
    let holds = other.is_extended && one.container == other.range;
    one.number != other.number
        && !holds
        && one
            .range
            .zip(other.range)
            .is_some_and(|(one, other)| !one.intersection(other).is_empty())
}

fn refused(kind: ErrorKind, message: impl Into<String>) -> Error {
    Error::with_message(kind, message).during(Operation::Open)
}
