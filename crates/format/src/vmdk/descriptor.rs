//! The text that says what an image is made of ("Virtual Disk Format 5.0", "The Descriptor File"): read, and written.

use std::{ffi::OsStr, fmt::Write as _, os::unix::ffi::OsStrExt};

use blockferry_block::{Error, ErrorKind, Result, printable};

use super::header::SECTOR;
use crate::{
    corrupt::corrupt,
    related::{RelatedFile, Role},
};

/// How long a descriptor may be, in bytes, embedded or in a file of its own: those of the largest disks in the
/// smallest extents are shorter.
pub(crate) const LONGEST: u64 = 1 << 20;

/// The CID of no parent.
pub(crate) const NO_PARENT: u32 = u32::MAX;

/// What a descriptor says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) cid: u32,
    pub(crate) parent_cid: u32,
    /// Empty where it is not said.
    pub(crate) create_type: String,
    /// The parent's name.
    pub(crate) parent: Option<Vec<u8>>,
    pub(crate) extents: Vec<ExtentLine>,
}

/// A line that describes an extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExtentLine {
    /// How much of the disk it is, in bytes.
    pub(crate) size: u64,
    /// Whether its contents may be read.
    pub(crate) is_readable: bool,
    pub(crate) kind: ExtentKind,
    /// The file; `None` for one that has none.
    pub(crate) file: Option<Vec<u8>>,
    /// Where it begins in the file, in bytes.
    pub(crate) offset: u64,
}

/// The kinds of extents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ExtentKind {
    Flat,
    Sparse,
    Zero,
    Vmfs,
    VmfsSparse,
    /// One that is not read.
    Other(String),
}

impl ExtentKind {
    /// As a descriptor has it.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Flat => "FLAT",
            Self::Sparse => "SPARSE",
            Self::Zero => "ZERO",
            Self::Vmfs => "VMFS",
            Self::VmfsSparse => "VMFSSPARSE",
            Self::Other(name) => name,
        }
    }
}

impl From<&str> for ExtentKind {
    fn from(name: &str) -> Self {
        match name {
            "FLAT" => Self::Flat,
            "SPARSE" => Self::Sparse,
            "ZERO" => Self::Zero,
            "VMFS" => Self::Vmfs,
            "VMFSSPARSE" => Self::VmfsSparse,
            other => Self::Other(other.to_owned()),
        }
    }
}

impl Descriptor {
    /// The descriptor that `bytes` hold, up to their end or the first zero byte.
    ///
    /// # Errors
    /// `Corrupt`, with the line.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let end = bytes.iter().position(|byte| *byte == 0);
        let bytes = &bytes[..end.unwrap_or(bytes.len())];
        let (mut cid, mut parent_cid, mut create_type, mut parent) = (None, None, None, None);
        let mut extents = Vec::new();
        let mut size: u64 = 0;
        for (line, number) in bytes.split(|byte| *byte == b'\n').zip(1..) {
            let wrong =
                |error: String| corrupt(format!("line {number} of the descriptor: {error}"));
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            if let Some(extent) = ExtentLine::parse(line) {
                let extent = extent.map_err(wrong)?;
                let sum = size.checked_add(extent.size);
                let Some(sum) = sum.filter(|sum| i64::try_from(*sum).is_ok()) else {
                    return Err(wrong("the extents are longer than any disk".to_owned()));
                };
                size = sum;
                extents.push(extent);
                continue;
            }
            // There are lines that only others know.
            let Some((key, value)) = assignment(line) else {
                continue;
            };
            // As others have it, what comes first counts.
            if key.eq_ignore_ascii_case(b"CID") && cid.is_none() {
                cid = Some(hexadecimal(value).map_err(wrong)?);
            } else if key.eq_ignore_ascii_case(b"parentCID") && parent_cid.is_none() {
                parent_cid = Some(hexadecimal(value).map_err(wrong)?);
            } else if key.eq_ignore_ascii_case(b"createType") && create_type.is_none() {
                create_type = Some(String::from_utf8_lossy(value).into_owned());
            } else if key.eq_ignore_ascii_case(b"parentFileNameHint") && parent.is_none() {
                parent = Some(value.to_vec());
            }
        }
        let Some(cid) = cid else {
            let is_descriptor =
                parent_cid.is_some() || create_type.is_some() || !extents.is_empty();
            return Err(corrupt(match is_descriptor {
                true => "its descriptor has no CID",
                false => "it is not a VMDK image: it begins with something else",
            }));
        };
        let parent_cid = parent_cid.unwrap_or(NO_PARENT);
        match (&parent, parent_cid) {
            (None, NO_PARENT) | (Some(_), ..NO_PARENT) => {}
            (None, _) => return Err(corrupt("it has a parent, and does not name it")),
            (Some(_), NO_PARENT) => {
                return Err(corrupt("it names a parent, and says that it has none"));
            }
        }
        Ok(Self {
            cid,
            parent_cid,
            create_type: create_type.unwrap_or_default(),
            parent,
            extents,
        })
    }

    /// The parent, as a file.
    pub(crate) fn parent_file(&self) -> Option<RelatedFile> {
        let name = self.parent.clone()?;
        Some(RelatedFile {
            role: Role::Backing,
            name,
            format: Some("vmdk".to_owned()),
        })
    }

    /// The size of the disk in bytes: that of all extents together.
    pub(crate) fn size(&self) -> u64 {
        self.extents.iter().map(|extent| extent.size).sum()
    }
}

impl ExtentLine {
    /// `ACCESS SECTORS KIND ["FILE" [OFFSET]]`; `None` where it is another line.
    fn parse(line: &[u8]) -> Option<Result<Self, String>> {
        let (access, rest) = word(line);
        let is_readable = match access {
            b"RW" | b"RDONLY" => true,
            b"NOACCESS" => false,
            _ => return None,
        };
        Some(Self::parse_rest(is_readable, rest))
    }

    fn parse_rest(is_readable: bool, rest: &[u8]) -> Result<Self, String> {
        let (sectors, rest) = word(rest);
        let size = bytes_of(sectors);
        let size =
            size.ok_or_else(|| format!("\"{}\" is not a number of sectors", shown(sectors)))?;
        let (kind, rest) = word(rest);
        let kind = ExtentKind::from(&*String::from_utf8_lossy(kind));
        let extent = Self {
            size,
            is_readable,
            kind,
            file: None,
            offset: 0,
        };
        if extent.kind == ExtentKind::Zero {
            return Ok(extent);
        }
        let quoted = rest.strip_prefix(b"\"").and_then(|rest| {
            let end = rest.iter().position(|byte| *byte == b'"')?;
            Some((&rest[..end], rest[end + 1..].trim_ascii()))
        });
        let Some((name, rest)) = quoted.filter(|(name, _)| !name.is_empty()) else {
            return Err("the extent does not name its file".to_owned());
        };
        let offset = match (word(rest).0, &extent.kind) {
            (b"", ExtentKind::Flat) => {
                return Err("it is not said where in its file the extent begins".to_owned());
            }
            (b"", _) => 0,
            (sectors, _) => bytes_of(sectors)
                .ok_or_else(|| format!("\"{}\" is not an offset in sectors", shown(sectors)))?,
        };
        Ok(Self {
            file: Some(name.to_vec()),
            offset,
            ..extent
        })
    }

    /// The file, as one to be opened.
    pub(crate) fn related(&self) -> Option<RelatedFile> {
        let name = self.file.clone()?;
        Some(RelatedFile {
            role: Role::Extent,
            name,
            format: None,
        })
    }

    /// Refuses one whose contents are not read.
    ///
    /// # Errors
    /// `Unsupported`, by its name.
    pub(crate) fn check(&self) -> Result<()> {
        let message = match &self.kind {
            _ if !self.is_readable => "an extent without access is not supported".to_owned(),
            ExtentKind::Other(name) => {
                format!(
                    "extents of the kind {} are not supported",
                    shown(name.as_bytes())
                )
            }
            _ => return Ok(()),
        };
        Err(Error::with_message(ErrorKind::Unsupported, message))
    }
}

/// The first word, and what follows behind blanks.
fn word(line: &[u8]) -> (&[u8], &[u8]) {
    let end = line.iter().position(u8::is_ascii_whitespace);
    let (word, rest) = line.split_at(end.unwrap_or(line.len()));
    (word, rest.trim_ascii())
}

/// `KEY = "VALUE"`, with or without blanks and quotes.
fn assignment(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = line.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (line[..at].trim_ascii(), line[at + 1..].trim_ascii());
    let quoted = value.strip_prefix(b"\"");
    let value = match quoted {
        Some(rest) => rest.split(|byte| *byte == b'"').next().unwrap_or_default(),
        None => value,
    };
    Some((key, value))
}

fn hexadecimal(text: &[u8]) -> Result<u32, String> {
    let number = std::str::from_utf8(text).ok();
    let number = number.and_then(|text| u32::from_str_radix(text, 16).ok());
    number.ok_or_else(|| format!("\"{}\" is not a CID", shown(text)))
}

/// The bytes of as many sectors as `text` says.
fn bytes_of(text: &[u8]) -> Option<u64> {
    let number: u64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    let bytes = number.checked_mul(SECTOR)?;
    i64::try_from(bytes).is_ok().then_some(bytes)
}

/// Text of an image, for a message: escaped, and not much of it.
fn shown(text: &[u8]) -> String {
    let text = &text[..text.len().min(100)];
    printable(OsStr::from_bytes(text)).to_string()
}

/// The descriptor of a new image.
pub(crate) struct NewDescriptor<'a> {
    pub(crate) cid: u32,
    pub(crate) create_type: &'a str,
    /// The size of the disk in sectors.
    pub(crate) capacity: u64,
    /// The name of the file that it is in.
    pub(crate) file: &'a str,
    pub(crate) adapter_type: &'a str,
    pub(crate) hardware_version: &'a str,
}

impl NewDescriptor<'_> {
    /// Its text.
    pub(crate) fn text(&self) -> String {
        // What VMware gives disks behind an IDE adapter, and behind others.
        let (heads, sectors) = match self.adapter_type {
            "ide" => (16, 63),
            _ => (255, 63),
        };
        let cylinders = self.capacity / (heads * sectors);
        let Self {
            cid,
            create_type,
            capacity,
            adapter_type,
            hardware_version,
            ..
        } = self;
        let mut text = String::from("# Disk DescriptorFile\nversion=1\n");
        let _ = write!(
            text,
            "CID={cid:08x}\nparentCID=ffffffff\ncreateType=\"{create_type}\"\n\n\
             # Extent description\nRW {capacity} SPARSE \"{}\"\n\n\
             # The Disk Data Base\n#DDB\n\n\
             ddb.virtualHWVersion = \"{hardware_version}\"\n\
             ddb.geometry.cylinders = \"{cylinders}\"\n\
             ddb.geometry.heads = \"{heads}\"\n\
             ddb.geometry.sectors = \"{sectors}\"\n\
             ddb.adapterType = \"{adapter_type}\"\n\
             ddb.toolsVersion = \"2147483647\"\n",
            file_name(self.file)
        );
        text
    }
}

/// The name of a file as a descriptor can have it: the last part of a path, short, without quotes and what is not text.
fn file_name(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or_default();
    let is_plain = |c: &char| !c.is_control() && *c != '"';
    let name: String = name.chars().filter(is_plain).take(255).collect();
    match &*name {
        "" | "-" => "disk.vmdk".to_owned(),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(more: &str) -> Vec<u8> {
        format!("# Disk DescriptorFile\nversion=1\nCID=0a\nparentCID=ffffffff\n{more}").into_bytes()
    }

    fn parse(more: &str) -> Result<Descriptor> {
        Descriptor::parse(&lines(more))
    }

    #[test]
    fn extents_of_every_kind_are_read() {
        let text = "createType = \"custom\" \r\nRW 16 SPARSE \"a b.vmdk\"\r\nRDONLY 8 ZERO\n\
                    RW 2 FLAT \"c\" 7\nRW 1 VMFS \"d\"\nRW 1 VMFSRDM \"e\"\nNOACCESS 4 FLAT \"f\" 0\nddb.x = \"y\"\n";
        let descriptor = parse(text).expect("sound");
        assert_eq!((descriptor.cid, descriptor.parent_cid), (10, NO_PARENT));
        assert_eq!(descriptor.create_type, "custom");
        assert_eq!(descriptor.size(), 32 * 512);
        let kinds: Vec<_> = descriptor
            .extents
            .iter()
            .map(|extent| {
                (
                    extent.kind.name(),
                    extent.offset / 512,
                    extent.check().is_ok(),
                )
            })
            .collect();
        let expected = [
            ("SPARSE", 0, true),
            ("ZERO", 0, true),
            ("FLAT", 7, true),
            ("VMFS", 0, true),
            ("VMFSRDM", 0, false),
            ("FLAT", 0, false),
        ];
        assert_eq!(kinds, expected);
        assert_eq!(
            descriptor.extents[0].file.as_deref(),
            Some(&b"a b.vmdk"[..])
        );
    }

    #[test]
    fn a_parent_has_a_name_and_a_cid() {
        let parse = |text: &str| Descriptor::parse(text.as_bytes());
        let child = parse("CID=1\nparentCID=2\nparentFileNameHint=\"base.vmdk\"\n").expect("sound");
        assert_eq!(child.parent_cid, 2);
        let parent = child.parent_file().expect("a parent");
        assert_eq!(
            (&parent.name[..], parent.role),
            (&b"base.vmdk"[..], Role::Backing)
        );
        for (text, said) in [
            ("CID=1\nparentCID=2\n", "does not name it"),
            ("CID=1\nparentFileNameHint=x\n", "says that it has none"),
            ("parentCID=ffffffff\n", "no CID"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn lines_that_make_no_sense_are_told() {
        for (line, said) in [
            (
                "RW x SPARSE \"a\"",
                "line 5 of the descriptor: \"x\" is not a number of sectors",
            ),
            ("RW -1 SPARSE \"a\"", "\"-1\" is not a number"),
            ("RW 36028797018963968 ZERO", "is not a number of sectors"),
            (
                "RW 9007199254740992 ZERO\nRW 9007199254740992 ZERO",
                "longer than any disk",
            ),
            ("RW 1 FLAT \"a\"", "not said where"),
            ("RW 1 FLAT \"a\" x", "\"x\" is not an offset"),
            ("RW 1 SPARSE", "does not name its file"),
            ("RW 1 SPARSE \"a", "does not name its file"),
            ("RW 1 SPARSE \"\"", "does not name its file"),
        ] {
            let error = parse(line).expect_err(line).to_string();
            assert!(error.contains(said), "{line}: {error}");
        }
        let descriptor = parse("CID=zz\nhello\n").expect("the first counts");
        assert_eq!(descriptor.cid, 10);
        let error = Descriptor::parse(b"CID=zz").expect_err("no number");
        assert_eq!(
            error.to_string(),
            "line 1 of the descriptor: \"zz\" is not a CID"
        );
    }

    #[test]
    fn what_is_written_is_read() {
        let new = NewDescriptor {
            cid: 0x1234_5678,
            create_type: "streamOptimized",
            capacity: 20480,
            file: "/dir/a \"b\".vmdk",
            adapter_type: "lsilogic",
            hardware_version: "4",
        };
        let descriptor = Descriptor::parse(new.text().as_bytes()).expect("sound");
        assert_eq!(descriptor.cid, 0x1234_5678);
        assert_eq!(descriptor.create_type, "streamOptimized");
        assert_eq!(descriptor.size(), 10 << 20);
        assert_eq!(
            descriptor.extents[0].file.as_deref(),
            Some(&b"a b.vmdk"[..])
        );
        assert!(new.text().contains("heads = \"255\""));
    }
}
