//! Where the parent of a differencing image is (specification, section 2.6.2.6).

use blockferry_block::Result;

use super::{guid::Guid, header::incompatible};
use crate::{
    RelatedFile, Role,
    corrupt::corrupt,
    le::{le16, le32},
    parent::mended,
};

/// The only kind of locator that there is: of another VHDX image.
const VHDX_LOCATOR: Guid = Guid::new(0xb04a_efb7_d19e_4a81_b789_25b8_e944_5913);

/// The keys that name the file, in the order in which they are tried. Only the first of them means the same on any
/// machine; the others are where it once was on a Windows machine.
const PATHS: [&str; 3] = ["relative_path", "volume_path", "absolute_win32_path"];
/// The keys of what the parent's contents are identified by.
const LINKAGES: [&str; 2] = ["parent_linkage", "parent_linkage2"];

/// The parent, as its child knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parent {
    /// What its contents may be identified by: one of them is right.
    pub(crate) linkages: Vec<Guid>,
    /// Its names, as names of files of this system: each is tried until one can be opened. There is at least one.
    pub(crate) names: Vec<Vec<u8>>,
}

impl Parent {
    /// Reads the locator that `item` is.
    ///
    /// # Errors
    /// `Corrupt`, `Incompatible` for another kind of locator.
    pub(crate) fn parse(item: &[u8]) -> Result<Self> {
        if item.len() < 20 {
            return Err(corrupt("the parent locator is cut short"));
        }
        let kind = Guid::at(item, 0);
        if kind != VHDX_LOCATOR {
            return Err(incompatible(format!(
                "its parent is located by {kind}, which is not supported"
            )));
        }
        let count = usize::from(le16(item, 18));
        let table = item
            .get(20..20 + 12 * count)
            .ok_or_else(|| corrupt("the parent locator is cut short"))?;
        let mut pairs = Vec::with_capacity(count.min(16));
        for entry in table.chunks_exact(12) {
            let key = text(item, le32(entry, 0), le16(entry, 8))?;
            // There may be any number of others, with any contents.
            if PATHS.contains(&&*key) || LINKAGES.contains(&&*key) {
                let value = text(item, le32(entry, 4), le16(entry, 10))?;
                pairs.push((key, value));
            }
        }
        let values = |wanted: &'static str| {
            let found = pairs.iter().filter(move |(key, _)| key == wanted);
            found.map(|(_, value)| &**value)
        };
        let mut linkages = Vec::new();
        for value in LINKAGES.into_iter().flat_map(values) {
            let guid = Guid::parse(value);
            linkages.push(guid.ok_or_else(|| corrupt("its parent is identified by no GUID"))?);
        }
        let mut names = Vec::new();
        for value in PATHS.into_iter().flat_map(values) {
            let name = mended(value.as_bytes());
            if !name.is_empty() && !names.contains(&name) {
                names.push(name);
            }
        }
        if linkages.is_empty() {
            return Err(corrupt("it does not say what identifies its parent"));
        }
        if names.is_empty() {
            return Err(corrupt("it has a parent and does not name it"));
        }
        Ok(Self { linkages, names })
    }

    /// The files that it may be, the likeliest first.
    pub(crate) fn files(&self) -> impl Iterator<Item = RelatedFile> + '_ {
        self.names.iter().map(|name| RelatedFile {
            role: Role::Backing,
            name: name.clone(),
            format: Some("vhdx".to_owned()),
        })
    }
}

/// The text of `length` bytes at `offset` of the item, which is UTF-16.
fn text(item: &[u8], offset: u32, length: u16) -> Result<String> {
    let bytes = usize::try_from(offset)
        .ok()
        .and_then(|offset| item.get(offset..)?.get(..length.into()))
        .ok_or_else(|| corrupt("a text of the parent locator lies outside of it"))?;
    let units = bytes.chunks_exact(2).map(|unit| le16(unit, 0));
    let text: Result<String, _> = char::decode_utf16(units).collect();
    match text {
        Ok(text) if bytes.len().is_multiple_of(2) => Ok(text),
        _ => Err(corrupt("a text of the parent locator is not UTF-16")),
    }
}
