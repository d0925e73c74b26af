//! Devices that fail, lie, or are files whose pages are sent without a copy.

use std::{
    fs::File,
    io::Read,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use blockferry_block::{
    Access, BlockDevice, BoxFuture, Buffer, ByteRange, DeviceInfo, ErrorKind, FileDevice, Mapping,
    MemoryDevice, Operation, Result,
    testing::{Fault, FaultyDevice, Rule, answers},
};
use blockferry_proto::{ClientConfig, Command, CommandFlags, Errno, ReplyMode};

use crate::{
    peer::{Host, Peer},
    probe::pattern,
};

const SIZE: usize = 1 << 20;

/// Bytes of the files.
const FILE: usize = 2 << 20;

fn memory() -> Arc<dyn BlockDevice> {
    Arc::new(MemoryDevice::from_bytes(pattern(SIZE)))
}

#[test]
fn each_kind_of_failure_has_its_number() {
    for (kind, errno) in [
        (ErrorKind::Io, Errno::EIO),
        (ErrorKind::ConnectionLost, Errno::EIO),
        (ErrorKind::UnexpectedEnd, Errno::EIO),
        (ErrorKind::ReadOnly, Errno::EPERM),
        (ErrorKind::NotPermitted, Errno::EPERM),
        (ErrorKind::OutOfMemory, Errno::ENOMEM),
        (ErrorKind::InvalidInput, Errno::EINVAL),
        (ErrorKind::NoSpace, Errno::ENOSPC),
        (ErrorKind::OutOfBounds, Errno::ENOSPC),
        (ErrorKind::ShuttingDown, Errno::ESHUTDOWN),
    ] {
        let rule = Rule::on(Operation::Write)
            .times(1)
            .fault(Fault::Error(kind));
        let host = Host::of(Arc::new(FaultyDevice::new(memory()).with(rule)));
        let mut peer = host.connect();
        let reply = peer.write(512, b"lost");
        let error = reply.error.expect("an error");
        assert_eq!(error.errno, errno);
        assert!(error.message.expect("a message").contains("offset 512"));
        peer.write(512, b"kept").ok();
        assert_eq!(peer.read(512, 4).ok(), b"kept");
    }
}

#[test]
fn a_device_that_dies_takes_no_other_connection_with_it() {
    let device = Arc::new(FaultyDevice::new(memory()).dying_after(100_000));
    let host = Host::of(device.clone());
    let (mut one, mut two) = (host.connect(), host.connect());
    let reads: Vec<_> = (0..40)
        .map(|_| one.submit(Command::Read, CommandFlags::empty(), (0, 4096), &[]))
        .collect();
    let failed = reads
        .into_iter()
        .filter(|read| one.wait(*read).error.is_some())
        .count();
    assert_eq!(failed, 40 - 100_000 / 4096);
    assert_eq!(two.flush().errno(), Some(Errno::EIO));
    device.heal();
    assert_eq!(two.read(0, 10).ok(), pattern(10));
}

#[test]
fn a_failed_flush_is_no_success() {
    let rule = Rule::on(Operation::Flush)
        .times(1)
        .fault(Fault::Error(ErrorKind::Io));
    let host = Host::of(Arc::new(FaultyDevice::new(memory()).with(rule)));
    let mut peer = host.connect();
    assert_eq!(peer.flush().errno(), Some(Errno::EIO));
    peer.flush().ok();
}

#[test]
fn whatever_a_device_says_of_its_extents_the_answer_obeys_the_protocol() {
    for (lie, may_fail) in [
        (answers::short as fn(ByteRange) -> _, false),
        (answers::empty, true),
        (answers::of_no_length, true),
        (answers::endless, false),
        (answers::overlapping, false),
        (answers::with_gap, false),
        (answers::backwards, false),
    ] {
        let rule = Rule::on(Operation::Extents).fault(Fault::Extents(lie));
        let host = Host::of(Arc::new(FaultyDevice::new(memory()).with(rule)));
        let mut peer = host.connect();
        for flags in [CommandFlags::empty(), CommandFlags::REQ_ONE] {
            // The client's side refuses an answer that breaks a rule.
            let reply = peer.status(1000, 600_000, flags);
            match reply.errno() {
                None => assert!(!reply.extents[0].1.is_empty()),
                Some(errno) => assert!(may_fail && errno == Errno::EIO),
            }
        }
        assert_eq!(peer.read(0, 10).ok(), pattern(10));
    }
}

/// A file of `length` bytes of [`pattern`], and its path.
fn file(directory: &Path, length: usize) -> (File, PathBuf) {
    let path = directory.join("image");
    std::fs::write(&path, pattern(length)).expect("a file");
    let file = File::options().write(true).open(&path).expect("a file");
    (file, path)
}

fn framings() -> [(ReplyMode, ClientConfig); 3] {
    crate::commands::framings()
}

#[test]
fn a_file_is_read_byte_for_byte_at_every_size() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_, path) = file(directory.path(), FILE);
    let expected = pattern(FILE);
    let device = FileDevice::open(&path, Access::ReadOnly).expect("a device");
    let host = Host::of(Arc::new(device));
    for (_, config) in framings() {
        let mut peer = host.connect_with(config);
        let ranges = [
            (0, FILE as u64),
            (1, FILE as u64 - 1),
            (4095, 65_536),
            (100, 65_535),
            (0, 1),
            (1 << 20, 500_000),
            (FILE as u64 - 65_537, 65_537),
        ];
        let reads: Vec<_> = ranges
            .into_iter()
            .cycle()
            .take(50)
            .map(|range| {
                (
                    range,
                    peer.submit(Command::Read, CommandFlags::empty(), range, &[]),
                )
            })
            .collect();
        for ((offset, length), cookie) in reads {
            let start = usize::try_from(offset).expect("an offset");
            let end = start + usize::try_from(length).expect("a length");
            assert!(peer.wait(cookie).ok() == expected[start..end]);
        }
    }
}

#[test]
fn what_was_written_to_a_file_is_read_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_, path) = file(directory.path(), 1 << 20);
    let device = FileDevice::open(&path, Access::ReadWrite).expect("a device");
    let host = Host::of(Arc::new(device));
    let mut peer = host.connect();
    for round in 0..10u8 {
        let data = vec![round; 300_000];
        peer.write(70_000, &data).ok();
        assert!(peer.read(70_000, 300_000).ok() == data);
    }
    assert_eq!(peer.read(0, 100).ok(), pattern(100));
}

/// Reads of a file that is cut off while their answers are on the way.
fn cut_off(
    host: &Host,
    config: ClientConfig,
    image: &File,
) -> (Peer, Vec<blockferry_proto::Cookie>) {
    let mut peer = host.connect_with(config);
    let reads = (0..64)
        .map(|_| peer.submit(Command::Read, CommandFlags::empty(), (0, FILE as u64), &[]))
        .collect();
    image.set_len(0).expect("a shorter file");
    (peer, reads)
}

#[test]
fn a_file_that_is_cut_off_while_it_is_sent_is_an_error_and_the_stream_stays_in_step() {
    let expected = pattern(FILE);
    for (mode, config) in framings() {
        if mode == ReplyMode::Simple {
            continue;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let (image, path) = file(directory.path(), FILE);
        let device = FileDevice::open(&path, Access::ReadOnly).expect("a device");
        let host = Host::of(Arc::new(device));
        let (mut peer, reads) = cut_off(&host, config, &image);
        let mut failed = 0;
        for read in reads {
            let reply = peer.wait(read);
            match reply.errno() {
                // It was on its way before.
                None => assert!(reply.data == expected),
                Some(errno) => {
                    assert_eq!(errno, Errno::EIO);
                    failed += 1;
                }
            }
        }
        assert!(failed > 0);
        image.write_all_at(&expected, 0).expect("the file again");
        assert!(peer.read(0, 1 << 20).ok() == expected[..1 << 20]);
    }
}

/// A file whose bytes are said to be elsewhere at some time.
struct Moving {
    file: FileDevice,
    is_moved: AtomicBool,
}

impl BlockDevice for Moving {
    fn info(&self) -> &DeviceInfo {
        self.file.info()
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        self.file.read(offset, buffer)
    }

    fn mapping(&self, range: ByteRange) -> Mapping<'_> {
        match self.is_moved.load(Ordering::Acquire) {
            true => Mapping::Opaque,
            false => self.file.mapping(range),
        }
    }
}

#[test]
fn what_is_written_elsewhere_does_not_disturb_the_answers_on_their_way() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_image, path) = file(directory.path(), FILE);
    let device = Arc::new(Moving {
        file: FileDevice::open(&path, Access::ReadOnly).expect("a device"),
        is_moved: AtomicBool::new(false),
    });
    let host = Host::of(device.clone());
    for (_, config) in framings() {
        device.is_moved.store(false, Ordering::Release);
        let mut peer = host.connect_with(config);
        let all = (0, FILE as u64);
        let mut submit = || peer.submit(Command::Read, CommandFlags::empty(), all, &[]);
        let first = submit();
        let reads: Vec<_> = (0..16).map(|_| submit()).collect();
        // The first answer is there, so others are on their way: the socket holds less than one.
        assert!(peer.wait(first).ok() == pattern(FILE));
        device.is_moved.store(true, Ordering::Release);
        for read in reads {
            assert!(peer.wait(read).ok() == pattern(FILE));
        }
    }
}

#[test]
fn a_simple_reply_that_cannot_be_finished_ends_the_connection() {
    let directory = tempfile::tempdir().expect("a directory");
    let (image, path) = file(directory.path(), FILE);
    let device = FileDevice::open(&path, Access::ReadOnly).expect("a device");
    let host = Host::of(Arc::new(device));
    let [(_, simple), ..] = framings();
    let (peer, _) = cut_off(&host, simple, &image);
    let mut socket = &peer.socket;
    let expected = pattern(FILE);
    let (mut header, mut data) = ([0; 16], Vec::new());
    let mut complete = 0;
    for _ in 0..64 {
        if socket.read_exact(&mut header).is_err() {
            break;
        }
        if header[4..8] != [0; 4] {
            assert_eq!(header[4..8], Errno::EIO.0.to_be_bytes());
            continue;
        }
        data.clear();
        let _ = socket.take(FILE as u64).read_to_end(&mut data);
        // Never a byte that the file did not have.
        assert!(data == expected[..data.len()]);
        complete += usize::from(data.len() == FILE);
    }
    assert!(complete < 64);
}
