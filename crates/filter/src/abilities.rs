//! `readonly`, `noextents`, `nozero`, `notrim`, `multi-conn`: what a device can do, and is not to be asked for.

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, CopyFlags, DeviceInfo, Error,
    ErrorKind, Exports, Extent, FileRange, Operation, Parameter, ParameterType, PipeBuffer, Result,
    Status, Values, WriteFlags, ZeroFlags, check_allocation,
};

use crate::{DeviceFilter, Effects, Filter, FilterKind, Filtered, Layer, each_device};

pub(crate) static READ_ONLY: FilterKind = FilterKind {
    name: "readonly",
    syntax: "readonly",
    help: "Nothing can be written",
    parameters: &[],
    effects: Effects {
        flush: "passed through; there is nothing to make durable",
        ..Effects::NONE
    },
    build: |_| Ok(Arc::new(ReadOnly)),
};

pub(crate) static NO_EXTENTS: FilterKind = FilterKind {
    name: "noextents",
    syntax: "noextents",
    help: "Nobody is told of holes and zeroes: everything is data",
    parameters: &[],
    effects: Effects {
        extents: "all data, whatever the source says; what is no allocation is hidden",
        ..Effects::NONE
    },
    build: |_| Ok(Arc::new(NoExtents)),
};

pub(crate) static NO_ZERO: FilterKind = FilterKind {
    name: "nozero",
    syntax: "nozero[:mode=MODE]",
    help: "Zeroes have to be written as data",
    parameters: &[Parameter::new(
        "mode",
        ParameterType::Choice(&["none", "nohole", "nofast"]),
        "What is left: nothing; zeroing that allocates; all but failing fast",
    )
    .or("none")],
    effects: Effects::NONE,
    build: |values| Ok(Arc::new(NoZero::from_values(values))),
};

pub(crate) static NO_TRIM: FilterKind = FilterKind {
    name: "notrim",
    syntax: "notrim",
    help: "Nothing can be discarded",
    parameters: &[],
    effects: Effects::NONE,
    build: |_| Ok(Arc::new(NoTrim)),
};

pub(crate) static MULTI_CONN: FilterKind = FilterKind {
    name: "multi-conn",
    syntax: "multi-conn[:MODE]",
    help: "Whether clients are told that they may use several connections",
    parameters: &[Parameter::new(
        "mode",
        ParameterType::Switch,
        "Whether they are; 'on' is for sources where a flush of any connection is one of all",
    )
    .first()
    .or("on")],
    effects: Effects {
        concurrency: "said to be safe, or not, for several connections; nothing is changed",
        ..Effects::NONE
    },
    build: |values| {
        Ok(Arc::new(MultiConn {
            on: values.switch("mode").unwrap_or(true),
        }))
    },
};

/// Refuses writes.
#[derive(Clone, Copy, Debug)]
pub struct ReadOnly;

/// Hides extents.
#[derive(Clone, Copy, Debug)]
pub struct NoExtents;

/// Hides trim.
#[derive(Clone, Copy, Debug)]
pub struct NoTrim;

/// Hides zeroing, or a part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoZero {
    /// All of it.
    #[default]
    All,
    /// Holes: zeroed ranges stay allocated.
    Holes,
    /// That it fails rather than be slow.
    Fast,
}

/// Says whether several connections are safe.
#[derive(Clone, Copy, Debug)]
pub struct MultiConn {
    /// Whether they are.
    pub on: bool,
}

impl NoZero {
    fn from_values(values: &Values) -> Self {
        match values.word("mode").as_deref() {
            Some("nohole") => Self::Holes,
            Some("nofast") => Self::Fast,
            _ => Self::All,
        }
    }
}

/// What some of this file's filters take away from a device.
#[derive(Clone, Copy)]
enum Limit {
    Writes,
    Extents,
    Trim,
    Zero(NoZero),
    MultiConn(bool),
}

impl Limit {
    fn layer(self, name: &'static str, below: Arc<dyn Exports>) -> Arc<dyn Layer> {
        each_device(name, below, move |below| {
            let limited = Filtered::new(Limited { below, limit: self });
            Box::pin(async move { Ok(Arc::new(limited) as Arc<dyn BlockDevice>) })
        })
    }
}

/// `device`, which is not to be written to.
pub(crate) fn read_only(device: Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice> {
    Arc::new(Filtered::new(Limited {
        below: device,
        limit: Limit::Writes,
    }))
}

macro_rules! filters {
    ($($filter:ty: $kind:ident, |$this:ident| $limit:expr;)*) => {$(
        impl $filter {
            fn limit(&self) -> Limit {
                let $this = self;
                $limit
            }
        }

        impl Filter for $filter {
            fn kind(&self) -> &'static FilterKind {
                &$kind
            }

            fn never_writes(&self) -> bool {
                matches!(self.limit(), Limit::Writes)
            }

            fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
                Ok(self.limit().layer($kind.name, below))
            }
        }
    )*};
}

filters! {
    ReadOnly: READ_ONLY, |_filter| Limit::Writes;
    NoExtents: NO_EXTENTS, |_filter| Limit::Extents;
    NoTrim: NO_TRIM, |_filter| Limit::Trim;
    NoZero: NO_ZERO, |filter| Limit::Zero(*filter);
    MultiConn: MULTI_CONN, |filter| Limit::MultiConn(filter.on);
}

/// A device without some of its abilities.
struct Limited {
    below: Arc<dyn BlockDevice>,
    limit: Limit,
}

/// What a device needs to be written to.
const WRITING: Capabilities = Capabilities::WRITE
    .union(Capabilities::TRIM)
    .union(Capabilities::ZERO)
    .union(Capabilities::FAST_ZERO)
    .union(Capabilities::RESIZE)
    .union(Capabilities::SPLICE_WRITE)
    .union(Capabilities::COPY_FROM);

impl Limited {
    fn refusal(&self, operation: Operation, range: ByteRange) -> Option<Error> {
        let kind = match (self.limit, operation) {
            (Limit::Writes, Operation::Resize) => ErrorKind::Unsupported,
            (Limit::Writes, Operation::Extents) => return None,
            (Limit::Writes, _) => ErrorKind::ReadOnly,
            (Limit::Trim, Operation::Trim) | (Limit::Zero(NoZero::All), Operation::Zero) => {
                ErrorKind::Unsupported
            }
            _ => return None,
        };
        let error = Error::new(kind).during(operation);
        Some(error.at(range.start(), range.len()))
    }
}

/// `call` unless it is refused.
fn unless<'a, T: Send + 'a>(
    refusal: Option<Error>,
    call: impl FnOnce() -> BoxFuture<'a, Result<T>>,
) -> BoxFuture<'a, Result<T>> {
    match refusal {
        Some(error) => Box::pin(async move { Err(error) }),
        None => call(),
    }
}

impl DeviceFilter for Limited {
    const PASSES: Capabilities = Capabilities::all();

    fn below(&self) -> &Arc<dyn BlockDevice> {
        &self.below
    }

    fn info(&self) -> DeviceInfo {
        let mut info = self.below.info().clone();
        match self.limit {
            Limit::Writes => info.capabilities -= WRITING,
            Limit::Extents => info.contexts = vec![Context::Allocation],
            Limit::Trim => info.capabilities -= Capabilities::TRIM,
            Limit::Zero(NoZero::All) => {
                info.capabilities -= Capabilities::ZERO | Capabilities::FAST_ZERO;
            }
            Limit::Zero(NoZero::Fast) => info.capabilities -= Capabilities::FAST_ZERO,
            Limit::Zero(NoZero::Holes) => {}
            Limit::MultiConn(on) => info.capabilities.set(Capabilities::MULTI_CONN, on),
        }
        info
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        let range = ByteRange::between(offset, offset.saturating_add(data.len() as u64));
        unless(self.refusal(Operation::Write, range), || {
            self.below.write(offset, data, flags)
        })
    }

    fn write_piped(
        &self,
        offset: u64,
        data: PipeBuffer,
        flags: WriteFlags,
    ) -> BoxFuture<'_, Result<()>> {
        let range = ByteRange::between(offset, offset.saturating_add(data.len() as u64));
        unless(self.refusal(Operation::Write, range), || {
            self.below.write_piped(offset, data, flags)
        })
    }

    fn copy_from(
        &self,
        offset: u64,
        source: FileRange,
        flags: CopyFlags,
    ) -> BoxFuture<'_, Result<()>> {
        let end = offset.saturating_add(source.range().len());
        let range = ByteRange::between(offset, end);
        unless(self.refusal(Operation::Copy, range), || {
            self.below.copy_from(offset, source, flags)
        })
    }

    fn zero(&self, range: ByteRange, mut flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        if let Limit::Zero(NoZero::Holes) = self.limit {
            flags |= ZeroFlags::NO_HOLE;
        }
        let mut refusal = self.refusal(Operation::Zero, range);
        if matches!(self.limit, Limit::Zero(NoZero::Fast)) && flags.contains(ZeroFlags::FAST) {
            let error = Error::new(ErrorKind::Unsupported).during(Operation::Zero);
            refusal = Some(error.at(range.start(), range.len()));
        }
        unless(refusal, || self.below.zero(range, flags))
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        unless(self.refusal(Operation::Trim, range), || {
            self.below.trim(range, flags)
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        if !matches!(self.limit, Limit::Extents) {
            return self.below.extents(range, context);
        }
        Box::pin(async move {
            check_allocation(range, context)?;
            let status = Status::DATA;
            let all = Extent { range, status };
            Ok(if range.is_empty() { vec![] } else { vec![all] })
        })
    }

    fn first_extent<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        match self.limit {
            Limit::Extents => self.extents(range, context),
            _ => self.below.first_extent(range, context),
        }
    }

    fn resize(&self, size: u64) -> BoxFuture<'_, Result<()>> {
        let range = ByteRange::between(0, size);
        unless(self.refusal(Operation::Resize, range), || {
            self.below.resize(size)
        })
    }

    fn over(&self, below: Arc<dyn BlockDevice>) -> Option<Self> {
        let limit = self.limit;
        Some(Self { below, limit })
    }
}

#[cfg(test)]
mod tests {
    use blockferry_block::{MemoryDevice, testing::check_device};

    use super::*;
    use crate::{NamedFilter, testing};

    async fn through(filters: &[&str]) -> Arc<dyn BlockDevice> {
        testing::through(filters, Arc::new(MemoryDevice::new(100_000))).await
    }

    #[tokio::test]
    async fn what_is_taken_away_is_neither_offered_nor_done() {
        let all = ByteRange::between(0, 4096);
        let device = through(&["readonly"]).await;
        assert!(!device.info().can(Capabilities::WRITE));
        let write = device.write(0, Buffer::zeroed(1), WriteFlags::empty());
        assert_eq!(
            write.await.expect_err("read-only").kind(),
            ErrorKind::ReadOnly
        );
        let zero = device.zero(all, ZeroFlags::empty()).await;
        assert_eq!(zero.expect_err("read-only").kind(), ErrorKind::ReadOnly);
        check_device(&*device, 1, 100).await;

        let device = through(&["notrim", "nozero", "noextents"]).await;
        assert!(!device.info().can(Capabilities::TRIM) && !device.info().can(Capabilities::ZERO));
        assert!(device.trim(all, WriteFlags::empty()).await.is_err());
        assert!(device.zero(all, ZeroFlags::empty()).await.is_err());
        let range = ByteRange::between(512, 4096);
        let extents = device.extents(range, &Context::Allocation).await;
        let status = Status::DATA;
        assert_eq!(extents.expect("extents"), [Extent { range, status }]);
        let other = Context::from("qemu:allocation-depth");
        assert!(device.extents(all, &other).await.is_err());
        assert_eq!(device.info().contexts, [Context::Allocation]);
        check_device(&*device, 1, 200).await;
    }

    #[tokio::test]
    async fn zeroing_without_holes_allocates() {
        let device = through(&["nozero:mode=nohole"]).await;
        let range = ByteRange::between(0, 65536);
        device
            .zero(range, ZeroFlags::empty())
            .await
            .expect("zeroed");
        let extents = device.extents(range, &Context::Allocation).await;
        assert!(!extents.expect("extents")[0].status.is_hole());
    }

    #[tokio::test]
    async fn multi_conn_is_what_it_is_told() {
        for (text, on) in [("multi-conn", true), ("multi-conn:off", false)] {
            let device = through(&[text]).await;
            assert_eq!(device.info().can(Capabilities::MULTI_CONN), on);
        }
        assert!(NamedFilter::parse("multi-conn:maybe".as_ref()).is_err());
        assert!(NamedFilter::parse("multiconn".as_ref()).is_err());
    }
}
