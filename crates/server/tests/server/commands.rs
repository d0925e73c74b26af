//! Every command, in every way to frame the replies.

use std::sync::Arc;

use blockferry_block::{BlockDevice, Capabilities, MemoryDevice};
use blockferry_proto::{
    ClientConfig, Command, CommandFlags, Errno, Extent, Outcome, ReplyMode, TransmissionFlags,
};
use blockferry_server::ServerOptions;

use crate::{
    peer::{Host, Reply, options},
    probe::{Probe, pattern, probe},
};

const SIZE: usize = 1 << 20;

pub(crate) fn framings() -> [(ReplyMode, ClientConfig); 3] {
    let config = |structured, extended| {
        let mut options = ClientConfig::default();
        options.structured = structured;
        options.extended = extended;
        options
    };
    [
        (ReplyMode::Simple, config(false, false)),
        (ReplyMode::Structured, config(true, false)),
        (ReplyMode::Extended, config(true, true)),
    ]
}

#[test]
fn what_is_written_is_read_in_every_framing() {
    for (mode, config) in framings() {
        let device = Arc::new(MemoryDevice::new(SIZE as u64));
        let host = Host::of(device.clone());
        let mut peer = host.connect_with(config);
        assert_eq!(peer.negotiated().mode, mode);
        let data = pattern(300_000);
        peer.write(4096, &data).ok();
        assert_eq!(peer.read(4096, 300_000).ok(), data);
        assert_eq!(peer.read(4000, 200).ok()[96..], data[..104]);
        peer.flush().ok();
        peer.disconnect();
        assert_eq!(device.contents()[4096..304_096], data);
    }
}

#[test]
fn zeroes_and_trims_reach_the_device_in_every_framing() {
    for (_, config) in framings() {
        let device = probe(SIZE);
        let host = Host::of(device.clone());
        let mut peer = host.connect_with(config);
        let none = CommandFlags::empty();
        peer.call(Command::WriteZeroes, none, (4096, 8192), &[])
            .ok();
        peer.call(Command::Trim, none, (65536, 4096), &[]).ok();
        let data = peer.read(0, 16384).ok();
        assert!(data[4096..12288].iter().all(|byte| *byte == 0));
        assert_eq!(data[..4096], pattern(4096));
        assert!(
            device
                .calls()
                .iter()
                .any(|call| call.starts_with("trim 65536+4096"))
        );
    }
}

#[test]
fn space_that_is_not_to_be_given_back_stays_allocated() {
    let device = probe(SIZE);
    let host = Host::with(device.clone(), options(|options| options.discard = false));
    let mut peer = host.connect();
    let none = CommandFlags::empty();
    peer.call(Command::Trim, none, (0, 4096), &[]).ok();
    peer.call(Command::WriteZeroes, none, (4096, 4096), &[])
        .ok();
    let data = peer.read(0, 8192).ok();
    assert_eq!(data[..4096], pattern(4096));
    assert!(data[4096..].iter().all(|byte| *byte == 0));
    let calls = device.calls();
    assert!(!calls.iter().any(|call| call.starts_with("trim")));
    let zero = calls.iter().find(|call| call.starts_with("zero"));
    assert!(
        zero.is_some_and(|call| call.contains("NO_HOLE")),
        "{calls:?}"
    );
}

#[test]
fn a_server_of_one_connection_does_not_invite_to_a_second() {
    let offers = |connections| {
        let options = options(|options| options.max_connections = connections);
        let host = Host::with(probe(SIZE), options);
        let flags = host.connect().negotiated().export.flags;
        flags.contains(TransmissionFlags::CAN_MULTI_CONN)
    };
    assert!(offers(2) && !offers(1));
}

#[test]
fn the_export_offers_what_the_device_can_do() {
    use TransmissionFlags as Flags;
    let flags = |device: Probe| {
        let peer = Host::of(Arc::new(device)).connect();
        peer.negotiated().export.flags
    };
    let everything = Capabilities::WRITE
        | Capabilities::FLUSH
        | Capabilities::FUA
        | Capabilities::TRIM
        | Capabilities::ZERO
        | Capabilities::FAST_ZERO
        | Capabilities::CACHE
        | Capabilities::MULTI_CONN;
    let with = |capabilities| {
        flags(Probe::new(&pattern(4096)).described(|info| info.capabilities = capabilities))
    };
    let common = Flags::HAS_FLAGS | Flags::SEND_DF | Flags::BLOCK_STATUS_PAYLOAD;
    assert_eq!(with(Capabilities::empty()), common | Flags::READ_ONLY);
    assert_eq!(with(Capabilities::WRITE), common | Flags::SEND_WRITE_ZEROES);
    assert_eq!(
        with(Capabilities::WRITE | Capabilities::FLUSH),
        common | Flags::SEND_WRITE_ZEROES | Flags::SEND_FLUSH | Flags::SEND_FUA
    );
    assert_eq!(
        with(everything),
        common
            | Flags::SEND_FLUSH
            | Flags::SEND_FUA
            | Flags::SEND_TRIM
            | Flags::SEND_WRITE_ZEROES
            | Flags::SEND_FAST_ZERO
            | Flags::SEND_CACHE
            | Flags::CAN_MULTI_CONN
    );
    let rotating = Probe::new(&pattern(4096)).described(|info| info.rotational = true);
    assert!(flags(rotating).contains(Flags::ROTATIONAL));
}

#[test]
fn the_device_block_sizes_and_description_are_told() {
    let device = Probe::new(&pattern(SIZE)).described(|info| {
        info.limits.minimum = 512;
        info.limits.preferred = 65536;
        info.description = Some("a disk".to_owned());
    });
    let peer = Host::of(Arc::new(device)).connect();
    let export = &peer.negotiated().export;
    let sizes = export.block_sizes.expect("block sizes");
    assert_eq!((sizes.minimum(), sizes.preferred()), (512, 65536));
    assert_eq!(export.size, SIZE as u64);
}

#[test]
fn fua_is_a_flush_where_the_device_has_only_that() {
    let device = Arc::new(Probe::new(&pattern(SIZE)).described(|info| {
        info.capabilities =
            Capabilities::WRITE | Capabilities::FLUSH | Capabilities::TRIM | Capabilities::ZERO;
    }));
    let host = Host::of(device.clone());
    let mut peer = host.connect();
    let fua = CommandFlags::FUA;
    peer.call(Command::Write, fua, (0, 4), b"data").ok();
    peer.call(Command::Trim, fua, (4096, 4096), &[]).ok();
    peer.call(Command::WriteZeroes, fua, (8192, 4096), &[]).ok();
    assert_eq!(
        device.calls(),
        [
            "write 0+4 WriteFlags(0x0)",
            "wrote 0",
            "flush",
            "trim 4096+4096 WriteFlags(0x0)",
            "flush",
            "zero 8192+4096 ZeroFlags(0x0)",
            "flush",
        ]
    );
}

#[test]
fn fua_goes_to_a_device_that_has_it() {
    let device = Arc::new(Probe::new(&pattern(SIZE)).described(|info| {
        info.capabilities |= Capabilities::WRITE
            | Capabilities::FLUSH
            | Capabilities::FUA
            | Capabilities::TRIM
            | Capabilities::ZERO;
    }));
    let host = Host::of(device.clone());
    let mut peer = host.connect();
    let flags = CommandFlags::FUA | CommandFlags::NO_HOLE;
    peer.call(Command::Write, CommandFlags::FUA, (0, 4), b"data")
        .ok();
    peer.call(Command::Trim, CommandFlags::FUA, (4096, 4096), &[])
        .ok();
    peer.call(Command::WriteZeroes, flags, (8192, 4096), &[])
        .ok();
    assert_eq!(
        device.calls(),
        [
            "write 0+4 WriteFlags(FUA)",
            "wrote 0",
            "trim 4096+4096 WriteFlags(FUA)",
            "zero 8192+4096 ZeroFlags(FUA | NO_HOLE)",
        ]
    );
}

#[test]
fn zeroes_are_written_where_the_device_cannot_zero() {
    let device = Arc::new(Probe::new(&pattern(SIZE)).described(|info| {
        info.capabilities = Capabilities::WRITE | Capabilities::FAST_ZERO;
    }));
    let host = Host::of(device.clone());
    let mut peer = host.connect();
    let none = CommandFlags::empty();
    peer.call(Command::WriteZeroes, none, (1000, 700_000), &[])
        .ok();
    let mut expected = pattern(SIZE);
    expected[1000..701_000].fill(0);
    assert_eq!(device.contents(), expected);

    let fast = CommandFlags::FAST_ZERO;
    let reply = peer.call(Command::WriteZeroes, fast, (0, 4096), &[]);
    assert_eq!(reply.errno(), Some(Errno::ENOTSUP));
    assert_eq!(device.contents(), expected);
}

#[test]
fn requests_longer_than_the_device_takes_are_split() {
    let device = Arc::new(Probe::new(&pattern(SIZE)).described(|info| {
        info.limits.maximum = 65536;
    }));
    for (_, config) in framings() {
        let host = Host::of(device.clone());
        let mut peer = host.connect_with(config);
        let data: Vec<u8> = pattern(200_001).into_iter().rev().collect();
        peer.write(1, &data).ok();
        assert_eq!(peer.read(0, 300_000).ok()[1..200_002], data);
    }
    assert!(device.calls().contains(&"read 65536+65536".to_owned()));
}

#[test]
fn a_request_of_32_mib_is_served() {
    let device = Arc::new(MemoryDevice::new(40 << 20));
    let host = Host::of(device.clone());
    let mut peer = host.connect();
    let data = pattern(32 << 20);
    peer.write(12345, &data).ok();
    assert!(peer.read(12345, 32 << 20).ok() == data);
}

#[test]
fn block_status_reports_holes_in_order() {
    let device = Arc::new(MemoryDevice::new(4 << 20));
    let host = Host::of(device.clone());
    for (mode, config) in framings() {
        let mut peer = host.connect_with(config);
        if mode == ReplyMode::Simple {
            assert!(peer.negotiated().contexts.is_empty());
            continue;
        }
        peer.write(1 << 20, &pattern(1 << 20)).ok();
        let reply = peer.status(0, 4 << 20, CommandFlags::empty());
        let hole = Extent::HOLE | Extent::ZERO;
        let id = peer.negotiated().contexts[0].id;
        assert_eq!(
            extents(&reply, id),
            [(1 << 20, hole), (1 << 20, 0), (2 << 20, hole)]
        );
        let reply = peer.status(1 << 20, 3 << 20, CommandFlags::REQ_ONE);
        assert_eq!(extents(&reply, id), [(1 << 20, 0)]);
    }
}

fn extents(reply: &Reply, context: u32) -> Vec<(u64, u64)> {
    assert_eq!(reply.error, None);
    assert_eq!(reply.extents.len(), 1);
    assert_eq!(reply.extents[0].0, context);
    let extents = reply.extents[0].1.iter();
    extents
        .map(|extent| (extent.length, extent.flags))
        .collect()
}

#[test]
fn a_read_only_server_refuses_writes_and_stays_in_step() {
    let options = options(|options| options.read_only = true);
    let device = probe(SIZE);
    let host = Host::with(device.clone(), options);
    let mut peer = host.connect();
    let flags = peer.negotiated().export.flags;
    assert!(flags.contains(TransmissionFlags::READ_ONLY));
    assert_eq!(peer.read(0, 100).ok(), pattern(100));
    drop(peer);
    assert_eq!(device.contents(), pattern(SIZE));
}

#[test]
fn the_export_is_found_under_its_name_only() {
    let host = Host::of_exports(
        Arc::new(blockferry_server::SingleExport::new(probe(4096)).named("disk")),
        ServerOptions::default(),
    );
    let named = |export: &str| {
        let mut config = ClientConfig::default();
        config.export = export.to_owned();
        host.handshake(config)
    };
    assert!(matches!(named(""), Ok(Outcome::Transmit(_))));
    assert!(matches!(named("disk"), Ok(Outcome::Transmit(_))));
    let refused = named("other").expect_err("no such export");
    assert!(refused.contains("no such export"), "{refused}");
    host.wait_for_event("OpenFailed");
}

#[test]
fn exports_are_listed_with_their_details() {
    let host = Host::of(probe(12345));
    let mut config = ClientConfig::default();
    config.goal = blockferry_proto::Goal::List;
    let outcome = host.handshake(config);
    let Ok(Outcome::List(list)) = outcome else {
        panic!("the list came to {outcome:?}");
    };
    assert_eq!(list.exports.len(), 1);
    let info = list.exports[0].info.as_ref().expect("details");
    assert_eq!(info.export.size, 12345);
    assert_eq!(info.contexts[0].name, "base:allocation");
}

#[test]
fn a_device_that_cannot_be_read_names_its_reason() {
    let device = Probe::new(&pattern(SIZE)).described(|info| info.size += 4096);
    let host = Host::of(Arc::new(device));
    let mut peer = host.connect();
    // The glass promises more than the memory behind it has.
    let reply = peer.read(SIZE as u64 - 10, 20);
    let error = reply.error.expect("an error");
    assert_eq!(error.errno, Errno::EINVAL);
    assert!(error.message.expect("a message").contains("out of bounds"));
    assert_eq!(peer.read(0, 10).ok(), pattern(10));
    host.wait_for_event("RequestFailed");
}

#[test]
fn two_connections_see_each_other_through_one_device() {
    let device: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(SIZE as u64));
    let host = Host::of(device);
    let (mut one, mut two) = (host.connect(), host.connect());
    one.write(100, b"from one").ok();
    assert_eq!(two.read(100, 8).ok(), b"from one");
}
