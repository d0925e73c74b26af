//! From header to header through an archive.

use blockferry_block::{BlockDevice, ByteRange, Result};

use super::header::{BLOCK, Header, Kind, Pax, TarFlaw, text};
use crate::window::Window;

/// The longest extended header or name that is taken into memory, in bytes.
const MOST_EXTENDED: u64 = 1 << 20;

/// How much of such is read in all, in bytes.
const MOST_EXTENDED_IN_ALL: u64 = 64 << 20;

/// A member of an archive.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// As it is written.
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    /// Where its contents lie; it may be beyond the end of the archive.
    pub(super) range: ByteRange,
}

/// How a walk goes on.
#[derive(Debug)]
pub(super) enum Step {
    Member(Member),
    /// There are no more members.
    End,
    /// As many headers were read as may be.
    Limit,
    /// It makes no sense here.
    Damaged {
        at: u64,
        flaw: TarFlaw,
    },
}

/// A walk through an archive.
pub(super) struct Walk<'a> {
    window: Window<'a>,
    /// Where the next header lies.
    at: u64,
    /// How many may still be read.
    headers: u64,
    /// How many bytes of extended headers and names were read.
    extended: u64,
}

impl<'a> Walk<'a> {
    /// From the start, past `headers` headers at most.
    pub(super) fn new(device: &'a dyn BlockDevice, headers: u64) -> Self {
        Self {
            window: Window::new(device),
            at: 0,
            headers,
            extended: 0,
        }
    }

    /// Where the next header would lie.
    pub(super) fn position(&self) -> u64 {
        self.at
    }

    /// The next member.
    ///
    /// # Errors
    /// What reading fails with.
    pub(super) async fn step(&mut self) -> Result<Step> {
        let mut pax = Pax::default();
        let mut long_name = None;
        loop {
            let at = self.at;
            let damaged = |flaw| Ok(Step::Damaged { at, flaw });
            let Some(block) = self.block().await? else {
                return Ok(Step::End);
            };
            if self.headers == 0 {
                return Ok(Step::Limit);
            }
            self.headers -= 1;
            let header = match Header::parse(&block) {
                Ok(Some(header)) => header,
                Ok(None) => return Ok(Step::End),
                Err(flaw) => return damaged(flaw),
            };
            let mut is_continued = header.is_continued;
            while is_continued {
                let Some(block) = self.block().await? else {
                    return Ok(Step::End);
                };
                if self.headers == 0 {
                    return Ok(Step::Limit);
                }
                self.headers -= 1;
                is_continued = Header::continues(&block);
            }
            let is_member = matches!(header.kind, Kind::File | Kind::Sparse | Kind::Other);
            let size = match pax.size {
                Some(size) if is_member && header.kind != Kind::Other => size,
                _ => header.size,
            };
            let range = ByteRange::new(self.at, size).ok();
            let next = range.and_then(|range| range.end().checked_next_multiple_of(BLOCK as u64));
            let Some((range, next)) = range.zip(next) else {
                return damaged(TarFlaw::Place);
            };
            self.at = next;
            match header.kind {
                Kind::File | Kind::Sparse | Kind::Other => {
                    let kind = match header.kind {
                        Kind::File if pax.is_sparse => Kind::Sparse,
                        kind => kind,
                    };
                    let name = pax.name.or(long_name).unwrap_or(header.name);
                    return Ok(Step::Member(Member { name, kind, range }));
                }
                Kind::Aside => {}
                Kind::Pax | Kind::LongName => {
                    self.extended = self.extended.saturating_add(size);
                    if size > MOST_EXTENDED || self.extended > MOST_EXTENDED_IN_ALL {
                        return damaged(TarFlaw::TooLong);
                    }
                    if range.end() > self.window.size() {
                        return Ok(Step::End);
                    }
                    let bytes = self.window.bytes(range).await?;
                    if header.kind == Kind::LongName {
                        long_name = Some(text(bytes).to_vec());
                        continue;
                    }
                    match Pax::parse(bytes) {
                        Ok(records) => pax = records,
                        Err(flaw) => return damaged(flaw),
                    }
                }
            }
        }
    }

    /// The next block, unless there is none.
    async fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let Ok(range) = ByteRange::new(self.at, BLOCK as u64) else {
            return Ok(None);
        };
        if range.end() > self.window.size() {
            return Ok(None);
        }
        let block = self.window.bytes(range).await?.first_chunk().copied();
        self.at = range.end();
        Ok(block)
    }
}
