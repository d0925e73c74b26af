//! The filters that look at each request, in front of devices that fail, wait and keep count.

mod delay;
mod error;
mod exitlast;
mod log;
mod stats;

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, Capabilities, ErrorKind, MemoryDevice, Operation, SingleExport,
    testing::{Fault, FaultyDevice, Rule, check_device},
};
use blockferry_filter::{Chain, NamedFilter};

const SIZE: u64 = 1 << 20;

/// `filters` in front of `device`.
fn chain(filters: &[&str], device: Arc<dyn BlockDevice>) -> Chain {
    let filters: Vec<_> = filters
        .iter()
        .map(|text| NamedFilter::parse(text.as_ref()).expect(text))
        .collect();
    let exports = SingleExport::new(device).under_any_name();
    Chain::new(&filters, Arc::new(exports)).expect("a chain")
}

/// The export `name` through a chain.
async fn open(chain: &Chain, name: &str) -> Arc<dyn BlockDevice> {
    let exports = chain.exports();
    let open = exports.open(name, Default::default()).await;
    open.expect("an export").device
}

/// A device in front of which `filter` stands.
async fn through(filter: &str, device: Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice> {
    open(&chain(&[filter], device), "").await
}

fn memory() -> Arc<dyn BlockDevice> {
    Arc::new(MemoryDevice::new(SIZE))
}

/// Fails unless `filter` changes nothing of what is read, written and answered.
async fn assert_is_transparent(filter: &str) {
    for seed in 1..4 {
        let device = through(filter, memory()).await;
        assert!(device.info().can(Capabilities::WRITE | Capabilities::ZERO));
        check_device(&*device, seed, 300).await;
    }
}

/// Fails unless what fails below `filter` is told as it was, and a request that hangs can be given up.
async fn assert_passes_failures(filter: &str) {
    let rule = |operation, kind| Rule::on(operation).times(1).fault(Fault::Error(kind));
    let faulty = FaultyDevice::new(memory())
        .with(rule(Operation::Read, ErrorKind::NoSpace))
        .with(rule(Operation::Write, ErrorKind::NotPermitted))
        .with(Rule::on(Operation::Read).times(1).fault(Fault::Hang));
    let device = through(filter, Arc::new(faulty)).await;
    let buffer = || blockferry_block::Buffer::zeroed(512);
    let error = device.read(4096, buffer()).await.expect_err("a fault");
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert_eq!((error.offset(), error.length()), (Some(4096), Some(512)));
    let error = device.write(512, buffer(), Default::default()).await;
    assert_eq!(error.expect_err("a fault").kind(), ErrorKind::NotPermitted);
    let mut hanging = device.read(0, buffer());
    assert!(futures_util::poll!(&mut hanging).is_pending());
    drop(hanging);
    device.read(0, buffer()).await.expect("healed");
}
