//! The header that gets another directory of bitmaps (specification, "Header extensions", "Bitmaps extension").
//!
//! Whatever a crash leaves of the sectors of 512 bytes, the header is sound and has the old bitmaps or the new ones:
//!
//! - Where the header has bitmaps, the words of their extension change in one sector. Where it lies across two, which
//!   takes long names of other files, the image says meanwhile that its bitmaps cannot be believed.
//! - Where it has none they come behind the other extensions: first all that lies behind the mark of the end, then what
//!   stands in its place. A backing file's name that is in the way moves before. The autoclear bit is last.
//! - Where the last one goes the autoclear bit is first.

use blockferry_block::{Buffer, ByteRange, Error, ErrorKind, Result};

use crate::qcow2::{
    header::{
        Autoclear, BITMAPS, BitmapsExtension, FEATURE_NAMES, Header, be32, be64, walk_extensions,
    },
    host::HostFile,
};

/// Where the place of the backing file's name stands in the header.
const NAME_IN_HEADER: usize = 8;
/// Where the autoclear features stand in the header.
const AUTOCLEAR_IN_HEADER: usize = 88;
/// What a disk writes as a whole, in bytes.
const SECTOR: usize = 512;
/// The length of the extension with its kind and length, and of the mark behind the last one.
const EXTENSION: usize = 32;
const END: usize = 8;

/// How a header comes to have other bitmaps.
pub(super) enum Plan {
    Remove,
    /// The extension there gets this body.
    Replace(usize, [u8; 24]),
    /// The same of one that nobody believes.
    Believe(usize, [u8; 24]),
    Append {
        at: usize,
        body: [u8; 24],
        /// Where a name goes that is in the way.
        name: Option<u64>,
    },
    /// All of the header, in one sector.
    Rewrite(Vec<u8>),
}

/// The header of an image, and how it lies in its cluster.
pub(super) struct Switch<'a> {
    file: &'a HostFile,
    header: &'a Header,
    bytes: Vec<u8>,
    /// Where the extension begins.
    bitmaps: Option<usize>,
    /// Something else than names of features comes behind it.
    is_followed: bool,
    /// Where the mark of the end is; nowhere where the list ends without one.
    end: Option<usize>,
    name: ByteRange,
}

impl<'a> Switch<'a> {
    /// Reads the cluster of `header`, which is of version 3. Nothing is changed yet.
    ///
    /// # Errors
    /// `Corrupt`, what reading failed with.
    pub(super) async fn read(file: &'a HostFile, header: &'a Header) -> Result<Self> {
        let buffer = Buffer::zeroed(header.geometry.cluster_size() as usize);
        let name = || "the header".to_owned();
        let bytes = file.read_padded(0, buffer, name).await?.to_vec();
        let (mut bitmaps, mut is_followed) = (None, false);
        let end = walk_extensions(&bytes, header.length as usize, |at, kind, _| {
            match kind {
                BITMAPS => (bitmaps, is_followed) = (Some(at), false),
                FEATURE_NAMES => {}
                _ => is_followed = true,
            }
            Ok(())
        })?;
        let is_marked = bytes.get(end..end + END).is_some() && be32(&bytes, end) == 0;
        let name = match &header.backing {
            Some(name) => {
                let start = be64(&bytes, NAME_IN_HEADER);
                ByteRange::between(start, start + name.len() as u64)
            }
            None => ByteRange::default(),
        };
        let is_marked = is_marked && name.intersection(range_of(end, END)).is_empty();
        Ok(Self {
            file,
            header,
            bitmaps,
            is_followed,
            end: is_marked.then_some(end),
            name,
            bytes,
        })
    }

    /// What nobody here knows does not hold any more, once the image is written (specification, "Header",
    /// `autoclear_features`).
    ///
    /// # Errors
    /// What writing failed with.
    pub(super) async fn begin(&self) -> Result<()> {
        let known = self.header.autoclear.bits();
        if be64(&self.bytes, AUTOCLEAR_IN_HEADER) == known {
            return Ok(());
        }
        self.patch(AUTOCLEAR_IN_HEADER, &known.to_be_bytes()).await
    }

    /// How the header comes to have the directory `to`, or none. Nothing is changed.
    ///
    /// # Errors
    /// `NoSpace` where the header has no room for it.
    pub(super) fn plan(&self, to: Option<BitmapsExtension>) -> Result<Plan> {
        let has_bitmaps = self.header.autoclear.contains(Autoclear::BITMAPS);
        match (to, self.bitmaps) {
            (None, _) => Ok(Plan::Remove),
            (Some(to), Some(at)) if has_bitmaps => Ok(Plan::Replace(at + 8, to.encode())),
            (Some(to), Some(at)) => Ok(Plan::Believe(at + 8, to.encode())),
            (Some(to), None) => self.plan_append(to),
        }
    }

    fn plan_append(&self, to: BitmapsExtension) -> Result<Plan> {
        let room = self.end.map(|end| range_of(end, EXTENSION + END));
        let cluster = self.bytes.len() as u64;
        if let Some(room) = room.filter(|room| room.end() <= cluster) {
            let place = self.name.end().max(room.end()).next_multiple_of(8);
            let is_in_the_way = !self.name.intersection(room).is_empty();
            if !is_in_the_way || place + self.name.len() <= cluster {
                return Ok(Plan::Append {
                    at: room.start() as usize,
                    body: to.encode(),
                    name: is_in_the_way.then_some(place),
                });
            }
        }
        // In an order that has room, where one sector holds all of it.
        let mut header = self.header.clone();
        header.bitmaps = Some(to);
        header.autoclear |= Autoclear::BITMAPS;
        let encoded = header.encode_within(SECTOR as u64).ok();
        let Some(mut bytes) = encoded.filter(|bytes| bytes.len() <= SECTOR) else {
            let message = "there is no room for bitmaps in the header of the image";
            return Err(Error::with_message(ErrorKind::NoSpace, message));
        };
        // Features that are not known here may be ignored, and stay.
        bytes[80..88].copy_from_slice(&self.bytes[80..88]);
        Ok(Plan::Rewrite(bytes))
    }

    /// Carries out a plan for this header, durably. Everything that the directory names is durable.
    ///
    /// # Errors
    /// What writing failed with: nobody knows then which directory the header has.
    pub(super) async fn carry_out(&self, plan: &Plan) -> Result<()> {
        match plan {
            Plan::Remove => {
                self.believe(false).await?;
                self.remove().await
            }
            Plan::Replace(at, body) => self.replace(*at, body).await,
            Plan::Believe(at, body) => {
                self.patch(*at, body).await?;
                self.believe(true).await
            }
            Plan::Append { at, body, name } => self.append(*at, body, *name).await,
            Plan::Rewrite(bytes) => self.patch(0, bytes).await,
        }
    }

    /// Changes the body of the extension, which begins at `at`.
    async fn replace(&self, at: usize, body: &[u8]) -> Result<()> {
        let differs = |index: &usize| self.bytes[at + index] != body[*index];
        let first = (0..body.len()).find(differs).unwrap_or(0);
        let last = (0..body.len()).rfind(differs).unwrap_or(0);
        if is_in_one_sector(at + first, last + 1 - first) {
            return self.patch(at + first, &body[first..=last]).await;
        }
        self.believe(false).await?;
        self.patch(at, body).await?;
        self.believe(true).await
    }

    /// Adds the extension to a header that has none, where the mark of the end is.
    async fn append(&self, at: usize, body: &[u8], name: Option<u64>) -> Result<()> {
        if let Some(place) = name {
            let name = &self.bytes[self.name.start() as usize..self.name.end() as usize];
            self.patch(place as usize, name).await?;
            self.patch(NAME_IN_HEADER, &place.to_be_bytes()).await?;
        }
        let mut kind = BITMAPS.to_be_bytes().to_vec();
        kind.extend((body.len() as u32).to_be_bytes());
        self.patch(at + 8, &[body, &[0; END]].concat()).await?;
        self.patch(at, &kind).await?;
        self.believe(true).await
    }

    /// Takes the extension out of a header that does not have its bitmaps any more.
    async fn remove(&self) -> Result<()> {
        let (Some(at), Some(end)) = (self.bitmaps, self.end) else {
            return Ok(());
        };
        let rest = &self.bytes[at + EXTENSION..end + END];
        if rest.len() == END || is_in_one_sector(at, rest.len()) {
            return self.patch(at, rest).await;
        }
        if self.is_followed {
            // It stays, without anyone who believes it.
            return Ok(());
        }
        // Names of features are for messages: a crash may lose them.
        self.patch(at, &[0; END]).await?;
        self.patch(at + END, &rest[END..]).await?;
        self.patch(at, &rest[..END]).await
    }

    /// Whether the header's bitmaps say all that was written.
    async fn believe(&self, is_so: bool) -> Result<()> {
        let mut autoclear = self.header.autoclear;
        autoclear.set(Autoclear::BITMAPS, is_so);
        let word = autoclear.bits().to_be_bytes();
        self.patch(AUTOCLEAR_IN_HEADER, &word).await
    }

    /// Writes bytes of the header, durably.
    async fn patch(&self, at: usize, bytes: &[u8]) -> Result<()> {
        self.file.patch(at as u64, bytes).await?;
        self.file.device().flush().await
    }
}

fn range_of(at: usize, length: usize) -> ByteRange {
    ByteRange::between(at as u64, (at + length) as u64)
}

fn is_in_one_sector(at: usize, length: usize) -> bool {
    at / SECTOR == (at + length.max(1) - 1) / SECTOR
}
