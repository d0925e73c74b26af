//! `tar`: one member of each archive, where it lies.

mod header;
#[cfg(test)]
mod tests;
mod walk;

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::PathBuf, sync::Arc};

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Error, ErrorKind, Exports, Operation, Parameter, ParameterType,
    Result, SliceDevice, printable,
};

use crate::{
    Filter, FilterKind, Layer,
    offset::{PART, each_part},
};
use header::{Kind, TarFlaw};
use walk::{Member, Step, Walk};

pub(crate) static TAR: FilterKind = FilterKind {
    name: "tar",
    syntax: "tar:MEMBER[,limit=NUMBER]",
    help: "One file of a tar archive that is not compressed: the disk of an OVA",
    parameters: &[
        Parameter::new(
            "member",
            ParameterType::Path,
            "The name of the file, as 'tar -t' shows it; './' in the beginning does not count",
        )
        .first()
        .required(),
        Parameter::new(
            "limit",
            ParameterType::Number,
            "How many headers are read before the search is given up",
        )
        .or("100000"),
    ],
    effects: PART,
    build: |values| {
        Ok(Arc::new(Tar {
            limit: values.number("limit").unwrap_or(Tar::LIMIT),
            ..Tar::new(values.path("member").unwrap_or_default())
        }))
    },
};

/// Shows one file of each tar archive: `ustar`, pax and GNU.
///
/// The archive is searched when an export is opened, up to the first file of that name. One that is not there does
/// not open (`NotFound`, with the names of those that are), and neither does an archive that is compressed or
/// damaged (`InvalidInput`), one that ends before the file does (`UnexpectedEnd`), nor a file that was stored
/// without its holes (`Unsupported`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tar {
    /// The name of the file; `./` in the beginning does not count, here and there.
    pub member: PathBuf,
    /// How many headers are read before the search is given up; by default [`LIMIT`](Self::LIMIT).
    pub limit: u64,
}

/// How many names a message has.
const MOST_SHOWN: usize = 16;

/// A plain file of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TarFile {
    /// Its name as it is written: any bytes, and no path to open.
    pub name: Vec<u8>,
    /// Where its bytes lie in the archive, which may end before.
    pub range: ByteRange,
}

/// How much of a name a message has, in characters.
const MOST_OF_A_NAME: usize = 100;

/// How compressed files begin, and which filter unpacks them, if there is one.
const COMPRESSED: &[(&[u8], &str, bool)] = &[
    (b"\x1f\x8b", "gzip", true),
    (b"\xfd7zXZ\0", "xz", true),
    (b"\x28\xb5\x2f\xfd", "zstd", true),
    (b"BZh", "bzip2", true),
    (b"LZIP", "lzip", false),
];

impl Tar {
    /// How many headers are read before a search is given up.
    pub const LIMIT: u64 = 100_000;

    /// The file of that name.
    #[must_use]
    pub fn new(member: impl Into<PathBuf>) -> Self {
        Self {
            member: member.into(),
            limit: Self::LIMIT,
        }
    }

    /// Where the file lies in the archive that `device` holds. The time and the memory that this takes are bounded,
    /// whatever is in it.
    ///
    /// # Errors
    /// As above, and what reading fails with.
    pub async fn find(&self, device: &dyn BlockDevice) -> Result<ByteRange> {
        let wanted = plain(self.member.as_os_str().as_bytes());
        let size = device.info().size;
        let mut walk = Walk::new(device, self.limit);
        let mut names = Vec::new();
        loop {
            let member = match walk.step().await? {
                Step::Member(member) => member,
                Step::Damaged {
                    at: 0,
                    flaw: TarFlaw::Checksum,
                } => return Err(self.no_archive(device).await?),
                Step::Damaged { at, flaw } => {
                    return Err(damaged(at, flaw));
                }
                Step::End => return Err(self.missing(&names, walk.position() > size)),
                Step::Limit => {
                    return Err(refused(
                        ErrorKind::NotFound,
                        format!(
                            "{} is not within the first {} headers: a higher limit=NUMBER searches on",
                            shown(wanted),
                            self.limit
                        ),
                    ));
                }
            };
            if plain(&member.name) == wanted {
                return usable(&member, size);
            }
            if matches!(member.kind, Kind::File | Kind::Sparse) {
                // The number of the others is told, not their names.
                let is_shown = names.len() < MOST_SHOWN;
                names.push(is_shown.then(|| shown(&member.name)));
            }
        }
    }

    /// The plain files of the archive that `device` holds, in its order, `most` of them at most: their names as they
    /// are written, and where they lie.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub async fn files(device: &dyn BlockDevice, most: usize) -> Result<Vec<TarFile>> {
        let mut walk = Walk::new(device, Self::LIMIT);
        let mut files = Vec::new();
        while files.len() < most {
            match walk.step().await? {
                Step::Member(member) if member.kind == Kind::File => files.push(TarFile {
                    name: member.name,
                    range: member.range,
                }),
                Step::Member(_) => {}
                Step::Damaged { at, flaw } => return Err(damaged(at, flaw)),
                Step::End | Step::Limit => break,
            }
        }
        Ok(files)
    }

    /// What to say where there is no such member.
    fn missing(&self, names: &[Option<String>], is_cut: bool) -> Error {
        let shown: Vec<_> = names.iter().flatten().map(String::as_str).collect();
        let mut list = match shown.is_empty() {
            true => "there are no files".to_owned(),
            false => format!("there are {}", shown.join(", ")),
        };
        if names.len() > shown.len() {
            list = format!("{list}, {} more", names.len() - shown.len());
        }
        if is_cut {
            list = format!("{list}; then the archive is cut off");
        }
        let wanted = self::shown(self.member.as_os_str().as_bytes());
        let message = format!("there is no {wanted} in the archive: {list}");
        refused(ErrorKind::NotFound, message)
    }

    /// What to say where there is no archive.
    async fn no_archive(&self, device: &dyn BlockDevice) -> Result<Error> {
        let length = device.info().limits.minimum.max(512);
        let start = device.read(0, Buffer::zeroed(length as usize)).await?;
        let found = COMPRESSED
            .iter()
            .find(|(magic, ..)| start.starts_with(magic));
        let message = match found {
            Some((_, name, true)) => {
                format!(
                    "the archive is compressed: put the filter '{name}' behind this one, as in --filter tar:... \
                     --filter {name}"
                )
            }
            Some((_, name, false)) => format!("the archive is compressed with {name}: unpack it"),
            None => "it is not a tar archive".to_owned(),
        };
        Ok(refused(ErrorKind::InvalidInput, message))
    }
}

impl Filter for Tar {
    fn kind(&self) -> &'static FilterKind {
        &TAR
    }

    fn unwraps(&self) -> bool {
        true
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        let filter = self.clone();
        Ok(each_part(TAR.name, below, move |device| {
            let filter = filter.clone();
            Box::pin(async move {
                let range = filter.find(&*device).await?;
                SliceDevice::new(device, range.start(), Some(range.len()))
            })
        }))
    }
}

/// Where the member's bytes lie, if they lie there as they are.
fn usable(member: &Member, size: u64) -> Result<ByteRange> {
    let name = shown(&member.name);
    let range = member.range;
    match member.kind {
        Kind::File if range.end() <= size => Ok(range),
        Kind::File => {
            let end = range.end();
            let message = format!(
                "the archive is cut off: {name} ends at offset {end}, and it has {size} bytes"
            );
            Err(refused(ErrorKind::UnexpectedEnd, message))
        }
        Kind::Sparse => {
            let message = format!(
                "{name} was stored without its holes, so its bytes do not lie together: unpack it"
            );
            Err(refused(ErrorKind::Unsupported, message))
        }
        _ => {
            let message = format!("{name} is in the archive, but is not a plain file");
            Err(refused(ErrorKind::InvalidInput, message))
        }
    }
}

/// A name without what says nothing.
fn plain(mut name: &[u8]) -> &[u8] {
    while let Some(rest) = name.strip_prefix(b"./") {
        name = rest;
    }
    name
}

/// A name as it can be shown.
fn shown(name: &[u8]) -> String {
    // Four bytes are enough for any character.
    let start = &name[..name.len().min(4 * MOST_OF_A_NAME)];
    let text = printable(OsStr::from_bytes(start));
    let mut short: String = text.chars().take(MOST_OF_A_NAME).collect();
    if short.len() < text.len() || start.len() < name.len() {
        short.push_str("...");
    }
    format!("'{short}'")
}

fn damaged(at: u64, flaw: TarFlaw) -> Error {
    let message = format!("the archive is damaged at offset {at}: {flaw}");
    refused(ErrorKind::InvalidInput, message)
}

fn refused(kind: ErrorKind, message: String) -> Error {
    Error::with_message(kind, message).during(Operation::Open)
}
