//! What an overlay has, written into an image behind it.
//!
//! Each image between the two is copied into the base by itself, the lowest one first: what it has of its own and nothing
//! else, so that nobody reads the base while it changes. All of that is durable before the overlay gives up what it has;
//! until then the chain shows the same at any moment.

mod owned;

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    block::{Access, BlockDevice, Capabilities, Error, ErrorKind, NullDevice, Result, SliceDevice},
    copy::{
        Control, CopyError, CopyOptions, Destination, Event, Interest, Observer, Side, Source, copy,
    },
    format::{
        Format, Image, RelatedFile,
        qcow2::{self, ResizeOptions},
    },
};

use super::{
    Endpoint, FormatKind, Layer, OpenDevice, OpenOptions,
    formats::{first_layer, growable, interpret},
    guess::{probed, told},
    identity::identities,
    in_use::claim_below,
    open::{open_device, opening},
    printable,
    related::{Relatives, identity_of},
};
use owned::Owned;

/// How an overlay is committed.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Commit {
    /// The image of the chain that gets what all before it have, by its name in the chain or its path; `None`: the
    /// overlay's own backing file.
    pub base: Option<OsString>,
    /// The overlay keeps what it has.
    pub keep: bool,
}

/// Writes what the overlay that `endpoint` is has into its backing file, or into another image of its chain, durably, and
/// then empties it, where that is wanted. The base grows where its disk is smaller than the overlay's. `control` ends it:
/// the overlay is what it was then, and what was written of the base is what the overlay has.
///
/// # Errors
/// `InvalidInput` where nothing is behind the image, or not that; `Unsupported` for chains with images in formats that
/// are not written; as those of opening the chain, and the base for writing; what reading and writing failed with;
/// `Cancelled`.
pub async fn commit_image(
    endpoint: &Endpoint,
    commit: &Commit,
    options: &OpenOptions,
    control: &Control,
    observer: &dyn Observer,
) -> Result<()> {
    let bytes = endpoint.clone().interpreted(FormatKind::Raw);
    let OpenDevice { device, connection } = open_device(&bytes, Access::ReadWrite, options).await?;
    let overlay = Overlay {
        endpoint,
        device,
        options,
        control,
    };
    let committed = overlay.commit(commit, observer).await;
    let committed = committed.map_err(|error| match error.endpoint() {
        Some(_) => error,
        None => error.on(endpoint.name()),
    });
    drop(overlay);
    let closed = connection.close().await;
    committed.and(closed)
}

/// An overlay that is committed, and how.
struct Overlay<'a> {
    endpoint: &'a Endpoint,
    device: Arc<dyn BlockDevice>,
    options: &'a OpenOptions,
    control: &'a Control,
}

/// What gets it.
struct Base {
    endpoint: Endpoint,
    /// What the chain has open, which must be the very file.
    layer: Layer,
    /// The size of its disk in bytes.
    size: u64,
}

impl Overlay<'_> {
    async fn commit(&self, commit: &Commit, observer: &dyn Observer) -> Result<()> {
        let kind = told(self.endpoint, self.options, &*self.device).await?;
        if kind == FormatKind::Raw {
            return Err(nothing_behind());
        }
        check_written(kind)?;
        claim_below(&*self.device).map_err(opening(self.endpoint))?;
        let below = growable(self.endpoint, &self.device)?;
        let layers = self.chain().await?;
        let number = match (&commit.base, layers.len()) {
            (_, 1) => return Err(nothing_behind()),
            (None, _) => 1,
            (Some(name), _) => self.find(&layers, name)?,
        };
        let (above, behind) = layers.split_at(number);
        let (Some(top), Some(last), Some(layer)) = (above.first(), above.last(), behind.first())
        else {
            return Err(nothing_behind());
        };
        for layer in above {
            check_written(kind_of(layer))?;
        }
        if details_of(top).is_some_and(|it| it.is_corrupt) {
            let message = "the image is marked as corrupt and can only be read";
            return Err(Error::with_message(ErrorKind::ReadOnly, message));
        }
        check_written(match kind_of(layer) {
            FormatKind::Raw => FormatKind::Image(Format::Qcow2),
            kind => kind,
        })?;
        let said = backing_of(last).and_then(|file| file.format);
        let kind = match said {
            Some(_) => kind_of(layer),
            None => {
                check_guess(top, layer).await?;
                FormatKind::ProbeImage
            }
        };
        let base = Base {
            endpoint: Endpoint::from(layer.path.clone()).interpreted(kind),
            layer: layer.clone(),
            size: size_of(layer),
        };
        let size = size_of(top);
        self.check()?;
        if base.size < size {
            self.grow(&base, size).await?;
        }
        let opened = self.open(&base).await?;
        let stages = Stages::new(observer, size.saturating_mul(above.len() as u64));
        let copied = self.copy_all(above, size, &opened.device, &stages).await;
        drop(opened.device);
        // What was written is what the overlay has, also where it is not all of it.
        let closed = opened.connection.close().await;
        copied?;
        closed?;
        self.check()?;
        if commit.keep || commit.base.is_some() {
            return Ok(());
        }
        let relatives = Relatives::of(self.endpoint, &self.device, self.options);
        qcow2::empty(below, &relatives).await
    }

    /// The overlay and all behind it, open.
    async fn chain(&self) -> Result<Vec<Layer>> {
        let relatives = Relatives::of(self.endpoint, &self.device, self.options);
        let opening = relatives.options();
        let below = Arc::clone(&self.device);
        let image = Format::Qcow2.open(below, &relatives, &opening).await?;
        let first = first_layer(self.endpoint, &self.device, &image);
        let (_, layers) = relatives.into_opened(first);
        Ok(layers.chain().cloned().collect())
    }

    /// Which image of the chain `name` means.
    fn find(&self, layers: &[Layer], name: &OsStr) -> Result<usize> {
        let files = identities(&Endpoint::from(PathBuf::from(name)), &std::io::stdin());
        let is_it = |pair: &[Layer]| {
            let [before, layer] = pair else { return false };
            let named = backing_of(before).is_some_and(|file| file.name == name.as_bytes());
            named || identity_of(&*layer.bytes).is_some_and(|it| files.contains(&it))
        };
        let found = layers.windows(2).position(is_it);
        found.map(|number| number + 1).ok_or_else(|| {
            let (name, image) = (printable(name), self.endpoint);
            let message = format!("Did not find '{name}' in the backing chain of '{image}'");
            Error::with_message(ErrorKind::InvalidInput, message)
        })
    }

    fn check(&self) -> Result<()> {
        match self.control.is_cancelled() {
            true => Err(Error::new(ErrorKind::Cancelled)),
            false => Ok(()),
        }
    }

    /// The bytes of the base, to be written by nobody else.
    async fn open_bytes(&self, base: &Base) -> Result<OpenDevice> {
        let bytes = base.endpoint.clone().interpreted(FormatKind::Raw);
        let opened = open_device(&bytes, Access::ReadWrite, self.options).await?;
        let is_same = identity_of(&*opened.device) == identity_of(&*base.layer.bytes);
        let checked = match is_same {
            true => claim_below(&*opened.device),
            false => {
                let message = "it is another file than the one that the chain was opened with";
                Err(Error::with_message(ErrorKind::NotPermitted, message))
            }
        };
        match checked {
            Ok(()) => Ok(opened),
            Err(error) => {
                opened.connection.abandon().await;
                Err(opening(&base.endpoint)(error))
            }
        }
    }

    /// The disk of the base, to be written.
    async fn open(&self, base: &Base) -> Result<OpenDevice> {
        let opened = self.open_bytes(base).await?;
        interpret(&base.endpoint, Access::ReadWrite, self.options, opened).await
    }

    /// Gives the disk of the base `size` bytes.
    async fn grow(&self, base: &Base, size: u64) -> Result<()> {
        let OpenDevice { device, connection } = self.open_bytes(base).await?;
        let grown = async {
            let below = growable(&base.endpoint, &device)?;
            if !below.info().can(Capabilities::RESIZE) {
                let message = format!(
                    "it has {} bytes and cannot grow to the {size} of the image",
                    base.size
                );
                return Err(Error::with_message(ErrorKind::NoSpace, message));
            }
            if kind_of(&base.layer) == FormatKind::Raw {
                below.resize(size).await?;
                return below.flush().await;
            }
            let relatives = Relatives::of(&base.endpoint, &device, self.options);
            qcow2::resize(below, &relatives, size, &ResizeOptions::default()).await
        };
        let grown = grown.await.map_err(|error| error.on(base.endpoint.name()));
        drop(device);
        let closed = connection.close().await;
        grown.and(closed)
    }

    /// Copies what each of `layers` has into `base`, whose disk has `size` bytes at least, as far as the first one goes.
    async fn copy_all(
        &self,
        layers: &[Layer],
        size: u64,
        base: &Arc<dyn BlockDevice>,
        stages: &Stages<'_>,
    ) -> Result<()> {
        for layer in layers.iter().rev() {
            let own = self.own(layer).await?;
            let there = own.info().size.min(size);
            if there < size {
                // Behind its end it shows zeroes, whatever is behind it.
                let behind = SliceDevice::new(Arc::clone(base), there, Some(size - there))?;
                let nothing: Arc<dyn BlockDevice> = Arc::new(NullDevice::new(size - there));
                self.copy(nothing, Arc::new(behind), stages).await?;
            }
            let shown: Arc<dyn BlockDevice> = own.clone();
            let shown: Arc<dyn BlockDevice> = match own.info().size > size {
                true => Arc::new(SliceDevice::new(shown, 0, Some(size))?),
                false => shown,
            };
            let only = Owned::new(Arc::clone(base), own);
            self.copy(shown, Arc::new(only), stages).await?;
        }
        Ok(())
    }

    /// What an image of the chain has of its own.
    async fn own(&self, layer: &Layer) -> Result<Arc<dyn Image>> {
        let endpoint = Endpoint::from(layer.path.clone());
        let relatives = Relatives::of(&endpoint, &layer.bytes, self.options);
        let mut opening = relatives.options();
        opening.without_backing = true;
        Format::Qcow2
            .open(Arc::clone(&layer.bytes), &relatives, &opening)
            .await
    }

    async fn copy(
        &self,
        from: Arc<dyn BlockDevice>,
        to: Arc<dyn BlockDevice>,
        stages: &Stages<'_>,
    ) -> Result<()> {
        let (from, to) = (Source::Device(from), Destination::Device(to));
        let done = copy(from, to, &CopyOptions::default(), self.control, stages).await;
        match done {
            Ok(report) => {
                stages.pass(report.size);
                Ok(())
            }
            Err(CopyError {
                side: Side::Cancelled,
                ..
            }) => Err(Error::new(ErrorKind::Cancelled)),
            Err(failed) => Err(failed.error),
        }
    }
}

/// The copies of one commit as one.
struct Stages<'a> {
    observer: &'a dyn Observer,
    /// So many bytes were done by those before.
    before: AtomicU64,
}

impl<'a> Stages<'a> {
    fn new(observer: &'a dyn Observer, size: u64) -> Self {
        observer.event(Event::Planned { size: Some(size) });
        Self {
            observer,
            before: AtomicU64::new(0),
        }
    }

    fn pass(&self, bytes: u64) {
        self.before.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Observer for Stages<'_> {
    fn event(&self, event: Event) {
        self.observer.event(match event {
            Event::Planned { .. } => return,
            Event::Progress(mut progress) => {
                progress.done += self.before.load(Ordering::Relaxed);
                Event::Progress(progress)
            }
            other => other,
        });
    }

    fn interest(&self) -> Interest {
        self.observer.interest()
    }
}

fn nothing_behind() -> Error {
    Error::with_message(
        ErrorKind::InvalidInput,
        "Image does not have a backing file",
    )
}

/// Refuses what is no qcow2 image.
fn check_written(kind: FormatKind) -> Result<()> {
    match kind {
        FormatKind::Image(Format::Qcow2) => Ok(()),
        kind => {
            let message = format!("images in the format {kind} are not committed");
            Err(Error::with_message(ErrorKind::Unsupported, message))
        }
    }
}

fn kind_of(layer: &Layer) -> FormatKind {
    let image = layer.image.as_ref();
    image.map_or(FormatKind::Raw, |it| {
        FormatKind::Image(it.details().format())
    })
}

fn size_of(layer: &Layer) -> u64 {
    let image = layer.image.as_ref();
    image.map_or(layer.bytes.info().size, |image| image.info().size)
}

/// Nobody has said what the base is. One that is taken for raw must not begin as an image afterwards: a guest chooses how
/// its disk begins.
async fn check_guess(top: &Layer, base: &Layer) -> Result<()> {
    let (FormatKind::Raw, Some(disk)) = (kind_of(base), &top.image) else {
        return Ok(());
    };
    match probed(&**disk).await {
        Ok(FormatKind::Raw) => Ok(()),
        _ => {
            let message = "nothing says that its backing file is raw, and with this disk in it that would be taken for an image: rebase -u -F raw says it";
            Err(Error::with_message(ErrorKind::NotPermitted, message))
        }
    }
}

fn details_of(layer: &Layer) -> Option<qcow2::Details> {
    layer.image.as_ref()?.details().as_qcow2().cloned()
}

/// What a layer says of what is behind it.
fn backing_of(layer: &Layer) -> Option<RelatedFile> {
    details_of(layer)?.backing
}
