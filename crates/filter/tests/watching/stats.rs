//! `stats`.

use std::{collections::HashMap, fs, sync::Arc};

use blockferry_block::{
    Buffer, ByteRange, Capabilities, Context, ErrorKind, Mapping, Operation, PipePool, WriteFlags,
    ZeroFlags,
    testing::{Fault, FaultyDevice, Rule},
};
use futures_util::future::join_all;
use serde_json::Value;

use crate::{assert_is_transparent, assert_passes_failures, chain, memory, open};

#[tokio::test]
async fn what_is_counted_is_not_changed() {
    assert_is_transparent("stats").await;
    assert_passes_failures("stats:-").await;
}

#[tokio::test]
async fn each_request_is_counted_once_with_its_bytes_and_its_failure() {
    let room = tempfile::tempdir().expect("a directory");
    let file = room.path().join("stats");
    let faulty = FaultyDevice::new(memory())
        .piping()
        .with(
            Rule::on(Operation::Read)
                .times(1)
                .fault(Fault::Error(ErrorKind::Io)),
        )
        .with(Rule::on(Operation::Flush).fault(Fault::Hang));
    let filter = format!("stats:{},format=json", file.display());
    let chain = chain(&[&filter], Arc::new(faulty));
    let device = open(&chain, "").await;
    let range = ByteRange::between(0, 4096);
    assert!(matches!(device.mapping(range), Mapping::Opaque));
    device
        .read(0, Buffer::zeroed(512))
        .await
        .expect_err("a fault");
    let reads = (0..100).map(|at| device.read(at * 512, Buffer::zeroed(512)));
    for read in join_all(reads).await {
        read.expect("a read");
    }
    assert!(device.info().can(Capabilities::SPLICE_READ));
    let pipe = PipePool::new(1 << 20, 1).take().expect("a pipe");
    device.read_piped(0, 65536, pipe).await.expect("a read");
    let written = device.write(0, Buffer::zeroed(1024), WriteFlags::empty());
    written.await.expect("a write");
    let zeroed = device.zero(range, ZeroFlags::empty());
    zeroed.await.expect("zeroes");
    let extents = device.extents(range, &Context::Allocation).await;
    extents.expect("extents");
    let mut flush = device.flush();
    assert!(futures_util::poll!(&mut flush).is_pending());
    drop(flush);
    let counters = chain.counters();
    assert_eq!(counters.len(), 1);
    assert_eq!(counters[0].filter, "stats");
    let counts: HashMap<_, _> = counters[0].counts.iter().copied().collect();
    assert_eq!(counts["read_requests"], 102);
    assert_eq!(counts["read_errors"], 1);
    assert_eq!(counts["read_bytes"], 51200 + 65536);
    assert_eq!(counts["write_bytes"], 1024);
    assert_eq!(counts["flush_errors"], 1);
    assert!(!counts.contains_key("trim_requests"));
    drop(device);
    chain.exports().close().await;
    let text = fs::read_to_string(file).expect("a file");
    let line: Value = serde_json::from_str(&text).expect("a line");
    assert_eq!(line["export"], "");
    let read = &line["commands"]["read"];
    let sizes = serde_json::json!([
        { "from": 512, "requests": 101 },
        { "from": 65536, "requests": 1 },
    ]);
    assert_eq!((&read["requests"], &read["sizes"]), (&102.into(), &sizes));
    let times = read["microseconds"].as_array().expect("a list").iter();
    let all: u64 = times.flat_map(|row| row["requests"].as_u64()).sum();
    assert_eq!(all, 102);
    assert_eq!(line["commands"]["write_zeroes"]["bytes"], 4096);
    assert_eq!(line["commands"]["block_status"]["requests"], 1);
    assert_eq!(line["commands"]["block_status"]["failed"], 0);
}

#[tokio::test]
async fn exports_are_counted_on_their_own_and_connections_together() {
    let room = tempfile::tempdir().expect("a directory");
    let file = room.path().join("stats");
    fs::write(&file, "before\n").expect("room");
    let chain = chain(&[&format!("stats:{},append=on", file.display())], memory());
    for (name, reads) in [("one", 1), ("two", 2), ("one", 3)] {
        let device = open(&chain, name).await;
        for _ in 0..reads {
            device.read(0, Buffer::zeroed(512)).await.expect("a read");
        }
    }
    let counted: Vec<_> = chain
        .counters()
        .into_iter()
        .map(|it| (it.export, it.counts[0]))
        .collect();
    let count = |name: &str, reads| (name.to_owned(), ("read_requests", reads));
    assert_eq!(counted, [count("one", 4), count("two", 2)]);
    chain.exports().close().await;
    let text = fs::read_to_string(file).expect("a file");
    assert!(text.starts_with("before\nexport \"one\", "), "{text}");
    assert!(text.contains("\nexport \"two\", "), "{text}");
}
