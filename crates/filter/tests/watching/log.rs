//! `log`.

use std::{fs, path::Path, sync::Arc};

use blockferry_block::{
    Access, BlockDevice, Buffer, ByteRange, ClientFacts, Context, ErrorKind, FileDevice, Mapping,
    Operation, WriteFlags, ZeroFlags,
    testing::{Fault, FaultyDevice, Rule},
};
use blockferry_filter::{Chain, LogRequests, NamedFilter};
use futures_util::future::join_all;
use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::{assert_is_transparent, assert_passes_failures, chain, memory, open};

/// A place for a log.
struct Room(TempDir);

impl Room {
    fn new() -> Self {
        Self(tempdir().expect("a directory"))
    }

    /// The filter that logs there.
    fn filter(&self, options: &str) -> String {
        format!("log:{}{options}", self.0.path().join("log").display())
    }

    fn lines(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.0.path().join("log")).expect("a log");
        let lines = text.lines();
        lines
            .map(|line| serde_json::from_str(line).expect(line))
            .collect()
    }

    /// The lines about requests, once the chain is closed.
    async fn requests(&self, chain: &Chain) -> Vec<Value> {
        chain.exports().close().await;
        let lines = self.lines().into_iter();
        lines.filter(|line| line["event"] == "request").collect()
    }
}

#[tokio::test]
async fn what_is_logged_is_not_changed() {
    let room = Room::new();
    for options in ["", ",requests=off", ",while=/nonexistent/file"] {
        assert_is_transparent(&room.filter(options)).await;
        assert_passes_failures(&room.filter(options)).await;
    }
}

#[tokio::test]
async fn each_request_is_a_line_with_its_result() {
    let room = Room::new();
    let range = ByteRange::between(512, 1024);
    let faulty = FaultyDevice::new(memory())
        .with(Rule::on(Operation::Trim).fault(Fault::Error(ErrorKind::NoSpace)));
    let chain = chain(&[&room.filter("")], Arc::new(faulty));
    let device = open(&chain, "").await;
    let none = WriteFlags::empty();
    let written = device.write(4096, Buffer::zeroed(512), WriteFlags::FUA);
    written.await.expect("a write");
    device.read(0, Buffer::zeroed(100)).await.expect("a read");
    let flags = ZeroFlags::NO_HOLE;
    device.zero(range, flags).await.expect("zeroes");
    device.trim(range, none).await.expect_err("a fault");
    let extents = device.extents(range, &Context::Allocation).await;
    extents.expect("extents");
    device.flush().await.expect("a flush");
    drop(device);
    let requests = room.requests(&chain).await;
    let field = |name: &str| -> Vec<_> { requests.iter().map(|line| line[name].clone()).collect() };
    let commands = [
        "write",
        "read",
        "write_zeroes",
        "trim",
        "block_status",
        "flush",
    ];
    assert_eq!(field("command"), commands);
    assert_eq!(field("offset"), [4096, 0, 512, 512, 512, 0]);
    assert_eq!(field("length"), [512, 100, 512, 512, 512, 0]);
    assert_eq!(field("request"), [1, 2, 3, 4, 5, 6]);
    assert_eq!(field("fua"), [true, false, false, false, false, false]);
    assert_eq!(requests[2]["no_hole"], true);
    assert_eq!(requests[4]["context"], "base:allocation");
    for (at, line) in requests.iter().enumerate() {
        assert_eq!(line["error"].is_null(), at != 3, "{line}");
        assert!(line["seconds"].is_f64() && line["time"].is_string());
        assert_eq!(line["handle"], 1);
    }
    assert_eq!(requests[3]["kind"], "NoSpace");
}

#[tokio::test]
async fn handles_are_told_apart_from_opening_to_closing() {
    let room = Room::new();
    let chain = chain(&[&room.filter("")], memory());
    let client = ClientFacts {
        read_only: true,
        tls: true,
    };
    let exports = chain.exports();
    let first = exports.open("one", client).await.expect("an export").device;
    let second = open(&chain, "two").await;
    let reads = (0..50).flat_map(|at| {
        let buffer = || Buffer::zeroed(512);
        [first.read(at * 512, buffer()), second.read(0, buffer())]
    });
    join_all(reads).await;
    drop(first);
    drop(second);
    exports.close().await;
    let lines = room.lines();
    assert_eq!(lines.len(), 104);
    let opened = &lines[0];
    assert_eq!(
        (&opened["event"], &opened["export"]),
        (&"opened".into(), &"one".into())
    );
    assert_eq!(opened["size"], crate::SIZE);
    assert_eq!(
        (&opened["tls"], &opened["read_only"]),
        (&true.into(), &true.into())
    );
    assert_eq!(
        (&lines[1]["export"], &lines[1]["tls"]),
        (&"two".into(), &false.into())
    );
    let capabilities = lines[1]["capabilities"].as_array().expect("a list");
    assert!(capabilities.contains(&"write".into()), "{capabilities:?}");
    for handle in [1, 2] {
        let closed = lines
            .iter()
            .find(|line| line["event"] == "closed" && line["handle"] == handle);
        assert_eq!(closed.expect("an end")["requests"], 50);
    }
}

#[tokio::test]
async fn a_request_that_nobody_waits_for_is_logged_too() {
    let room = Room::new();
    let faulty = FaultyDevice::new(memory()).with(Rule::on(Operation::Read).fault(Fault::Hang));
    let chain = chain(&[&room.filter("")], Arc::new(faulty));
    let device = open(&chain, "").await;
    let mut read = device.read(0, Buffer::zeroed(512));
    assert!(futures_util::poll!(&mut read).is_pending());
    drop(read);
    let requests = room.requests(&chain).await;
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0]["kind"], "Cancelled");
}

#[tokio::test]
async fn a_file_turns_the_log_on_and_off() {
    let room = Room::new();
    let trigger = room.0.path().join("trigger");
    let filter = room.filter(&format!(",while={}", trigger.display()));
    let chain = chain(&[&filter], memory());
    let device = open(&chain, "").await;
    let read = async || {
        device.read(0, Buffer::zeroed(512)).await.expect("a read");
    };
    read().await;
    fs::write(&trigger, "").expect("room");
    read().await;
    fs::remove_file(&trigger).expect("a file");
    read().await;
    let requests = room.requests(&chain).await;
    let numbers: Vec<_> = requests.iter().map(|line| &line["request"]).collect();
    assert_eq!(numbers, [2]);
}

#[tokio::test]
async fn with_requests_off_bytes_are_found_in_their_file() {
    let room = Room::new();
    let image = room.0.path().join("image");
    fs::write(&image, [1; 8192]).expect("room");
    for (options, is_mapped) in [(",requests=off", true), ("", false)] {
        let device = FileDevice::open(&image, Access::ReadWrite).expect("a device");
        let chain = chain(&[&room.filter(options)], Arc::new(device));
        let device = open(&chain, "").await;
        let mapping = device.mapping(ByteRange::between(0, 8192));
        assert_eq!(matches!(mapping, Mapping::File { .. }), is_mapped);
        device.read(0, Buffer::zeroed(512)).await.expect("a read");
        let requests = room.requests(&chain).await;
        assert_eq!(requests.is_empty(), is_mapped);
    }
}

#[tokio::test]
async fn what_the_file_has_is_kept_where_that_is_asked_for() {
    let room = Room::new();
    for (options, lines) in [("", 1), (",append=on", 2), ("", 1)] {
        let chain = chain(&[&room.filter(options)], memory());
        let device: Arc<dyn BlockDevice> = open(&chain, "").await;
        chain.exports().close().await;
        assert_eq!(opened(&room), lines, "{options}");
        drop(device);
    }
    let missing = LogRequests::to(Path::new("/nonexistent/log"));
    let exports = Arc::new(blockferry_block::SingleExport::new(memory()));
    let refused = Chain::new(&[NamedFilter::new(missing)], exports);
    let error = refused.map(|_| ()).expect_err("no such directory");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("/nonexistent/log"), "{error}");
    assert!(NamedFilter::parse("log".as_ref()).is_err());
}

fn opened(room: &Room) -> usize {
    let lines = room.lines();
    let opened = lines.iter().filter(|line| line["event"] == "opened");
    opened.count()
}
