//! `serialize`: one request at a time.

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, Exports, Extent, Parameter,
    ParameterType, Result, WriteFlags, ZeroFlags,
};
use tokio::sync::Mutex;

use crate::{
    DeviceFilter, DeviceLayer, Effects, Filter, FilterKind, Filtered, Layer, Opened, PerExport,
};

pub(crate) static SERIALIZE: FilterKind = FilterKind {
    name: "serialize",
    syntax: "serialize[:SCOPE]",
    help: "The source sees one request at a time",
    parameters: &[Parameter::new(
        "scope",
        ParameterType::Choice(&["connection", "export"]),
        "One of each connection, or one of all that use the export",
    )
    .first()
    .or("connection")],
    effects: Effects {
        mapping: "none: a request is over when its bytes were read",
        concurrency: "requests wait for each other, in the order in which they came",
        ..Effects::NONE
    },
    build: |values| {
        Ok(Arc::new(match values.word("scope").as_deref() {
            Some("export") => Serialize::Export,
            _ => Serialize::Connection,
        }))
    },
};

/// Lets the source see one request at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Serialize {
    /// One of each connection.
    #[default]
    Connection,
    /// One of all connections that use an export.
    Export,
}

/// Whose turn it is.
type Turn = Arc<Mutex<()>>;

impl Filter for Serialize {
    fn kind(&self) -> &'static FilterKind {
        &SERIALIZE
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        Ok(Arc::new(PerExport::new(*self, below)))
    }
}

impl DeviceLayer for Serialize {
    type Shared = Mutex<()>;

    fn name(&self) -> &'static str {
        SERIALIZE.name
    }

    fn share(&self, _: &str) -> Result<Mutex<()>> {
        Ok(Mutex::default())
    }

    fn open(&self, opened: Opened<Mutex<()>>) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        let turn = match self {
            Self::Connection => Turn::default(),
            Self::Export => opened.shared,
        };
        let scope = *self;
        let below = opened.device;
        let device = Filtered::new(InTurn { below, turn, scope });
        Box::pin(async move { Ok(Arc::new(device) as Arc<dyn BlockDevice>) })
    }
}

struct InTurn {
    below: Arc<dyn BlockDevice>,
    turn: Turn,
    scope: Serialize,
}

impl InTurn {
    /// `request` when it is its turn.
    fn wait<'a, T: Send + 'a>(
        &'a self,
        request: BoxFuture<'a, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        Box::pin(async move {
            let _turn = self.turn.lock().await;
            request.await
        })
    }
}

impl DeviceFilter for InTurn {
    const PASSES: Capabilities = Capabilities::REOPEN;

    fn below(&self) -> &Arc<dyn BlockDevice> {
        &self.below
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        self.wait(self.below.read(offset, buffer))
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        self.wait(self.below.write(offset, data, flags))
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        self.wait(self.below.zero(range, flags))
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        self.wait(self.below.trim(range, flags))
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        self.wait(self.below.flush())
    }

    fn cache(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        self.wait(self.below.cache(range))
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        self.wait(self.below.extents(range, context))
    }

    fn first_extent<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        self.wait(self.below.first_extent(range, context))
    }

    fn over(&self, below: Arc<dyn BlockDevice>) -> Option<Self> {
        let scope = self.scope;
        let turn = match scope {
            Serialize::Connection => Turn::default(),
            Serialize::Export => Arc::clone(&self.turn),
        };
        Some(Self { below, turn, scope })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use blockferry_block::{
        ClientFacts, MemoryDevice, Operation, SingleExport,
        testing::{Fault, FaultyDevice, Rule, check_device},
    };

    use super::*;
    use crate::{Chain, NamedFilter, testing::through};

    /// How many of the requests of two connections, two of each, are under way at once.
    async fn most(filter: &str) -> usize {
        let delay = Rule::on(Operation::Read).fault(Fault::Delay(Duration::from_millis(10)));
        let source = FaultyDevice::new(Arc::new(MemoryDevice::new(100_000))).with(delay);
        let source = Arc::new(source);
        let filter = NamedFilter::parse(filter.as_ref()).expect("a filter");
        let exports = Arc::new(SingleExport::new(
            Arc::clone(&source) as Arc<dyn BlockDevice>
        ));
        let chain = Chain::new(&[filter], exports).expect("a chain");
        let mut devices = Vec::new();
        for _ in 0..2 {
            let open = chain.exports().open("", ClientFacts::default()).await;
            devices.push(open.expect("opened").device);
        }
        let read = |device: &Arc<dyn BlockDevice>| {
            let device = Arc::clone(device);
            async move { device.read(0, Buffer::zeroed(512)).await.expect("read") }
        };
        let [one, two] = [&devices[0], &devices[1]];
        tokio::join!(read(one), read(one), read(two), read(two));
        source.most_in_flight()
    }

    #[tokio::test(start_paused = true)]
    async fn requests_wait_for_those_of_their_connection_or_of_all() {
        assert_eq!(most("serialize").await, 2);
        assert_eq!(most("serialize:export").await, 1);
        assert_eq!(most("noextents").await, 4);
    }

    #[tokio::test]
    async fn it_stays_a_device() {
        for filter in ["serialize", "serialize:export"] {
            let device = through(&[filter], Arc::new(MemoryDevice::new(100_000))).await;
            check_device(&*device, 7, 200).await;
        }
    }
}
