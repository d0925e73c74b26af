//! Parents of images that were made on Windows: they have several names, none of which need be right here.

use std::sync::Arc;

use blockferry_block::{BlockDevice, ErrorKind, Result};

use crate::{Details, Related, RelatedFile, corrupt::corrupt};

/// A name of Windows as it is here: with slashes, and, where it begins with a drive or a host, the last part alone.
pub(crate) fn mended(name: &[u8]) -> Vec<u8> {
    if !name.contains(&b'\\') && name.get(1) != Some(&b':') {
        return name.to_vec();
    }
    let path: Vec<u8> = name
        .iter()
        .map(|byte| if *byte == b'\\' { b'/' } else { *byte })
        .collect();
    let is_elsewhere = path.get(1) == Some(&b':') || path.starts_with(b"/");
    if is_elsewhere {
        let last = path.rsplit(|byte| matches!(byte, b'/' | b':')).next();
        return last.unwrap_or_default().to_vec();
    }
    match path.strip_prefix(b"./") {
        Some(rest) => rest.to_vec(),
        None => path,
    }
}

/// The first of `files` that there is and that may be opened. `check` says whether it is the parent, from what it says
/// of itself: no other name is tried then.
///
/// # Errors
/// `Corrupt` for an image that does not name any; those of `check` and of `related`.
pub(crate) async fn open_first(
    related: &dyn Related,
    files: impl Iterator<Item = RelatedFile>,
    check: impl Fn(&RelatedFile, Option<&Details>) -> Result<()>,
) -> Result<Arc<dyn BlockDevice>> {
    let mut failure = None;
    for file in files {
        match related.open(&file, false).await {
            Ok(opened) => {
                check(&file, opened.details.as_ref())?;
                return Ok(opened.device);
            }
            // Whether there is none or it may not be opened: another name may lead there.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotPermitted) => {
                failure.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(failure.unwrap_or_else(|| corrupt("it has a parent and does not name it")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_windows_are_mended() {
        for (name, expected) in [
            (r".\parent.vhd", "parent.vhd"),
            (r"..\base\parent.vhd", "../base/parent.vhd"),
            (r"C:\Disks\parent.vhd", "parent.vhd"),
            (r"C:parent.vhd", "parent.vhd"),
            (r"\\host\share\parent.vhd", "parent.vhd"),
            (r"\\?\d:\disks\parent.vhdx", "parent.vhdx"),
            ("parent.vhd", "parent.vhd"),
            ("/disks/parent.vhd", "/disks/parent.vhd"),
            ("", ""),
        ] {
            assert_eq!(mended(name.as_bytes()), expected.as_bytes(), "{name}");
        }
    }
}
