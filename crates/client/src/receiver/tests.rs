//! A server that answers in any order, in any chunks, through a socket that cuts anywhere: every byte
//! must land where it belongs, whatever was predicted.

use blockferry_proto::{
    Command, CommandFlags, ExportInfo, Negotiated, ReplyMode, Request, RequestHeader,
    TransmissionFlags,
};
use proptest::prelude::*;

use super::*;

/// How one read is answered.
#[derive(Clone, Debug)]
struct Answer {
    length: usize,
    /// Where its data is cut, and which parts are holes.
    parts: Vec<(usize, bool)>,
    /// The chunks go out back to front.
    reversed: bool,
    /// The end of the reply is a chunk of its own.
    closes: bool,
    fails: bool,
}

/// The reads in flight and what became of them.
#[derive(Default)]
struct Reads {
    cookies: Vec<Cookie>,
    buffers: Vec<Vec<u8>>,
    results: Vec<Option<bool>>,
    exchanges: bool,
    /// What is in the pipe of a read that goes into one, and how many bytes find room there.
    pipes: Vec<Option<(Vec<u8>, usize)>>,
}

impl Reads {
    fn index(&self, cookie: Cookie) -> usize {
        self.cookies
            .iter()
            .position(|it| *it == cookie)
            .expect("a known cookie")
    }
}

impl Requests for Reads {
    fn buffer(&mut self, cookie: Cookie) -> &mut [u8] {
        let index = self.index(cookie);
        assert!(
            self.results[index].is_none(),
            "the buffer of a finished read is touched"
        );
        if let Some((bytes, _)) = self.pipes[index].take() {
            self.buffers[index][..bytes.len()].copy_from_slice(&bytes);
        }
        &mut self.buffers[index]
    }

    fn length(&mut self, cookie: Cookie) -> usize {
        let index = self.index(cookie);
        self.buffers[index].len()
    }

    fn has_pipes(&self) -> bool {
        let mut pipes = self.pipes.iter().zip(&self.results);
        pipes.any(|(pipe, result)| pipe.is_some() && result.is_none())
    }

    fn is_piped(&mut self, cookie: Cookie, offset: usize) -> bool {
        let index = self.index(cookie);
        let pipe = self.pipes[index].as_ref();
        pipe.is_some_and(|(bytes, _)| bytes.len() == offset)
    }

    fn exchange(&mut self, one: Cookie, other: Cookie) -> bool {
        let (one, other) = (self.index(one), self.index(other));
        let same = self.buffers[one].len() == self.buffers[other].len();
        assert!(self.pipes[one].is_none() && self.pipes[other].is_none());
        if self.exchanges && same {
            self.buffers.swap(one, other);
        }
        self.exchanges && same
    }

    fn extents(&mut self, _: Cookie, _: u32, _: Vec<Extent>) {
        panic!("nobody asked for extents");
    }

    fn done(&mut self, cookie: Cookie, result: Result<(), ServerError>) {
        let index = self.index(cookie);
        assert!(
            self.results[index].replace(result.is_ok()).is_none(),
            "answered twice"
        );
    }
}

/// The byte at `position` of the export: never 0, so that holes are told from data.
fn byte_at(position: usize) -> u8 {
    (position % 251) as u8 + 1
}

fn negotiated(mode: ReplyMode) -> Negotiated {
    Negotiated {
        export_name: String::new(),
        export: ExportInfo {
            name: None,
            description: None,
            size: 1 << 20,
            flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_DF,
            block_sizes: None,
        },
        mode,
        contexts: Vec::new(),
        tls: false,
        style: blockferry_proto::HandshakeStyle::FixedNew,
        handshake_flags: blockferry_proto::HandshakeFlags::FIXED_NEWSTYLE,
    }
}

fn simple(wire: &mut Vec<u8>, cookie: Cookie, offset: usize, answer: &Answer) -> Vec<u8> {
    wire.extend(0x6744_6698_u32.to_be_bytes());
    wire.extend(if answer.fails { 5_u32 } else { 0 }.to_be_bytes());
    wire.extend(cookie.0.to_be_bytes());
    let data: Vec<u8> = (offset..offset + answer.length).map(byte_at).collect();
    if !answer.fails {
        wire.extend(&data);
    }
    data
}

fn structured(wire: &mut Vec<u8>, cookie: Cookie, offset: usize, answer: &Answer) -> Vec<u8> {
    let mut data: Vec<u8> = (offset..offset + answer.length).map(byte_at).collect();
    let mut chunks = Vec::new();
    let mut start = 0;
    let cuts = answer.parts.iter().copied().chain([(answer.length, false)]);
    for (end, hole) in cuts {
        if end <= start {
            continue;
        }
        let position = ((offset + start) as u64).to_be_bytes();
        let mut payload = position.to_vec();
        if hole {
            data[start..end].fill(0);
            payload.extend(((end - start) as u32).to_be_bytes());
        } else {
            payload.extend(&data[start..end]);
        }
        chunks.push((if hole { 2_u16 } else { 1 }, payload));
        start = end;
    }
    if answer.reversed {
        chunks.reverse();
    }
    if answer.fails {
        chunks.truncate(chunks.len() / 2);
        chunks.push((0x8001, [&5_u32.to_be_bytes()[..], &[0, 2], b"no"].concat()));
    }
    if answer.closes {
        chunks.push((0, Vec::new()));
    }
    let last = chunks.len() - 1;
    for (index, (kind, payload)) in chunks.into_iter().enumerate() {
        wire.extend(0x668e_33ef_u32.to_be_bytes());
        wire.extend(u16::from(index == last).to_be_bytes());
        wire.extend(kind.to_be_bytes());
        wire.extend(cookie.0.to_be_bytes());
        wire.extend((payload.len() as u32).to_be_bytes());
        wire.extend(payload);
    }
    data
}

/// Moves some of `wire` into the pipe of the read that is arriving.
fn receive_in_pipe(
    receiver: &mut Receiver,
    session: &mut ClientSession,
    target: &Target,
    reads: &mut Reads,
    wire: &[u8],
) -> usize {
    let index = reads.index(target.cookie);
    let (bytes, room) = reads.pipes[index].as_mut().expect("a pipe");
    assert_eq!(bytes.len(), target.range.start, "nothing is left out");
    let count = wire.len().min(target.range.len()).min(*room - bytes.len());
    bytes.extend_from_slice(&wire[..count]);
    if count < wire.len().min(target.range.len()) {
        reads.buffer(target.cookie);
        receiver.leave_pipe();
    }
    receiver
        .received_in_pipe(session, count, reads)
        .expect("a good server");
    count
}

/// Moves as many bytes of `wire` as there are to where `plan` says. Returns how many.
fn receive(receiver: &mut Receiver, plan: &Plan, reads: &mut Reads, wire: &[u8]) -> usize {
    let mut rest = wire;
    let mut fill = |part: &mut [u8]| {
        let (now, later) = rest.split_at(rest.len().min(part.len()));
        part[..now.len()].copy_from_slice(now);
        rest = later;
    };
    if let Some(target) = &plan.current {
        let index = reads.index(target.cookie);
        assert!(reads.pipes[index].is_none(), "it goes on in memory");
        fill(&mut reads.buffer(target.cookie)[target.range.clone()]);
    }
    fill(&mut receiver.header_room()[..plan.header]);
    if let Some(target) = &plan.predicted {
        fill(&mut reads.buffer(target.cookie)[target.range.clone()]);
    }
    wire.len() - rest.len()
}

fn answers() -> impl Strategy<Value = Vec<Answer>> {
    let answer = (
        prop_oneof![1..300_usize, Just(64)],
        prop::collection::vec((1..300_usize, any::<bool>()), 0..4),
        any::<bool>(),
        any::<bool>(),
        prop::bool::weighted(0.2),
    );
    let answer = answer.prop_map(|(length, mut parts, reversed, closes, fails)| {
        parts.sort_unstable();
        parts.retain(|(end, _)| *end < length);
        Answer {
            length,
            parts,
            reversed,
            closes,
            fails,
        }
    });
    prop::collection::vec(answer, 1..8)
}

proptest! {
    #[test]
    fn every_byte_lands_where_it_belongs(
        answers in answers(),
        order in any::<prop::sample::Index>(),
        cuts in prop::collection::vec(1..400_usize, 1..20),
        exchanges in any::<bool>(),
        chunked in any::<bool>(),
        rooms in prop::collection::vec(prop::option::weighted(0.3, 0..600_usize), 8),
    ) {
        let mode = if chunked { ReplyMode::Structured } else { ReplyMode::Simple };
        let mut session = ClientSession::new(&negotiated(mode));
        let mut reads = Reads { exchanges, ..Reads::default() };
        let (mut wires, mut expected) = (Vec::new(), Vec::new());
        for (index, answer) in answers.iter().enumerate() {
            let request = Request {
                command: Command::Read,
                flags: CommandFlags::empty(),
                offset: index as u64 * 1000,
                length: answer.length as u64,
            };
            let cookie = session.submit(request, &mut RequestHeader::new()).expect("a good request");
            reads.cookies.push(cookie);
            reads.buffers.push(vec![0xee; answer.length]);
            reads.results.push(None);
            reads.pipes.push(rooms[index].map(|room| (Vec::new(), room)));
            let mut wire = Vec::new();
            let encode = if chunked { structured } else { simple };
            expected.push(encode(&mut wire, cookie, index * 1000, answer));
            wires.push(wire);
        }
        let turn = order.index(wires.len());
        wires.rotate_left(turn);
        let wire = wires.concat();

        let mut receiver = Receiver::new();
        let mut rest = &wire[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let plan = receiver.plan(&session, &reads);
            let arrived = &rest[..rest.len().min(*cut)];
            if plan.piped {
                let target = plan.current.expect("something is arriving");
                let count =
                    receive_in_pipe(&mut receiver, &mut session, &target, &mut reads, arrived);
                rest = &rest[count..];
                continue;
            }
            let count = receive(&mut receiver, &plan, &mut reads, arrived);
            prop_assert!(count > 0, "a plan has room for something");
            rest = &rest[count..];
            receiver.received(&mut session, &plan, count, &mut reads).expect("a good server");
        }
        prop_assert_eq!(session.in_flight(), 0);
        for (index, answer) in answers.iter().enumerate() {
            prop_assert_eq!(reads.results[index], Some(!answer.fails));
            if answer.fails {
                continue;
            }
            let ordered = !chunked || (!answer.reversed && answer.parts.iter().all(|it| !it.1));
            match &reads.pipes[index] {
                Some((bytes, _)) => prop_assert_eq!(bytes, &expected[index]),
                None => {
                    let fits = rooms[index].is_some_and(|room| room >= answer.length);
                    prop_assert!(!(fits && ordered), "it left its pipe for no reason");
                    prop_assert_eq!(&reads.buffers[index], &expected[index]);
                }
            }
        }
    }
}

#[test]
fn replies_that_end_with_an_empty_chunk_are_received_in_place() {
    let mut session = ClientSession::new(&negotiated(ReplyMode::Structured));
    let mut reads = Reads::default();
    let mut wire = Vec::new();
    for index in 0..8 {
        let request = Request {
            command: Command::Read,
            flags: CommandFlags::empty(),
            offset: index * 1000,
            length: 1000,
        };
        let cookie = session
            .submit(request, &mut RequestHeader::new())
            .expect("a good request");
        reads.cookies.push(cookie);
        reads.buffers.push(vec![0xee; 1000]);
        reads.results.push(None);
        reads.pipes.push(None);
        let answer = Answer {
            length: 1000,
            parts: Vec::new(),
            reversed: false,
            closes: true,
            fails: false,
        };
        structured(&mut wire, cookie, index as usize * 1000, &answer);
    }
    let mut receiver = Receiver::new();
    let (mut rest, mut receives) = (&wire[..], 0);
    while !rest.is_empty() {
        let plan = receiver.plan(&session, &reads);
        let count = receive(&mut receiver, &plan, &mut reads, rest);
        rest = &rest[count..];
        receiver
            .received(&mut session, &plan, count, &mut reads)
            .expect("a good server");
        receives += 1;
    }
    assert_eq!(receives, 9, "one a reply, and one for the last end");
    assert_eq!(receiver.spilled.capacity(), 0, "nothing was out of place");
    assert_eq!(reads.results, [Some(true); 8]);
}
