//! Descriptors as byte streams: pipes whose ends come and go, files, character devices.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    thread,
};

use blockferry_block::{
    Buffer, ByteSink, ByteSource, ErrorKind, FdSink, FdSource, Operation, PipeBuffer, PipePool,
};

fn pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = io::pipe().expect("a pipe");
    (reader.into(), writer.into())
}

#[tokio::test]
async fn a_buffer_is_filled_from_many_small_writes() {
    let (reader, writer) = pipe();
    let feeder = thread::spawn(move || {
        let mut writer = File::from(writer);
        for byte in 0..250_u8 {
            writer.write_all(&[byte; 3]).expect("written");
        }
    });
    let mut source = FdSource::new(reader, "-");
    let buffer = source.read(Buffer::zeroed(700)).await.expect("full");
    assert_eq!((buffer.len(), buffer[699]), (700, 233));
    let buffer = source.read(Buffer::zeroed(700)).await.expect("the rest");
    assert_eq!((buffer.len(), buffer[49]), (50, 249));
    let buffer = source.read(Buffer::zeroed(700)).await.expect("the end");
    assert!(buffer.is_empty());
    feeder.join().expect("fed");
}

#[tokio::test]
async fn a_descriptor_that_someone_made_non_blocking_is_waited_for() {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    ours.set_nonblocking(true).expect("set");
    let mut source = FdSource::new(ours.try_clone().expect("a copy"), "-");
    let mut sink = FdSink::new(ours, "-");
    let length = 4 << 20;
    let peer = thread::spawn(move || {
        let mut bytes = vec![0; length];
        theirs.read_exact(&mut bytes).expect("all of it");
        theirs.write_all(&bytes).expect("and back");
    });
    let data = Buffer::from(&vec![9; length][..]);
    sink.write(data).await.expect("written");
    let back = source.read(Buffer::zeroed(length)).await.expect("read");
    assert!(back.len() == length && back.iter().all(|byte| *byte == 9));
    peer.join().expect("the peer is done");
}

#[tokio::test]
async fn a_reader_that_goes_away_breaks_the_pipe() {
    let (reader, writer) = pipe();
    drop(reader);
    let mut sink = FdSink::new(writer, "stdout");
    let error = sink
        .write(Buffer::zeroed(10))
        .await
        .expect_err("nobody reads");
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    assert_eq!(error.operation(), Some(Operation::Write));
    assert_eq!(sink.name().as_ref(), "stdout");
}

#[tokio::test]
async fn a_flush_of_a_pipe_has_nothing_to_do() {
    let (_reader, writer) = pipe();
    FdSink::new(writer, "-")
        .flush()
        .await
        .expect("nothing to do");
}

#[tokio::test]
async fn a_file_is_read_and_written_from_its_position_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("stream");
    let mut file = File::create(&path).expect("a file");
    file.write_all(b"head ").expect("written");
    let mut sink = FdSink::new(file, "stream");
    for word in ["one ", "two"] {
        let written = sink.write(Buffer::from(word.as_bytes())).await;
        assert_eq!(written.expect("written")[..], *word.as_bytes());
    }
    sink.flush().await.expect("durable");
    assert_eq!(fs::read(&path).expect("read"), b"head one two");
    let mut file = File::open(&path).expect("a file");
    file.read_exact(&mut [0; 5]).expect("the head");
    let mut source = FdSource::new(file, "stream");
    let read = source.read(Buffer::zeroed(100)).await.expect("the rest");
    assert_eq!(read[..], *b"one two");
}

#[tokio::test]
async fn a_full_device_has_no_space() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full");
    let mut sink = FdSink::new(full.expect("opened"), "/dev/full");
    sink.write(Buffer::zeroed(0))
        .await
        .expect("nothing to write");
    let error = sink.write(Buffer::zeroed(512)).await.expect_err("full");
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert_eq!((error.offset(), error.length()), (Some(0), Some(512)));
}

#[tokio::test]
async fn an_endless_source_fills_every_buffer() {
    let mut source = FdSource::new(File::open("/dev/zero").expect("opened"), "/dev/zero");
    for length in [0, 1, 100_000] {
        let buffer = Buffer::from(&vec![1; length][..]);
        let buffer = source.read(buffer).await.expect("zeroes");
        assert!(buffer.len() == length && buffer.iter().all(|byte| *byte == 0));
    }
}

/// A pipe with `bytes` in it.
fn piped(bytes: &[u8]) -> PipeBuffer {
    let mut data = PipePool::new(1 << 20, 1).take().expect("a pipe");
    assert_eq!(data.put(bytes).expect("room"), bytes.len());
    data
}

#[tokio::test]
async fn what_is_in_a_pipe_goes_on_whole_to_any_kind_of_descriptor() {
    let bytes: Vec<u8> = (0..700_000_u32).map(|it| (it % 251) as u8).collect();

    let (reader, writer) = pipe();
    let reading = thread::spawn(move || {
        let mut bytes = Vec::new();
        File::from(reader)
            .read_to_end(&mut bytes)
            .expect("all of it");
        bytes
    });
    let mut sink = FdSink::new(writer, "-");
    assert!(sink.can_splice());
    sink.write(Buffer::from(&b"head"[..])).await.expect("taken");
    sink.write_piped(piped(&bytes)).await.expect("taken");
    drop(sink);
    let found = reading.join().expect("no panic");
    assert!(found[..4] == *b"head" && found[4..] == bytes);

    let mut file = tempfile::tempfile().expect("a file");
    let mut sink = FdSink::new(file.try_clone().expect("a copy"), "-");
    assert!(!sink.can_splice(), "the pages would be copied");
    sink.write_piped(piped(&bytes)).await.expect("taken");
    let mut found = Vec::new();
    file.rewind().expect("the start");
    file.read_to_end(&mut found).expect("all of it");
    assert!(found == bytes);

    for append in [false, true] {
        let mut options = File::options();
        let null = options.write(true).append(append).open("/dev/null");
        let mut sink = FdSink::new(null.expect("nowhere"), "-");
        assert!(sink.can_splice());
        sink.write_piped(piped(&bytes)).await.expect("swallowed");
    }
}

#[tokio::test]
async fn a_pipe_without_a_reader_is_broken_for_what_is_in_another_too() {
    let (reader, writer) = pipe();
    drop(reader);
    let mut sink = FdSink::new(writer, "-");
    let error = sink
        .write_piped(piped(b"in vain"))
        .await
        .expect_err("broken");
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    assert_eq!(error.operation(), Some(Operation::Write));
}
