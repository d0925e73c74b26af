//! Where the bytes of an image lie: through its whole chain, as `qemu-img map` tells it.
//!
//! Each image of the chain is asked for what it has itself. What it has nothing of shows the one behind it.

use std::{path::PathBuf, sync::Arc};

use crate::{
    block::{BlockDevice, ByteRange, Context, Error, ErrorKind, Extent, Operation, Result},
    endpoint::{Endpoint, EndpointKind, Layer, Layers, OpenDevice},
    format::{Contents, Format, Image, PlaceFile, Placed, Role},
};

/// A part of an image's disk, and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// The part of the disk.
    pub range: ByteRange,
    /// Which image of the chain it is in, from 0 on.
    pub depth: usize,
    /// Whether an image says anything of it.
    pub present: bool,
    /// It reads as zeroes.
    pub zero: bool,
    /// It has space in a file.
    pub data: bool,
    /// It is compressed there.
    pub compressed: bool,
    /// Where its first byte lies: the offset in the file.
    pub offset: Option<u64>,
    /// That file.
    pub file: Option<Arc<PathBuf>>,
}

/// How much is to be found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// All that is known.
    Whole,
    /// What qemu-img tells: all of a VHDX image is data to it.
    Qemu,
}

/// The chain of an image, while it is mapped.
pub struct Places {
    links: Vec<Link>,
    size: u64,
}

/// One image of a chain, or bytes.
struct Link {
    source: Source,
    size: u64,
    files: Files,
    view: View,
    /// What it said last.
    answer: Vec<Part>,
    /// How many of those are passed.
    passed: usize,
}

enum Source {
    Image(Arc<dyn Image>),
    /// Bytes, which begin in a file at this offset.
    Bytes(Arc<dyn BlockDevice>, u64),
}

/// The files that an image is made of.
struct Files {
    own: Arc<PathBuf>,
    data: Option<Arc<PathBuf>>,
    extents: Vec<Arc<PathBuf>>,
}

/// What a link has of a part of the disk.
#[derive(Clone)]
struct Part {
    entry: MapEntry,
    /// What is behind it shows.
    is_absent: bool,
}

impl Places {
    /// Of what was opened at `endpoint`.
    pub fn of(endpoint: &Endpoint, opened: &OpenDevice, view: View) -> Self {
        let layers = opened.connection.layers();
        let mut links: Vec<_> = layers
            .chain()
            .map(|layer| Link::of_layer(layer, layers, view))
            .collect();
        if links.is_empty() {
            links.push(Link::of_bytes(endpoint, &opened.device, view));
        }
        let size = opened.device.info().size;
        Self { links, size }
    }

    /// Where the first image says that it lies; for an image that is no file its name.
    pub fn rename_first(&mut self, name: PathBuf) {
        self.links[0].files.own = Arc::new(name);
    }

    /// The size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The beginning of `range`, which is not empty and lies on the disk: as much of it as is known at once.
    ///
    /// # Errors
    /// What asking failed with.
    pub async fn first(&mut self, range: ByteRange) -> Result<MapEntry> {
        let mut range = range;
        let count = self.links.len();
        for depth in 0..count {
            let behind = self.links.get(depth + 1).map(|link| link.size);
            let part = self.links[depth].first(range).await?;
            range = part.entry.range;
            let mut entry = MapEntry {
                depth,
                ..part.entry
            };
            if !part.is_absent {
                return Ok(entry);
            }
            entry.zero = true;
            match behind {
                Some(size) if range.start() < size => {
                    range = range.intersection(ByteRange::between(0, size));
                }
                _ => return Ok(entry),
            }
        }
        Err(Error::new(ErrorKind::InvalidInput))
    }

    /// The largest part of `range` from its start on that is all the same and lies in a row, and everything behind it,
    /// told to `each` one after the other until that has an error of its own, which is the inner one.
    ///
    /// # Errors
    /// What asking failed with.
    pub async fn each<E>(
        &mut self,
        range: ByteRange,
        mut each: impl FnMut(MapEntry) -> Result<(), E>,
    ) -> Result<Result<(), E>> {
        let mut rest = range.intersection(ByteRange::between(0, self.size));
        while !rest.is_empty() {
            let run = self.run(rest).await?;
            rest = rest.split_at(run.range.len()).1;
            if let Err(error) = each(run) {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }

    /// The largest part of `range` from its start on that is all the same and lies in a row. `range` is not empty and lies
    /// on the disk.
    ///
    /// # Errors
    /// What asking failed with.
    pub async fn run(&mut self, range: ByteRange) -> Result<MapEntry> {
        let mut run = self.first(range).await?;
        loop {
            let (_, rest) = range.split_at(run.range.len());
            if rest.is_empty() {
                return Ok(run);
            }
            let next = self.first(rest).await?;
            if !run.is_continued_by(&next) {
                return Ok(run);
            }
            run.range = ByteRange::between(run.range.start(), next.range.end());
        }
    }
}

impl MapEntry {
    fn is_continued_by(&self, next: &Self) -> bool {
        let kind = |it: &Self| (it.depth, it.present, it.zero, it.data, it.compressed);
        kind(self) == kind(next)
            && self.file == next.file
            && self
                .offset
                .map(|offset| offset.saturating_add(self.range.len()))
                == next.offset
    }

    /// The part of it that lies in `range`, which begins within it.
    fn cut(&self, range: ByteRange) -> Self {
        let own = self.range.intersection(range);
        let passed = own.start().saturating_sub(self.range.start());
        Self {
            range: own,
            offset: self.offset.map(|offset| offset.saturating_add(passed)),
            ..self.clone()
        }
    }
}

impl Link {
    fn of_layer(layer: &Layer, layers: &Layers, view: View) -> Self {
        let path = |layer: &Layer| Arc::new(layer.path.clone());
        let others = |role| layers.others(layer.depth, role).map(path);
        let files = Files {
            own: path(layer),
            data: others(Role::Data).next(),
            extents: others(Role::Extent).collect(),
        };
        match &layer.image {
            Some(image) => {
                let size = image.info().size;
                Self::new(Source::Image(Arc::clone(image)), size, files, view)
            }
            None => {
                let size = layer.bytes.info().size;
                let source = Source::Bytes(Arc::clone(&layer.bytes), 0);
                Self::new(source, size, files, view)
            }
        }
    }

    /// Of bytes, which may be a part of another image's.
    fn of_bytes(endpoint: &Endpoint, device: &Arc<dyn BlockDevice>, view: View) -> Self {
        let mut whole = endpoint;
        let mut shift: u64 = 0;
        while let EndpointKind::Part { of, offset, .. } = whole.kind() {
            shift = shift.saturating_add(*offset);
            whole = of;
        }
        let own = match whole.kind() {
            EndpointKind::File(path) => path.clone(),
            _ => PathBuf::from(&**whole.name()),
        };
        let files = Files {
            own: Arc::new(own),
            data: None,
            extents: Vec::new(),
        };
        let size = device.info().size;
        Self::new(Source::Bytes(Arc::clone(device), shift), size, files, view)
    }

    fn new(source: Source, size: u64, files: Files, view: View) -> Self {
        Self {
            source,
            size,
            files,
            view,
            answer: Vec::new(),
            passed: 0,
        }
    }

    /// What it has of the beginning of `range`.
    async fn first(&mut self, range: ByteRange) -> Result<Part> {
        if let Some(part) = self.known(range) {
            return Ok(part);
        }
        let asked = ByteRange::between(range.start(), self.size.max(range.end()));
        self.answer = self.ask(asked).await?;
        self.passed = 0;
        self.known(range).ok_or_else(|| {
            let message = "the answer has no extents";
            Error::with_message(ErrorKind::Protocol, message)
                .during(Operation::Extents)
                .at(range.start(), range.len())
        })
    }

    /// The same, where its last answer tells it.
    fn known(&mut self, range: ByteRange) -> Option<Part> {
        while let Some(part) = self.answer.get(self.passed) {
            if part.entry.range.end() <= range.start() {
                self.passed += 1;
                continue;
            }
            if part.entry.range.start() > range.start() {
                return None;
            }
            return Some(Part {
                entry: part.entry.cut(range),
                ..*part
            });
        }
        None
    }

    async fn ask(&self, range: ByteRange) -> Result<Vec<Part>> {
        match &self.source {
            Source::Image(image) => {
                let is_opaque = || image.details().format() == Format::Vhdx;
                if self.view == View::Qemu && is_opaque() {
                    let data = Placed {
                        range,
                        contents: Contents::Data,
                        compressed: false,
                        place: None,
                    };
                    return Ok(vec![self.placed(data)]);
                }
                let placed = image.placed(range).await?;
                Ok(placed.into_iter().map(|it| self.placed(it)).collect())
            }
            Source::Bytes(device, shift) => {
                let extents = match device.info().knows_allocation() {
                    true => device.extents(range, &Context::Allocation).await?,
                    false => Vec::new(),
                };
                if extents.is_empty() {
                    let status = crate::block::Status::DATA;
                    return Ok(vec![self.plain(Extent { range, status }, *shift)]);
                }
                let plain = |extent| self.plain(extent, *shift);
                Ok(extents.into_iter().map(plain).collect())
            }
        }
    }

    /// What an image has.
    fn placed(&self, placed: Placed) -> Part {
        let file = placed.place.map(|place| match place.file {
            PlaceFile::Image => Arc::clone(&self.files.own),
            PlaceFile::Data => {
                let data = self.files.data.as_ref();
                Arc::clone(data.unwrap_or(&self.files.own))
            }
            PlaceFile::Extent(number) => {
                let extent = self.files.extents.get(number);
                Arc::clone(extent.unwrap_or(&self.files.own))
            }
        });
        let is_absent = placed.contents == Contents::Absent;
        let entry = MapEntry {
            range: placed.range,
            depth: 0,
            present: !is_absent,
            zero: matches!(placed.contents, Contents::Zero | Contents::Sparse),
            data: matches!(placed.contents, Contents::Data | Contents::Sparse),
            compressed: placed.compressed,
            offset: placed.place.map(|place| place.offset),
            file,
        };
        Part { entry, is_absent }
    }

    /// What bytes are, which begin at `shift` of their file.
    fn plain(&self, extent: Extent, shift: u64) -> Part {
        let (zero, data) = (extent.status.is_zero(), !extent.status.is_hole());
        let entry = MapEntry {
            range: extent.range,
            depth: 0,
            present: zero || data,
            zero,
            data,
            compressed: false,
            offset: Some(extent.range.start().saturating_add(shift)),
            file: Some(Arc::clone(&self.files.own)),
        };
        let is_absent = false;
        Part { entry, is_absent }
    }
}
