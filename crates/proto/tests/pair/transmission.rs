//! Random requests, answered in random pieces and order, cut anywhere, against a model of the
//! disk.

use std::collections::HashMap;

use blockferry_proto::{
    Command, CommandFlags, Cookie, Errno, ExportInfo, Extent, HandshakeFlags, HandshakeStyle,
    MetaContext, Negotiated, Request, TransmissionFlags,
};
use proptest::prelude::*;

use crate::sides::{Client, MODES, Server, Tape, extents};

/// Bytes that the client believes the disk to have, and that it has: the rest is refused.
const ADVERTISED: usize = 16 << 10;
const ACTUAL: usize = 12 << 10;

const CONTEXTS: [u32; 2] = [1, 2];

fn negotiated(mode: usize) -> Negotiated {
    let mode = MODES[mode];
    let context = |id: u32| MetaContext {
        id,
        name: format!("x:{id}"),
    };
    Negotiated {
        export_name: "disk".to_owned(),
        export: ExportInfo {
            name: None,
            description: None,
            size: ADVERTISED as u64,
            flags: TransmissionFlags::all() - TransmissionFlags::READ_ONLY,
            block_sizes: None,
        },
        mode,
        contexts: if mode.is_chunked() {
            CONTEXTS.map(context).to_vec()
        } else {
            Vec::new()
        },
        tls: false,
        style: HandshakeStyle::FixedNew,
        handshake_flags: HandshakeFlags::all(),
    }
}

#[derive(Clone, Debug)]
struct Op {
    command: Command,
    fua: bool,
    picky: bool,
    offset: usize,
    length: usize,
    fill: u8,
}

fn op() -> impl Strategy<Value = Op> {
    let command = prop_oneof![
        4 => Just(Command::Read),
        4 => Just(Command::Write),
        1 => Just(Command::WriteZeroes),
        1 => Just(Command::Trim),
        1 => Just(Command::Cache),
        1 => Just(Command::Flush),
        2 => Just(Command::BlockStatus),
    ];
    (
        command,
        any::<bool>(),
        any::<bool>(),
        0..ADVERTISED,
        1usize..3000,
        1u8..,
    )
        .prop_map(|(command, fua, picky, offset, length, fill)| Op {
            command,
            fua,
            picky,
            offset,
            length: length.min(ADVERTISED - offset),
            fill,
        })
}

impl Op {
    fn request(&self, chunked: bool) -> Request {
        let mut flags = CommandFlags::empty();
        flags.set(CommandFlags::FUA, self.fua);
        if self.picky {
            flags |= match self.command {
                Command::Read if chunked => CommandFlags::DF,
                Command::WriteZeroes => CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO,
                Command::BlockStatus => CommandFlags::REQ_ONE,
                _ => CommandFlags::empty(),
            };
        }
        let is_flush = self.command == Command::Flush;
        Request {
            command: self.command,
            flags,
            offset: if is_flush { 0 } else { self.offset as u64 },
            length: if is_flush { 0 } else { self.length as u64 },
        }
    }

    fn payload(&self) -> Vec<u8> {
        match self.command {
            // Some blocks are zero, so that there are holes to report.
            Command::Write if self.fill < 64 => vec![0; self.length],
            Command::Write => vec![self.fill; self.length],
            _ => Vec::new(),
        }
    }

    fn is_past_the_end(&self) -> bool {
        self.command != Command::Flush && self.offset + self.length > ACTUAL
    }
}

/// What the client must get.
struct Expected {
    op: Op,
    data: Vec<u8>,
    extents: Vec<Extent>,
}

struct World {
    client: Client,
    server: Server,
    expected: HashMap<Cookie, Expected>,
}

impl World {
    fn new(mode: usize) -> Self {
        let mut negotiated = negotiated(mode);
        let client = Client::new(&negotiated);
        negotiated.export.size = ACTUAL as u64;
        Self {
            client,
            server: Server::new(&negotiated),
            expected: HashMap::new(),
        }
    }

    fn submit(&mut self, op: Op) {
        let chunked = self.client.session.negotiated().mode.is_chunked();
        if op.command == Command::BlockStatus && !chunked {
            return;
        }
        let (cookie, bytes) = self.client.submit(op.request(chunked), &op.payload());
        self.server.inbox.extend(bytes);
        let nothing = Expected {
            op,
            data: Vec::new(),
            extents: Vec::new(),
        };
        self.expected.insert(cookie, nothing);
    }

    /// Lets one side do one thing.
    fn act(&mut self, tape: &mut Tape, ops: &mut Vec<Op>) {
        match tape.choose(4) {
            0 => {
                if let Some(op) = ops.pop() {
                    self.submit(op);
                }
            }
            1 => {
                let count = tape.choose(4000);
                self.server.advance(count, tape);
            }
            2 => self.reply(tape),
            _ => {
                let count = tape.choose(4000);
                self.client.advance(count);
            }
        }
    }

    /// Sends the next message of one of the open replies.
    fn reply(&mut self, tape: &mut Tape) {
        self.server.replies.retain(|messages| !messages.is_empty());
        if self.server.replies.is_empty() {
            return;
        }
        let index = tape.choose(self.server.replies.len());
        if let Some(message) = self.server.replies[index].pop_front() {
            self.client.inbox.extend(message);
        }
    }

    /// Lets everything that is under way arrive.
    fn drain(&mut self, tape: &mut Tape) {
        self.server.advance(usize::MAX, tape);
        while self
            .server
            .replies
            .iter()
            .any(|messages| !messages.is_empty())
        {
            self.reply(tape);
        }
        self.client.advance(usize::MAX);
        assert_eq!(self.client.session.in_flight(), 0);
        assert!(self.client.session.predicted_read().is_none());
    }
}

/// The order in which the server carries requests out is that of their submission, so a second
/// disk that does the same knows what each of them must see.
fn model(world: &mut World) -> Vec<u8> {
    let mut disk = vec![0; ACTUAL];
    let mut cookies: Vec<Cookie> = world.expected.keys().copied().collect();
    cookies.sort_unstable_by_key(|cookie| cookie.0 >> 32);
    for cookie in cookies {
        let expected = world.expected.get_mut(&cookie).unwrap();
        let op = &expected.op;
        if op.is_past_the_end() || world.server.failed.contains(&cookie.0) {
            continue;
        }
        let range = op.offset..op.offset + op.length;
        match op.command {
            Command::Read => expected.data = disk[range].to_vec(),
            Command::Write => disk[range].copy_from_slice(&op.payload()),
            Command::WriteZeroes => disk[range].fill(0),
            Command::BlockStatus => {
                let extents = extents(&disk, op.offset as u64, op.length as u64);
                let mut left = op.length as u64;
                expected.extents = extents
                    .into_iter()
                    .map(|extent| {
                        let length = extent.length.min(left);
                        left -= length;
                        Extent { length, ..extent }
                    })
                    .take(if op.picky { 1 } else { usize::MAX })
                    .collect();
            }
            _ => {}
        }
    }
    disk
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn every_request_gets_its_answer(
        mode in 0..MODES.len(),
        ops in prop::collection::vec(op(), 1..24),
        draws in prop::collection::vec(any::<u16>(), 0..400),
    ) {
        let mut world = World::new(mode);
        let mut tape = Tape { draws: draws.into() };
        let mut ops = ops;
        while !tape.draws.is_empty() || !ops.is_empty() {
            world.act(&mut tape, &mut ops);
        }
        world.drain(&mut tape);
        let disk = model(&mut world);
        prop_assert!(world.server.disk == disk, "the disks differ");
        let chunked = world.client.session.negotiated().mode.is_chunked();
        for (cookie, expected) in &world.expected {
            let answer = &world.client.answers[cookie];
            let result = answer.result.as_ref().expect("every request is answered");
            let op = &expected.op;
            if op.is_past_the_end() {
                let errno = match op.command {
                    Command::Write | Command::WriteZeroes => Errno::ENOSPC,
                    _ => Errno::EINVAL,
                };
                let error = result.as_ref().unwrap_err();
                prop_assert_eq!(error.errno, errno);
                prop_assert_eq!(error.message.is_some(), chunked);
            } else if world.server.failed.contains(&cookie.0) {
                let error = result.as_ref().unwrap_err();
                prop_assert_eq!(error.errno, Errno::EIO);
                prop_assert_eq!(error.message.as_deref(), chunked.then_some("on purpose"));
            } else {
                prop_assert_eq!(result, &Ok(()));
                prop_assert!(answer.data == expected.data, "a read returned other bytes");
                if op.command == Command::BlockStatus {
                    for id in CONTEXTS {
                        prop_assert_eq!(&answer.extents[&id], &expected.extents);
                    }
                }
            }
        }
    }
}
