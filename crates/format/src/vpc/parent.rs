//! The parent of a differencing image: its names, and whether a file is it.
//!
//! An image has several names of its parent (specification, "Parent Locator Entries"): paths of Windows, whole ones and
//! ones that begin at the image; URLs of other systems; and the name alone. None of them may be right here, so they are
//! tried in turn, those that begin at the image first.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, sync::Arc};

use blockferry_block::{BlockDevice, ByteRange, Result, printable, read_exact_at};

use super::header::{Header, Locator};
use crate::{
    Details, Related, RelatedFile, Role,
    corrupt::corrupt,
    parent::{mended, open_first},
};

/// The longest name that is read, in bytes.
const LONGEST: u64 = 64 << 10;

/// The names that the parent may have, each once, the most likely one first.
///
/// # Errors
/// `Corrupt` for a locator that leads out of the file, what reading failed with.
pub(super) async fn names(below: &dyn BlockDevice, header: &Header) -> Result<Vec<Vec<u8>>> {
    let mut relative = Vec::new();
    let mut whole = Vec::new();
    for locator in &header.locators {
        let list = match &locator.platform {
            b"W2ru" | b"MacX" => &mut relative,
            b"W2ku" => &mut whole,
            // Names in whatever a Windows or a Mac of the time wrote.
            b"Wi2r" | b"WI2R" => &mut relative,
            b"Wi2k" | b"WI2K" => &mut whole,
            _ => continue,
        };
        let bytes = read_locator(below, *locator).await?;
        let name = match &locator.platform {
            b"W2ru" | b"W2ku" => utf16(&bytes, u16::from_le_bytes),
            b"MacX" => match from_url(&bytes) {
                Some(name) => name,
                None => continue,
            },
            _ => bytes
                .split(|byte| *byte == 0)
                .next()
                .unwrap_or_default()
                .to_vec(),
        };
        list.push(name);
    }
    let own = utf16(&header.parent_name, u16::from_be_bytes);
    let all = relative.into_iter().chain([own]).chain(whole);
    let mut names = Vec::new();
    for name in all.map(|name| mended(&name)) {
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

async fn read_locator(below: &dyn BlockDevice, locator: Locator) -> Result<Vec<u8>> {
    let place = ByteRange::new(locator.offset, locator.length).ok();
    let place = place.filter(|place| place.end() <= below.info().size);
    let Some(place) = place.filter(|place| place.len() <= LONGEST) else {
        let (offset, length) = (locator.offset, locator.length);
        return Err(corrupt(format!(
            "a name of the parent has {length} bytes at {offset:#x}, which are not in the file"
        )));
    };
    Ok(read_exact_at(below, place).await?.to_vec())
}

/// UTF-16 up to its end or the first zero as UTF-8.
fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Vec<u8> {
    let units = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
    let units = units.take_while(|unit| *unit != 0);
    let text: String = char::decode_utf16(units)
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect();
    text.into_bytes()
}

/// The path in a URL of a file: `file://./parent.vhd`, as XenServer writes it, begins at the image.
fn from_url(bytes: &[u8]) -> Option<Vec<u8>> {
    let text = bytes.split(|byte| *byte == 0).next()?;
    let path = text.strip_prefix(b"file://")?;
    let path = path.strip_prefix(b"localhost").unwrap_or(path);
    let mut plain = Vec::new();
    let mut rest = path;
    while let [first, others @ ..] = rest {
        let digits = match (first, others) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        match digits {
            Some((high, low)) => {
                plain.push(high << 4 | low);
                rest = &others[2..];
            }
            None => {
                plain.push(*first);
                rest = others;
            }
        }
    }
    Some(plain)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|digit| digit as u8)
}

/// The parent under one of its names.
pub(super) fn file(name: Vec<u8>) -> RelatedFile {
    RelatedFile {
        role: Role::Backing,
        name,
        format: Some("vpc".to_owned()),
    }
}

/// Opens the parent, under the first of its names that there is a file for.
///
/// # Errors
/// `Corrupt` for a file that is not the parent, or an image that does not name any; those of `related`.
pub(super) async fn open(
    related: &dyn Related,
    names: Vec<Vec<u8>>,
    uuid: [u8; 16],
) -> Result<Arc<dyn BlockDevice>> {
    let files = names.into_iter().map(file);
    let check = |file: &RelatedFile, details: Option<&Details>| check(file, details, uuid);
    open_first(related, files, check).await
}

/// Whether what was opened is the parent.
fn check(file: &RelatedFile, details: Option<&Details>, wanted: [u8; 16]) -> Result<()> {
    let Some(Details::Vpc(details)) = details else {
        let name = printable(OsStr::from_bytes(&file.name));
        return Err(corrupt(format!("its parent \"{name}\" is not a VHD image")));
    };
    if details.uuid == wanted {
        return Ok(());
    }
    let name = printable(OsStr::from_bytes(&file.name));
    Err(corrupt(format!(
        "its parent is the image {}, and \"{name}\" is {}: it was replaced",
        text(wanted),
        text(details.uuid)
    )))
}

/// An identity as people know it.
fn text(uuid: [u8; 16]) -> String {
    let digits = format!("{:032x}", u128::from_be_bytes(uuid));
    let (a, b, c, d, e) = (
        &digits[..8],
        &digits[8..12],
        &digits[12..16],
        &digits[16..20],
        &digits[20..],
    );
    format!("{a}-{b}-{c}-{d}-{e}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_files_are_paths() {
        for (url, expected) in [
            ("file://./parent.vhd\0", Some("./parent.vhd")),
            ("file:///disks/a%20b%2", Some("/disks/a b%2")),
            ("file://localhost/x", Some("/x")),
            ("http://host/x", None),
        ] {
            let path = from_url(url.as_bytes());
            assert_eq!(path.as_deref(), expected.map(str::as_bytes), "{url}");
        }
    }

    #[test]
    fn an_identity_is_told_as_usual() {
        let uuid = [
            1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66,
            0x77,
        ];
        assert_eq!(text(uuid), "01234567-89ab-cdef-0011-223344556677");
    }
}
