//! OVA: a virtual machine in one file, which is a tar archive whose first member is an OVF descriptor (DMTF DSP0243).
//!
//! Here is what the descriptor says of the disks; where their files lie is the archive's to say. The descriptor is
//! hostile: its size is bounded, and no entity in it stands for anything but a character.

use std::ffi::OsStr;

use blockferry_block::{Error, ErrorKind, Result, printable};
use quick_xml::{Reader, events::BytesStart, events::Event};

/// The longest descriptor that is read, in bytes.
pub const LONGEST_DESCRIPTOR: u64 = 4 << 20;

/// The most files and disks of a descriptor.
const MOST: usize = 4096;

/// How deep elements may be in one another.
const DEEPEST: usize = 64;

/// Whether an archive that begins with `start` is an OVA: 512 bytes of it, a header of `ustar` with the name of a
/// descriptor.
#[must_use]
pub fn begins(start: &[u8]) -> bool {
    descriptor_name(start).is_some()
}

/// The name of the descriptor in the archive that begins with `start`; `None` where it is no OVA.
#[must_use]
pub fn descriptor_name(start: &[u8]) -> Option<&[u8]> {
    if start.get(257..262)? != b"ustar" {
        return None;
    }
    let name = start.get(..100)?;
    let end = name.iter().position(|byte| *byte == 0);
    let name = &name[..end.unwrap_or(name.len())];
    let suffix = name.get(name.len().checked_sub(4)?..)?;
    suffix.eq_ignore_ascii_case(b".ovf").then_some(name)
}

/// The file of a disk, as a descriptor names it. Texts are the descriptor's: escape them before printing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskFile {
    /// The name of the file in the archive. It is no path to open.
    pub name: String,
    /// How it is compressed in there, beside what its own format does: `gzip`; `None` where it is not.
    pub compression: Option<String>,
}

impl DiskFile {
    /// A file that is not compressed.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            compression: None,
        }
    }
}

/// The files of the disks that `descriptor` names, in its order.
///
/// # Errors
/// `Corrupt` for what is no descriptor.
pub fn disks(descriptor: &[u8]) -> Result<Vec<DiskFile>> {
    let text = std::str::from_utf8(descriptor).map_err(|_| damaged("it is not text in UTF-8"))?;
    let mut reader = Reader::from_str(text);
    let mut files = Vec::new();
    let mut references = Vec::new();
    let mut depth = 0;
    let mut is_begun = false;
    loop {
        let event = reader.read_event();
        let event = event.map_err(|error| {
            let at = reader.error_position();
            damaged(&format!("{error} at offset {at}"))
        })?;
        let element = match &event {
            Event::Start(element) => {
                depth += 1;
                element
            }
            Event::Empty(element) => element,
            Event::End(_) => {
                depth -= 1;
                continue;
            }
            Event::Eof if is_begun && depth == 0 => break,
            Event::Eof => return Err(damaged("it is cut off")),
            _ => continue,
        };
        if depth > DEEPEST || files.len() + references.len() > MOST {
            return Err(damaged("it has more in it than a descriptor has"));
        }
        let name = element.local_name();
        if !is_begun && name.as_ref() != "Envelope" {
            return Err(damaged("it is not an OVF descriptor"));
        }
        is_begun = true;
        match name.as_ref() {
            "File" => {
                if let (Some(id), Some(name)) =
                    (attribute(element, "id")?, attribute(element, "href")?)
                {
                    let compression = attribute(element, "compression")?;
                    let compression = compression.filter(|it| !it.is_empty() && it != "identity");
                    files.push((id, DiskFile { name, compression }));
                }
            }
            // One without a file is empty.
            "Disk" => references.extend(attribute(element, "fileRef")?),
            _ => {}
        }
    }
    let mut disks: Vec<DiskFile> = Vec::new();
    for reference in references {
        let file = files.iter().find(|(id, _)| *id == reference);
        let Some((_, file)) = file else {
            return Err(damaged("a disk has a file that there is not"));
        };
        if !disks.contains(file) {
            disks.push(file.clone());
        }
    }
    Ok(disks)
}

/// The attribute `name`, whatever its namespace.
fn attribute(element: &BytesStart<'_>, name: &str) -> Result<Option<String>> {
    for attribute in element.attributes() {
        let attribute = attribute.map_err(|error| damaged(&error.to_string()))?;
        if attribute.key.local_name().as_ref() != name {
            continue;
        }
        let value = quick_xml::escape::unescape(&attribute.value);
        let value = value.map_err(|error| damaged(&error.to_string()))?;
        return Ok(Some(value.into_owned()));
    }
    Ok(None)
}

fn damaged(what: &str) -> Error {
    // It may have words of the descriptor in it.
    let what = printable(OsStr::new(what));
    let message = format!("the descriptor of the virtual machine is damaged: {what}");
    Error::with_message(ErrorKind::Corrupt, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &[u8]) -> Vec<u8> {
        let mut header = vec![0; 512];
        header[..name.len()].copy_from_slice(name);
        header[257..263].copy_from_slice(b"ustar\0");
        header
    }

    #[test]
    fn an_archive_that_begins_with_a_descriptor_is_one() {
        assert_eq!(descriptor_name(&header(b"box.ovf")), Some(&b"box.ovf"[..]));
        assert!(begins(&header(b"BOX.OVF")));
        for other in [
            header(b"box.vmdk"),
            header(b"ovf"),
            vec![0; 512],
            header(b"box.ovf")[..300].to_vec(),
            header(b"box.ovf")[..200].to_vec(),
            Vec::new(),
        ] {
            assert_eq!(begins(&other), other.len() == 300);
        }
    }

    fn names(descriptor: &str) -> Vec<String> {
        let disks = disks(descriptor.as_bytes()).expect("a descriptor");
        disks.into_iter().map(|disk| disk.name).collect()
    }

    const DESCRIPTOR: &str = r#"<?xml version="1.0"?>
<!-- made by hand -->
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
  <References>
    <File ovf:id="other" ovf:href="notes.txt"/>
    <File ovf:href="b &amp; c.vmdk" ovf:id="two" ovf:size="5"></File>
    <ovf:File ovf:id="one" ovf:href="a.vmdk.gz" ovf:compression="gzip"/>
  </References>
  <DiskSection><Info>Disks</Info>
    <Disk ovf:capacity="1" ovf:diskId="empty"/>
    <Disk ovf:capacity="1" ovf:diskId="d1" ovf:fileRef="one"/>
    <Disk ovf:capacity="1" ovf:diskId="d2" ovf:fileRef="two"/>
    <Disk ovf:capacity="1" ovf:diskId="d3" ovf:fileRef="two"/>
  </DiskSection>
</Envelope>"#;

    #[test]
    fn disks_come_in_the_order_of_the_disk_section() {
        assert_eq!(names(DESCRIPTOR), ["a.vmdk.gz", "b & c.vmdk"]);
        let disks = disks(DESCRIPTOR.as_bytes()).expect("disks");
        assert_eq!(disks[0].compression.as_deref(), Some("gzip"));
        assert_eq!(disks[1].compression, None);
        assert_eq!(names("<Envelope/>"), Vec::<String>::new());
    }

    #[test]
    fn what_is_no_descriptor_is_refused() {
        let deep = format!("<Envelope>{}", "<a>".repeat(100));
        let many = format!(
            "<Envelope>{}</Envelope>",
            "<Disk fileRef='x'/>".repeat(MOST + 2)
        );
        let entity =
            "<!DOCTYPE x [<!ENTITY a 'aaaa'>]><Envelope><File id='1' href='&a;'/></Envelope>";
        for (descriptor, message) in [
            ("", "it is cut off"),
            ("words", "it is cut off"),
            ("<html/>", "it is not an OVF descriptor"),
            ("<Envelope><References>", "it is cut off"),
            ("<Envelope></Other>", "Other"),
            (&deep, "more in it"),
            (&many, "more in it"),
            (entity, "entity"),
            (
                "<Envelope><Disk fileRef='x'/></Envelope>",
                "a disk has a file that there is not",
            ),
            ("<Envelope><File id='1' id='2'/></Envelope>", "duplicate"),
        ] {
            let error = disks(descriptor.as_bytes()).expect_err(descriptor);
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.to_string().contains(message), "{error}");
        }
        assert!(disks(b"<Envelope a='\xff'/>").is_err());
        let error = disks(b"<Envelope></\x1b[2J>").expect_err("another end");
        assert!(!error.to_string().contains(char::is_control), "{error}");
    }
}
