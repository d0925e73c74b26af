//! `exitlast`.

use std::{fs, sync::Arc};

use blockferry_block::{Access, ByteRange, ClientFacts, FileDevice, Mapping, SingleExport, Wish};
use blockferry_filter::{Chain, NamedFilter};

use crate::{assert_is_transparent, assert_passes_failures, chain, memory, open};

#[tokio::test]
async fn nothing_is_changed() {
    assert_is_transparent("exitlast").await;
    assert_passes_failures("exitlast").await;
    let room = tempfile::tempdir().expect("a directory");
    let image = room.path().join("image");
    fs::write(&image, [1; 8192]).expect("room");
    let device = FileDevice::open(&image, Access::ReadWrite).expect("a device");
    let device = open(&chain(&["exitlast"], Arc::new(device)), "").await;
    let mapping = device.mapping(ByteRange::between(0, 8192));
    assert!(matches!(mapping, Mapping::File { .. }));
}

#[tokio::test]
async fn the_end_is_wished_for_when_the_last_client_has_gone() {
    // Behind another filter, which hands the wish on.
    let chain = chain(&["readonly", "exitlast"], memory());
    let exports = chain.exports();
    let client = ClientFacts::default();
    exports.list(client).await.expect("a list");
    assert_eq!(exports.wish(), None);
    let (one, other) = (open(&chain, "one").await, open(&chain, "two").await);
    drop(one);
    assert_eq!(exports.wish(), None);
    let third = open(&chain, "one").await;
    drop(other);
    assert_eq!(exports.wish(), None);
    drop(third);
    assert_eq!(exports.wish(), Some(Wish::ShutDown));
}

#[tokio::test]
async fn clients_of_all_sources_are_counted_together() {
    let filter = [NamedFilter::parse("exitlast".as_ref()).expect("a filter")];
    let source = || Arc::new(SingleExport::new(memory()));
    let chains = [0, 1].map(|_| Chain::new(&filter, source()).expect("a chain"));
    let one = open(&chains[0], "").await;
    let other = open(&chains[1], "").await;
    drop(one);
    assert_eq!(chains[0].exports().wish(), None);
    drop(other);
    assert_eq!(chains[0].exports().wish(), Some(Wish::ShutDown));
}
