//! The blocking client against a server that does as its script says.

mod support;

use blockferry_block::{ByteRange, Context, ErrorKind, Operation, Status, WriteFlags, ZeroFlags};
use blockferry_client::{ConnectOptions, blocking::Client};
use blockferry_proto::{BlockSizes, Command, Errno};
use support::{Script, Server, byte_at};

fn connect(server: &Server) -> Client {
    Client::connect_with(&server.uri(), &ConnectOptions::default()).expect("a connection")
}

#[test]
fn a_long_read_arrives_whole_whatever_the_order_of_the_answers() {
    for (structured, extended) in [(false, false), (true, false), (true, true)] {
        for (backwards, chunks) in [(1, 1), (4, 1), (8, 3)] {
            let server = Server::start(Script {
                structured,
                extended,
                backwards,
                chunks,
                ..Script::default()
            });
            let mut client = connect(&server);
            let mut buffer = vec![0; 3_000_001];
            client.read(1001, &mut buffer).expect("a read");
            let right = buffer
                .iter()
                .enumerate()
                .all(|(index, byte)| *byte == byte_at(1001 + index));
            assert!(
                right,
                "structured {structured}, extended {extended}, backwards {backwards}"
            );
            assert!(
                server.requests(Command::Read).len() > 8,
                "several are in flight"
            );
        }
    }
}

#[test]
fn requests_keep_to_the_servers_block_sizes() {
    let sizes = BlockSizes::new(512, 4096, 64 << 10).expect("good sizes");
    let server = Server::start(Script {
        block_sizes: Some(sizes),
        ..Script::default()
    });
    let mut client = connect(&server);
    client
        .write(512, &[9; 300 << 10], WriteFlags::empty())
        .expect("a write");
    let writes = server.requests(Command::Write);
    assert!(
        writes.iter().all(|request| request.length <= 64 << 10),
        "{writes:?}"
    );
    assert_eq!(
        writes.iter().map(|request| request.length).sum::<u64>(),
        300 << 10
    );
    let error = client
        .read(1, &mut [0; 512])
        .expect_err("out of step with the blocks");
    assert_eq!(
        (error.kind(), error.offset()),
        (ErrorKind::InvalidInput, Some(1))
    );
}

#[test]
fn every_command_reaches_the_server() {
    let server = Server::start(Script::default());
    let mut client = connect(&server);
    let range = ByteRange::new(4096, 8192).expect("a range");
    client
        .write(0, &[7; 5000], WriteFlags::FUA)
        .expect("a write");
    client.zero(range, ZeroFlags::NO_HOLE).expect("zeroes");
    client.trim(range, WriteFlags::empty()).expect("a trim");
    client.cache(range).expect("a cache");
    client.flush().expect("a flush");
    assert_eq!(server.memory()[..4096], [7; 4096]);
    assert_eq!(server.memory()[4096..12288], [0; 8192]);
    for command in [Command::Trim, Command::Cache, Command::Flush] {
        assert_eq!(server.requests(command).len(), 1, "{command:?}");
    }

    let extents = client
        .extents(range, &Context::Allocation)
        .expect("extents");
    let found: Vec<_> = extents
        .iter()
        .map(|it| (it.range.start(), it.status))
        .collect();
    assert_eq!(found, [(4096, Status::DATA), (8192, Status::HOLE_ZERO)]);
    let error = client
        .extents(range, &Context::AllocationDepth)
        .expect_err("not offered");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn a_refused_request_leaves_the_connection_usable() {
    let server = Server::start(Script {
        fails: |request| (request.offset == 1 << 20).then_some(Errno::EIO),
        ..Script::default()
    });
    let mut client = connect(&server);
    let mut buffer = vec![0; 3 << 20];
    let error = client.read(0, &mut buffer).expect_err("as the script says");
    assert_eq!(
        (error.kind(), error.operation(), error.offset()),
        (ErrorKind::Io, Some(Operation::Read), Some(1 << 20))
    );
    assert!(error.to_string().contains("as the script says"), "{error}");
    client
        .read(2 << 20, &mut buffer[..4096])
        .expect("the connection is well");
    assert_eq!(buffer[0], byte_at(2 << 20));
}

#[test]
fn a_dead_connection_stays_dead_with_a_transient_error() {
    let server = Server::start(Script {
        dies_at: Some(3),
        ..Script::default()
    });
    let mut client = connect(&server);
    let error = client.read(0, &mut vec![0; 3 << 20]).expect_err("death");
    assert!(
        error.is_transient() && error.offset().is_some(),
        "{error:?}"
    );
    assert!(error.to_string().contains("server.sock"), "{error}");
    assert!(client.flush().expect_err("still dead").is_transient());
}

#[test]
fn out_of_bounds_is_told_before_anything_is_sent() {
    let server = Server::start(Script::default());
    let mut client = connect(&server);
    let size = client.size();
    let error = client
        .read(size - 1, &mut [0; 2])
        .expect_err("past the end");
    assert_eq!(error.kind(), ErrorKind::OutOfBounds);
    let error = client
        .read(u64::MAX, &mut [0; 2])
        .expect_err("past everything");
    assert_eq!(error.kind(), ErrorKind::OutOfBounds);
    assert!(server.requests(Command::Read).is_empty());
    client.read(size, &mut []).expect("nothing is always there");
}
