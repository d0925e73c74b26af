//! The two clients of the library over TLS, with a real server.

use std::fs::{self, File};

use blockferry::{
    block::{BlockDevice, Buffer, Capabilities, Payload, PipePool, WriteFlags},
    client::{Client, ConnectOptions, blocking},
    proto::NbdUri,
};
use futures_util::future::{join, try_join_all};

use crate::support::{
    Peer,
    images::random_bytes,
    realm::{Realm, SIZE, secure},
};

/// `qemu-nbd` of an empty disk, and the way to it.
fn disk(realm: &Realm) -> (Peer, NbdUri) {
    let path = realm.path("disk.raw");
    let file = File::create(&path).expect("a file");
    file.set_len(SIZE).expect("room");
    let peer = realm.qemu_nbd(&path, "no");
    let uri = secure(&peer.uri(), &realm.trust());
    (peer, uri.parse().expect("a URI"))
}

#[test]
fn the_blocking_client_writes_and_reads_through_tls() {
    let realm = Realm::new();
    let (_peer, uri) = disk(&realm);
    let options = ConnectOptions::default();
    let mut client = blocking::Client::connect_with(&uri, &options).expect("a connection");
    assert!(client.negotiated().tls);
    let data = random_bytes(5_000_000, 3);
    client
        .write(777, &data, WriteFlags::empty())
        .expect("written");
    client.flush().expect("flushed");
    for (start, length) in [
        (0, 5_000_000),
        (1, 4_999_998),
        (300_000, 1),
        (70_000, 70_000),
    ] {
        let mut buffer = vec![0; length];
        client.read(777 + start as u64, &mut buffer).expect("read");
        assert!(buffer == data[start..start + length], "{start}, {length}");
    }
    let disk = fs::read(realm.path("disk.raw")).expect("it is there");
    assert!(disk[777..777 + data.len()] == data);
}

/// Writes `data` from `offset` on, in requests of `piece` bytes, all at once.
async fn write(client: &Client, offset: u64, data: &[u8], piece: usize) {
    let requests = data.chunks(piece).enumerate().map(|(index, part)| {
        let offset = offset + (index * piece) as u64;
        client.write(offset, Buffer::from(part), WriteFlags::empty())
    });
    try_join_all(requests).await.expect("written");
}

/// Reads `length` bytes from `offset` on, in requests of `piece` bytes, all at once.
async fn read(client: &Client, offset: u64, length: usize, piece: usize) -> Vec<u8> {
    let requests = (0..length).step_by(piece).map(|start| {
        let buffer = Buffer::zeroed(piece.min(length - start));
        client.read(offset + start as u64, buffer)
    });
    let buffers = try_join_all(requests).await.expect("read");
    buffers.iter().flat_map(|buffer| buffer.to_vec()).collect()
}

#[tokio::test]
async fn the_asynchronous_client_reads_and_writes_at_the_same_time_through_tls() {
    let realm = Realm::new();
    let (_peer, uri) = disk(&realm);
    let client = Client::connect(&uri, &ConnectOptions::default()).await;
    let client = client.expect("a connection");
    let (left, right) = (random_bytes(4 << 20, 1), random_bytes(4 << 20, 2));
    let middle = left.len() as u64;
    write(&client, 0, &left, 100_000).await;
    for (reads, writes) in [(4096, 262_144), (262_144, 4096), (65_536, 65_536)] {
        let (arrived, ()) = join(
            read(&client, 0, left.len(), reads),
            write(&client, middle, &right, writes),
        )
        .await;
        assert!(arrived == left, "{reads}, {writes}");
        let written = read(&client, middle, right.len(), 1 << 20).await;
        assert!(written == right, "{reads}, {writes}");
        write(&client, middle, &vec![0; right.len()], 1 << 20).await;
    }
    client.disconnect().await;
}

#[tokio::test]
async fn what_goes_through_tls_is_not_spliced() {
    let realm = Realm::new();
    let (_peer, uri) = disk(&realm);
    let client = Client::connect(&uri, &ConnectOptions::default()).await;
    let client = client.expect("a connection");
    let splicing = Capabilities::SPLICE_READ | Capabilities::SPLICE_WRITE;
    assert!(!client.info().capabilities.intersects(splicing));
    // Who tries anyway is served from memory.
    let data = random_bytes(200_000, 5);
    write(&client, 4096, &data, data.len()).await;
    let pipes = PipePool::new(1 << 20, 2);
    let pipe = pipes.take().expect("a pipe");
    let payload = client.read_piped(4096, data.len(), pipe).await;
    match payload.expect("read") {
        Payload::Memory(buffer) => assert!(*buffer == *data),
        Payload::Piped(pipe) => panic!("it was spliced: {pipe:?}"),
    }
    let mut pipe = pipes.take().expect("a pipe");
    let filled = pipe.fill_with_zeroes(65_536).expect("room");
    assert_eq!(filled, 65_536);
    let written = client.write_piped(4096, pipe, WriteFlags::empty()).await;
    written.expect("written");
    let zeroes = read(&client, 4096, 65_536, 65_536).await;
    assert!(zeroes.iter().all(|byte| *byte == 0));
}
