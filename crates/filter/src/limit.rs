//! `limit`: so many clients at a time.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use blockferry_block::{
    BlockDevice, BoxFuture, Capabilities, ClientFacts, Error, ErrorKind, ExportEntry, Exports,
    OpenExport, Operation, Parameter, ParameterType, Result, Wish,
};

use crate::{DeviceFilter, Effects, Filter, FilterKind, Filtered, Layer, lines::Common};

pub(crate) static LIMIT: FilterKind = FilterKind {
    name: "limit",
    syntax: "limit[:CLIENTS]",
    help: "Further clients are turned away while so many are there",
    parameters: &[Parameter::new(
        "clients",
        ParameterType::Number,
        "How many clients may use exports at a time; 0 for any number",
    )
    .first()
    .or("1")],
    effects: Effects {
        concurrency: "as the source's; clients of all exports are counted together",
        ..Effects::NONE
    },
    build: |values| Ok(Arc::new(Limit::new(values.number("clients").unwrap_or(1)))),
};

/// Turns clients away while too many are there. Nothing in front of what is no server.
#[derive(Clone, Debug)]
pub struct Limit {
    /// How many may use exports at a time; 0: any number.
    clients: u64,
    there: Common<AtomicU64>,
}

impl Limit {
    /// Lets `clients` use exports at a time; 0: any number.
    #[must_use]
    pub fn new(clients: u64) -> Self {
        let there = Common::default();
        Self { clients, there }
    }
}

impl Filter for Limit {
    fn kind(&self) -> &'static FilterKind {
        &LIMIT
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        let there = self.there.open(|| Ok(AtomicU64::new(0)))?;
        let most = match self.clients {
            0 => u64::MAX,
            most => most,
        };
        Ok(Arc::new(Limited { below, most, there }))
    }
}

struct Limited {
    below: Arc<dyn Exports>,
    most: u64,
    /// The clients that have an export open.
    there: Arc<AtomicU64>,
}

impl Exports for Limited {
    fn connecting(&self, client: ClientFacts) -> BoxFuture<'_, Result<()>> {
        match self.there.load(Ordering::Acquire) < self.most {
            true => self.below.connecting(client),
            false => {
                let message = format!("there are {} clients already", self.most);
                let error = Error::with_message(ErrorKind::Refused, message);
                Box::pin(async move { Err(error.during(Operation::Open)) })
            }
        }
    }

    fn list(&self, client: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        self.below.list(client)
    }

    fn open<'a>(&'a self, name: &'a str, client: ClientFacts) -> BoxFuture<'a, Result<OpenExport>> {
        Box::pin(async move {
            let mut open = self.below.open(name, client).await?;
            open.device = Arc::new(Filtered::new(Used {
                place: Place::new(Arc::clone(&self.there)),
                below: open.device,
            }));
            Ok(open)
        })
    }

    fn wish(&self) -> Option<Wish> {
        self.below.wish()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.below.close()
    }
}

impl Layer for Limited {}

/// The place of a client, as long as it has an export open.
struct Place(Arc<AtomicU64>);

impl Place {
    fn new(there: Arc<AtomicU64>) -> Self {
        there.fetch_add(1, Ordering::AcqRel);
        Self(there)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

struct Used {
    below: Arc<dyn BlockDevice>,
    place: Place,
}

impl DeviceFilter for Used {
    const PASSES: Capabilities = Capabilities::all();

    fn below(&self) -> &Arc<dyn BlockDevice> {
        &self.below
    }

    fn over(&self, below: Arc<dyn BlockDevice>) -> Option<Self> {
        let place = Place::new(Arc::clone(&self.place.0));
        Some(Self { below, place })
    }
}

#[cfg(test)]
mod tests {
    use blockferry_block::{MemoryDevice, SingleExport};

    use super::*;
    use crate::{Chain, NamedFilter};

    #[tokio::test]
    async fn a_client_finds_room_when_another_has_gone() {
        let client = ClientFacts::default();
        for (filter, most) in [("limit", 1), ("limit:2", 2), ("limit:0", 9)] {
            let filter = NamedFilter::parse(filter.as_ref()).expect("a filter");
            let source = Arc::new(MemoryDevice::new(512));
            let chain = Chain::new(&[filter], Arc::new(SingleExport::new(source)));
            let exports = chain.expect("a chain").exports();
            let mut open = Vec::new();
            while open.len() < 9 && exports.connecting(client).await.is_ok() {
                open.push(exports.open("", client).await.expect("opened"));
            }
            assert_eq!(open.len(), most);
            open.pop();
            assert!(exports.connecting(client).await.is_ok());
        }
    }
}
