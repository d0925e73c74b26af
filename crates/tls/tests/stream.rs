//! Two streams of TLS, joined in memory by a narrow pipe, and peers that do not do as they should.

mod support;

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use blockferry_tls::{
    Certificates, ClientOptions, ClientTls, Error, ErrorKind, Role, TlsStream, Verification,
};
use proptest::prelude::*;
use rcgen::{DnType, ExtendedKeyUsagePurpose};
use tokio::{
    io::{
        AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex, split,
    },
    task::JoinHandle,
};

use support::Realm;

const LIMIT: Duration = Duration::from_secs(10);

type Pair = (TlsStream<DuplexStream>, TlsStream<DuplexStream>);

/// Certificates that all tests share that need no others.
fn realm() -> &'static Realm {
    static REALM: OnceLock<Realm> = OnceLock::new();
    REALM.get_or_init(|| Realm::new("authority"))
}

/// A client and a server over a pipe that holds so many bytes each way.
async fn pair(room: usize) -> Pair {
    let (near, far) = duplex(room);
    let server = realm().server(Verification::Off).session().expect("good");
    let server = TlsStream::handshake(far, server, LIMIT);
    let client = TlsStream::handshake(near, realm().client(), LIMIT);
    let (client, server) = tokio::join!(client, server);
    (client.expect("a client"), server.expect("a server"))
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 7 % 251) as u8).collect()
}

/// Reads to the end, in portions of these sizes again and again.
async fn read_all(reader: &mut (impl AsyncRead + Unpin), sizes: &[usize]) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    for size in sizes.iter().cycle() {
        let mut portion = vec![0; *size];
        match reader.read(&mut portion).await? {
            0 => break,
            count => all.extend_from_slice(&portion[..count]),
        }
    }
    Ok(all)
}

/// Writes in portions of these sizes, with a flush at the end and after every third one, and shuts down.
async fn write_all(
    writer: &mut (impl AsyncWrite + Unpin),
    mut data: &[u8],
    sizes: &[usize],
) -> io::Result<()> {
    for (index, size) in sizes.iter().cycle().enumerate() {
        if data.is_empty() {
            break;
        }
        let count = writer.write(&data[..data.len().min(*size)]).await?;
        data = &data[count..];
        if index % 3 == 2 {
            writer.flush().await?;
        }
    }
    writer.shutdown().await
}

/// Writes and reads at the same time, in tasks of their own.
fn talk(
    stream: TlsStream<DuplexStream>,
    data: Vec<u8>,
    sizes: Vec<usize>,
) -> (JoinHandle<io::Result<Vec<u8>>>, JoinHandle<io::Result<()>>) {
    let (mut reader, mut writer) = split(stream);
    let reads = sizes.iter().rev().copied().collect::<Vec<_>>();
    let reader = tokio::spawn(async move { read_all(&mut reader, &reads).await });
    let writer = tokio::spawn(async move { write_all(&mut writer, &data, &sizes).await });
    (reader, writer)
}

fn in_a_runtime<T>(task: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
        .block_on(task)
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    let size = prop_oneof![1..20_usize, 1000..20_000_usize, 100_000..400_000_usize];
    prop::collection::vec(size, 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_byte_arrives_both_ways_in_portions_of_any_size_through_pipes_of_any_size(
        room in prop_oneof![1..100_usize, 1000..100_000_usize],
        lengths in (0..300_000_usize, 0..300_000_usize),
        portions in (sizes(), sizes()),
    ) {
        // Tiny portions of much data take long and show nothing more.
        let smallest = *portions.0.iter().chain(&portions.1).min().expect("at least one");
        let most = smallest.min(room).saturating_mul(10_000);
        let (up, down) = (bytes(lengths.0.min(most)), bytes(lengths.1.min(most)));
        in_a_runtime(async {
            let (client, server) = pair(room).await;
            let client = talk(client, up.clone(), portions.0);
            let server = talk(server, down.clone(), portions.1);
            client.1.await.expect("no panic").expect("written");
            server.1.await.expect("no panic").expect("written");
            assert!(server.0.await.expect("no panic").expect("read") == up);
            assert!(client.0.await.expect("no panic").expect("read") == down);
        });
    }
}

/// Carries what comes from `from` to `to`; from the moment that `withhold` is true, all but the last `short` bytes.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    withhold: &AtomicBool,
    short: usize,
) {
    let mut kept = Vec::new();
    let mut buffer = vec![0; 4096];
    loop {
        let count = from.read(&mut buffer).await.expect("a pipe");
        if count == 0 {
            break;
        }
        kept.extend_from_slice(&buffer[..count]);
        if !withhold.load(Ordering::Relaxed) {
            to.write_all(&kept).await.expect("a pipe");
            kept.clear();
        }
    }
    let most = kept.len().saturating_sub(short);
    to.write_all(&kept[..most]).await.expect("a pipe");
    to.shutdown().await.expect("a pipe");
}

/// What a client makes of a server's 1000 bytes and end, when the last `short` bytes of them do not arrive.
async fn cut(short: usize) -> (Vec<u8>, io::Result<usize>) {
    let ((client, near), (far, server)) = (duplex(1 << 16), duplex(1 << 16));
    let withhold = Arc::new(AtomicBool::new(false));
    let (near_reader, near_writer) = split(near);
    let (far_reader, far_writer) = split(far);
    let flag = Arc::clone(&withhold);
    tokio::spawn(async move { carry(far_reader, near_writer, &flag, short).await });
    tokio::spawn(async move { carry(near_reader, far_writer, &AtomicBool::new(false), 0).await });
    let session = realm().server(Verification::Off).session().expect("good");
    let server = tokio::spawn(async move {
        let mut server = TlsStream::handshake(server, session, LIMIT)
            .await
            .expect("a handshake");
        withhold.store(true, Ordering::Relaxed);
        server.write_all(&bytes(1000)).await.expect("room");
        server.shutdown().await.expect("room");
        server
    });
    let client = TlsStream::handshake(client, realm().client(), LIMIT).await;
    let mut client = client.expect("a handshake");
    drop(server.await.expect("no panic"));
    let mut all = Vec::new();
    let end = client.read_to_end(&mut all).await;
    (all, end)
}

#[tokio::test(start_paused = true)]
async fn what_was_cut_off_anywhere_never_looks_whole() {
    let (all, end) = cut(0).await;
    assert_eq!(end.expect("whole"), 1000);
    assert!(all == bytes(1000));
    for short in (1..60).chain([500, 1000, 1020, 1050, 100_000]) {
        let (all, end) = cut(short).await;
        let error = end.expect_err("an end that nobody said");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{short}");
        assert_eq!(error.to_string(), "the connection was cut");
        assert!(bytes(1000).starts_with(&all), "{short}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_dropped_looks_cut_to_its_peer() {
    let (mut client, mut server) = pair(1 << 16).await;
    server.write_all(b"half a message").await.expect("room");
    drop(server);
    let mut all = Vec::new();
    let error = client.read_to_end(&mut all).await.expect_err("no end");
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(all, b"half a message");
    let again = client.read(&mut [0; 10]).await.expect_err("still none");
    assert_eq!(again.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test(start_paused = true)]
async fn either_way_ends_alone_and_the_other_goes_on() {
    for (mut one, mut other) in [pair(100).await, {
        let (client, server) = pair(100).await;
        (server, client)
    }] {
        let question = tokio::spawn(async move {
            one.write_all(b"the question").await?;
            one.shutdown().await?;
            let refused = one.write(b"more").await.expect_err("it has ended");
            assert_eq!(refused.kind(), io::ErrorKind::BrokenPipe);
            one.shutdown().await?;
            let mut answer = Vec::new();
            one.read_to_end(&mut answer).await?;
            assert_eq!(one.read(&mut [0; 10]).await?, 0);
            Ok::<_, io::Error>(answer)
        });
        let mut heard = Vec::new();
        other.read_to_end(&mut heard).await.expect("an end");
        assert_eq!(heard, b"the question");
        assert_eq!(other.read(&mut [0; 10]).await.expect("still the end"), 0);
        other.write_all(&bytes(100_000)).await.expect("room");
        other.shutdown().await.expect("room");
        let answer = question.await.expect("no panic").expect("an answer");
        assert!(answer == bytes(100_000));
    }
}

#[tokio::test(start_paused = true)]
async fn the_stream_below_ends_when_the_one_above_does() {
    let (near, mut far) = duplex(1 << 16);
    let client = TlsStream::handshake(near, realm().client(), LIMIT);
    let server = async {
        // Nobody is asked for an end of their own.
        let session = realm().server(Verification::Off).session().expect("good");
        TlsStream::handshake(&mut far, session, LIMIT)
            .await
            .map(drop)
    };
    let (client, server) = tokio::join!(client, server);
    server.expect("a server");
    client.expect("a client").shutdown().await.expect("room");
    let mut rest = Vec::new();
    far.read_to_end(&mut rest).await.expect("an end");
    // A record of an alert is short, and whole.
    assert!(
        matches!(rest.as_slice(), [0x17 | 0x15, 3, 3, 0, _, ..]),
        "{rest:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_given_up_leaves_nothing_behind() {
    let (mut client, mut server) = pair(50).await;
    let mut cx = Context::from_waker(Waker::noop());
    let mut taken = Vec::new();
    let mut waits = false;
    for round in 0..100_u8 {
        let data = vec![round; 10_000];
        match Pin::new(&mut client).poll_write(&mut cx, &data) {
            Poll::Ready(count) => taken.extend_from_slice(&data[..count.expect("room")]),
            Poll::Pending => {
                waits = true;
                break;
            }
        }
    }
    assert!(
        waits && taken.len() < 1_000_000,
        "{} bytes wait",
        taken.len()
    );
    taken.extend_from_slice(b"something else");
    let writer = tokio::spawn(async move {
        client.write_all(b"something else").await?;
        client.shutdown().await
    });
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).await.expect("an end");
    assert!(heard == taken);
    writer.await.expect("no panic").expect("written");
}

#[tokio::test(start_paused = true)]
async fn a_read_that_was_given_up_loses_nothing() {
    let (mut client, mut server) = pair(50).await;
    let writer = tokio::spawn(async move { write_all(&mut server, &bytes(50_000), &[7000]).await });
    let mut heard = Vec::new();
    loop {
        let mut room = [0; 5000];
        let mut buffer = ReadBuf::new(&mut room);
        let once = poll_fn(|cx| Poll::Ready(Pin::new(&mut client).poll_read(cx, &mut buffer)));
        match once.await {
            Poll::Pending => tokio::task::yield_now().await,
            Poll::Ready(read) => {
                read.expect("honest");
                if buffer.filled().is_empty() {
                    break;
                }
                heard.extend_from_slice(buffer.filled());
            }
        }
    }
    assert!(heard == bytes(50_000));
    writer.await.expect("no panic").expect("written");
}

#[tokio::test(start_paused = true)]
async fn what_waits_to_be_sent_leaves_while_its_writer_reads() {
    let (mut client, mut server) = pair(50).await;
    // Nobody flushes: the question is longer than the pipe.
    let question = client.write(&bytes(5000)).await.expect("room");
    let answer = tokio::spawn(async move {
        let mut heard = vec![0; question];
        server.read_exact(&mut heard).await?;
        server.write_all(&heard).await?;
        server.shutdown().await
    });
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).await.expect("an answer");
    assert!(heard == bytes(question));
    answer.await.expect("no panic").expect("written");
}

#[tokio::test(start_paused = true)]
async fn both_talk_at_once_through_the_narrowest_pipe_in_a_handshake() {
    let (mut client, mut server) = pair(1).await;
    let write = async {
        client.write_all(b"a message").await?;
        client.flush().await
    };
    let mut heard = [0; 9];
    let (written, read) = tokio::join!(write, server.read_exact(&mut heard));
    written.expect("written");
    read.expect("read");
    assert_eq!(&heard, b"a message");
}

#[tokio::test(start_paused = true)]
async fn reading_into_no_room_and_writing_nothing_do_not_wait() {
    let (mut client, _server) = pair(50).await;
    assert_eq!(client.read(&mut []).await.expect("nothing"), 0);
    assert_eq!(client.write(&[]).await.expect("nothing"), 0);
}

/// What a server says of a client that sends `words`, and then ends or keeps silent.
async fn as_server(words: &[u8], ends: bool) -> Error {
    let (mut near, far) = duplex(1 << 16);
    near.write_all(words).await.expect("room");
    if ends {
        near.shutdown().await.expect("room");
    }
    let session = realm().server(Verification::Off).session().expect("good");
    let end = TlsStream::handshake(far, session, LIMIT).await;
    end.map(drop).expect_err("no TLS")
}

/// What a client says of a server that sends `words`, and then ends or keeps silent.
async fn as_client(words: &[u8], ends: bool) -> Error {
    let (near, mut far) = duplex(1 << 16);
    far.write_all(words).await.expect("room");
    if ends {
        far.shutdown().await.expect("room");
    }
    let end = TlsStream::handshake(near, realm().client(), LIMIT).await;
    end.map(drop).expect_err("no TLS")
}

#[tokio::test(start_paused = true)]
async fn peers_that_speak_no_tls_are_told_apart() {
    // The start of a record with a ClientHello in it.
    let hello = [0x16, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3];
    for (words, ends, text) in [
        (&b""[..], true, "the client hung up without a TLS handshake"),
        (
            b"",
            false,
            "the client did not begin its TLS handshake in 10 s",
        ),
        (&hello, true, "the client hung up in the TLS handshake"),
        (
            &hello,
            false,
            "the client did not finish its TLS handshake in 10 s",
        ),
        (
            b"GET / HTTP/1.1\r\n\r\n",
            false,
            "the client sent plaintext",
        ),
        (b"GET / HTTP/1.1\r\n\r\n", true, "the client sent plaintext"),
    ] {
        let error = as_server(words, ends).await;
        assert!(error.to_string().contains(text), "{words:?}: {error}");
    }
    for (words, ends, text) in [
        (&b""[..], true, "the connection was cut"),
        (
            b"",
            false,
            "the server did not begin its TLS handshake in 10 s",
        ),
        (&[0x16, 3, 3, 0, 100, 2], true, "the connection was cut"),
        (&[0x16, 3, 3, 0, 100, 2], false, "the server did not finish"),
        (
            b"220 mail.example.org ESMTP\r\n",
            false,
            "the server does not answer in TLS",
        ),
        (
            b"220 mail.example.org ESMTP\r\n",
            true,
            "the server does not answer in TLS",
        ),
    ] {
        let error = as_client(words, ends).await;
        assert!(error.to_string().contains(text), "{words:?}: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_refused_hears_why() {
    let (near, far) = duplex(1 << 16);
    let stranger = Realm::new("another authority");
    let session = realm().server(Verification::Off).session().expect("good");
    let server = TlsStream::handshake(far, session, LIMIT);
    let client = TlsStream::handshake(near, stranger.client(), LIMIT);
    let (client, server) = tokio::join!(client, server);
    let error = client.map(drop).expect_err("it is not trusted");
    assert_eq!(error.kind(), ErrorKind::Untrusted, "{error}");
    let error = server.map(drop).expect_err("it is not trusted");
    assert_eq!(error.kind(), ErrorKind::Rejected, "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_was_tampered_with_is_an_error_and_not_data() {
    let ((client, near), (far, server)) = (duplex(1 << 16), duplex(1 << 16));
    let (mut near_reader, mut near_writer) = split(near);
    let (mut far_reader, mut far_writer) = split(far);
    let session = realm().server(Verification::Off).session().expect("good");
    let server = tokio::spawn(TlsStream::handshake(server, session, LIMIT));
    let tamper = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&tamper);
    tokio::spawn(async move {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = far_reader.read(&mut buffer).await.expect("a pipe");
            if flag.load(Ordering::Relaxed) && count > 10 {
                buffer[10] ^= 1;
            }
            if count == 0 || near_writer.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
    });
    tokio::spawn(async move { tokio::io::copy(&mut near_reader, &mut far_writer).await });
    let client = TlsStream::handshake(client, realm().client(), LIMIT).await;
    let mut client = client.expect("a client");
    let mut server = server.await.expect("no panic").expect("a server");
    tamper.store(true, Ordering::Relaxed);
    server.write_all(b"a message").await.expect("room");
    for _ in 0..2 {
        let error = client
            .read(&mut [0; 100])
            .await
            .expect_err("not what was sent");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let source = error
            .get_ref()
            .and_then(|source| source.downcast_ref::<Error>());
        let by = source.expect("an error of TLS");
        assert!(
            matches!(
                by,
                Error::Protocol {
                    by: Role::Server,
                    ..
                }
            ),
            "{by}"
        );
    }
    // The server hears of it.
    let error = server.read(&mut [0; 100]).await.expect_err("an alert");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

#[tokio::test(start_paused = true)]
async fn a_server_knows_the_name_it_was_asked_for_and_who_asked() {
    let (client, server) = pair(1 << 16).await;
    assert_eq!(client.facts().version, Some("TLSv1.3"));
    let facts = server.facts();
    assert_eq!(facts.version, Some("TLSv1.3"));
    assert!(
        facts.cipher.is_some_and(|name| name.starts_with("TLS_")),
        "{facts:?}"
    );
    assert_eq!(facts.server_name.as_deref(), Some("localhost"));
    assert_eq!((facts.certificate, facts.alpn), (None, None));

    let realm = Realm::new("authority");
    realm.sign("client", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params
            .distinguished_name
            .push(DnType::CommonName, "somebody");
    });
    let (near, far) = duplex(1 << 16);
    let session = realm.server(Verification::On).session().expect("good");
    let server = TlsStream::handshake(far, session, LIMIT);
    let client = TlsStream::handshake(near, realm.client(), LIMIT);
    let (client, server) = tokio::join!(client, server);
    client.expect("a client");
    let certificate = server.expect("a server").facts().certificate;
    let name = certificate.expect("it was shown").common_name;
    assert!(name.is_some(), "{name:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_shows_what_is_in_its_files_when_it_connects() {
    let realm = Realm::new("authority");
    let directory = Certificates::Directory(realm.room.path().to_owned());
    let tls = ClientTls::new(ClientOptions::new("localhost", directory));
    tls.check()
        .expect("it has nothing to show, which is not a fault");
    let server = realm.server(Verification::On);
    let meet = async || {
        let (near, far) = duplex(1 << 16);
        let server = TlsStream::handshake(far, server.session().expect("good"), LIMIT);
        let client = TlsStream::handshake(near, tls.session().expect("good"), LIMIT);
        let (_client, server) = tokio::join!(client, server);
        server.map(|server| server.facts().certificate.is_some())
    };
    let error = meet().await.expect_err("no certificate");
    assert!(matches!(error, Error::NoCertificate), "{error}");
    realm.sign("client", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    for _ in 0..2 {
        assert!(meet().await.expect("it has one by now"));
    }
    std::fs::write(realm.path("client-key.pem"), "nonsense").expect("room");
    let error = tls.check().expect_err("nonsense");
    assert_eq!(error.kind(), ErrorKind::Configuration, "{error}");
}
