//! What the tests share: running programs with a deadline, peers, images, and servers that misbehave.

pub(crate) mod certificates;
pub(crate) mod disk;
pub(crate) mod dropin;
pub(crate) mod gallery;
pub(crate) mod hostile;
pub(crate) mod images;
pub(crate) mod peers;
pub(crate) mod phoenix;
pub(crate) mod proxy;
pub(crate) mod qemu;
pub(crate) mod realm;
pub(crate) mod relay;
pub(crate) mod run;
pub(crate) mod secured;
pub(crate) mod served;

pub(crate) use disk::SmallDisk;
pub(crate) use images::{allocated, assert_same, random_image, sparse_image};
pub(crate) use peers::Peer;
pub(crate) use proxy::Proxy;
pub(crate) use run::{Outcome, blockferry, run};
pub(crate) use served::Served;
