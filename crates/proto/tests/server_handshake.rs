//! A server's handshake against scripted clients, polite and hostile.

use blockferry_proto::{
    BlockSizes, HandshakeFlags, ListedExport, Negotiated, OpenPurpose, OptionCode, OptionErrorCode,
    OptionRefusal, ReplyMode, ServedExport, ServerConfig, ServerHandshake, ServerStep, TlsPolicy,
    TransmissionFlags, limits,
};
use blockferry_proto::{Error, Misbehaviour, Misuse};

const ACK: u32 = 1;
const SERVER: u32 = 2;
const INFO: u32 = 3;
const META_CONTEXT: u32 = 4;
const UNSUP: u32 = 0x8000_0001;
const INVALID: u32 = 0x8000_0003;
const PLATFORM: u32 = 0x8000_0004;
const TLS_REQD: u32 = 0x8000_0005;
const UNKNOWN: u32 = 0x8000_0006;
const TOO_BIG: u32 = 0x8000_0009;
const EXT_HEADER_REQD: u32 = 0x8000_000a;

/// How a handshake ended.
#[derive(Debug, PartialEq)]
enum End {
    Waiting,
    Closed,
    Begun(Box<Negotiated>),
    Failed(Error),
}

struct Played {
    end: End,
    /// Option, reply type and payload of each reply.
    replies: Vec<(u32, u32, Vec<u8>)>,
    /// What came after the last reply: the answer to `NBD_OPT_EXPORT_NAME`.
    tail: Vec<u8>,
    opened: Vec<(String, OpenPurpose)>,
    discarded: usize,
}

impl Played {
    fn kinds(&self) -> Vec<(u32, u32)> {
        let replies = self.replies.iter();
        replies.map(|(option, kind, _)| (*option, *kind)).collect()
    }

    fn begun(&self) -> &Negotiated {
        match &self.end {
            End::Begun(negotiated) => negotiated,
            other => panic!("{other:?}"),
        }
    }
}

fn served(name: &str) -> Result<ServedExport, OptionRefusal> {
    let export = ServedExport {
        canonical_name: None,
        description: Some("d".repeat(5000)),
        size: 1 << 20,
        flags: TransmissionFlags::SEND_FLUSH
            | TransmissionFlags::SEND_DF
            | TransmissionFlags::BLOCK_STATUS_PAYLOAD,
        block_sizes: BlockSizes::new(512, 4096, 32 << 20).ok(),
        contexts: [
            "base:allocation",
            "qemu:dirty-bitmap:a",
            "qemu:dirty-bitmap:b",
        ]
        .map(str::to_owned)
        .to_vec(),
    };
    match name {
        "a" | "b" => Ok(export),
        "alias" => Ok(ServedExport {
            canonical_name: Some("a".to_owned()),
            ..export
        }),
        "huge" => Ok(ServedExport {
            size: 1 << 63,
            ..export
        }),
        "many" => Ok(ServedExport {
            contexts: (0..100).map(|n| format!("x:{n}")).collect(),
            ..export
        }),
        _ => Err(OptionRefusal::new(OptionErrorCode::Unknown, "no")),
    }
}

fn play(config: ServerConfig, client: &[u8]) -> Played {
    let offered = config.flags;
    let mut handshake = ServerHandshake::new(config);
    let mut input = client;
    let mut sent = Vec::new();
    let mut played = Played {
        end: End::Waiting,
        replies: Vec::new(),
        tail: Vec::new(),
        opened: Vec::new(),
        discarded: 0,
    };
    played.end = loop {
        match handshake.step() {
            ServerStep::Send(bytes) => sent.extend(bytes),
            ServerStep::Receive(count) => {
                assert!(count <= limits::OPTION_PAYLOAD);
                let Some((head, tail)) = input.split_at_checked(count) else {
                    break End::Waiting;
                };
                input = tail;
                if let Err(error) = handshake.receive(head) {
                    assert_eq!(handshake.step(), ServerStep::Close);
                    break End::Failed(error);
                }
            }
            ServerStep::Discard(count) => {
                played.discarded += count;
                input = input.get(count..).unwrap_or_default();
            }
            ServerStep::StartTls => handshake.tls_ready(),
            ServerStep::Open { name, purpose } => {
                handshake.export(served(&name));
                played.opened.push((name, purpose));
            }
            ServerStep::List => handshake.exports(Ok(vec![
                ListedExport {
                    name: "a".to_owned(),
                    description: "d".repeat(5000),
                },
                ListedExport {
                    name: "n".repeat(5000),
                    description: String::new(),
                },
                ListedExport {
                    name: "b".to_owned(),
                    description: String::new(),
                },
            ])),
            ServerStep::Done(negotiated) => break End::Begun(Box::new(negotiated)),
            ServerStep::Close => break End::Closed,
        }
    };
    assert_eq!(&sent[..16], b"NBDMAGICIHAVEOPT");
    assert_eq!(sent[16..18], offered.bits().to_be_bytes());
    let mut rest = &sent[18..];
    while rest.len() >= 20 && rest[..8] == 0x0003_e889_0455_65a9_u64.to_be_bytes() {
        let field = |at: usize| u32::from_be_bytes(rest[at..at + 4].try_into().unwrap());
        let length = field(16) as usize;
        let payload = rest[20..20 + length].to_vec();
        played.replies.push((field(8), field(12), payload));
        rest = &rest[20 + length..];
    }
    played.tail = rest.to_vec();
    played
}

fn flags(bits: u32) -> Vec<u8> {
    bits.to_be_bytes().to_vec()
}

fn option(code: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = head(code, payload.len() as u32);
    bytes.extend(payload);
    bytes
}

fn head(code: u32, length: u32) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(code.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

fn info(code: u32, name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut payload = string(name);
    payload.extend((wanted.len() as u16).to_be_bytes());
    payload.extend(wanted.iter().flat_map(|info| info.to_be_bytes()));
    option(code, &payload)
}

fn contexts(code: u32, name: &str, queries: &[&str]) -> Vec<u8> {
    let mut payload = string(name);
    payload.extend((queries.len() as u32).to_be_bytes());
    payload.extend(queries.iter().flat_map(|query| string(query)));
    option(code, &payload)
}

fn client(options: &[Vec<u8>]) -> Vec<u8> {
    [flags(3), options.concat()].concat()
}

fn serve(options: &[Vec<u8>]) -> Played {
    play(ServerConfig::default(), &client(options))
}

fn names(negotiated: &Negotiated) -> Vec<(u32, &str)> {
    let contexts = negotiated.contexts.iter();
    contexts
        .map(|context| (context.id, context.name.as_str()))
        .collect()
}

#[test]
fn unknown_client_flags_close_the_connection() {
    for bits in [4, 0x8000_0003, u32::MAX] {
        let played = play(ServerConfig::default(), &flags(bits));
        assert_eq!(played.end, End::Closed);
    }
    for bits in 0..4 {
        let played = play(ServerConfig::default(), &flags(bits));
        assert_eq!(played.end, End::Waiting);
    }
}

#[test]
fn an_option_without_its_magic_is_misbehaviour() {
    assert_eq!(
        serve(&[b"GET / HTTP/1.1\r\n".to_vec()]).end,
        End::Failed(Misbehaviour::OptionMagic(u64::from_be_bytes(*b"GET / HT")).into())
    );
}

#[test]
fn unknown_options_are_skipped_and_refused() {
    let played = serve(&[
        option(4, b"withdrawn"),
        option(99, &[0xff; 100_000]),
        option(2, b""),
    ]);
    assert_eq!(played.kinds(), [(4, UNSUP), (99, UNSUP), (2, ACK)]);
    assert_eq!(played.discarded, 9 + 100_000);
    assert_eq!(played.end, End::Closed);
}

#[test]
fn payload_without_end_is_misbehaviour() {
    for length in [limits::OPTION_DISCARD as u32 + 1, u32::MAX] {
        for code in [2, 3, 7, 10, 99] {
            let option = OptionCode::from_wire(code);
            assert_eq!(
                serve(&[head(code, length)]).end,
                End::Failed(Misbehaviour::OptionTooLong { option, length }.into())
            );
        }
        assert_eq!(serve(&[head(1, length)]).end, End::Closed);
    }
}

#[test]
fn long_payload_is_dropped_unread() {
    let played = serve(&[option(8, b""), option(10, &[0; 70_000]), option(3, b"")]);
    assert_eq!(
        played.kinds(),
        [(8, ACK), (10, TOO_BIG), (3, SERVER), (3, SERVER), (3, ACK)]
    );
    assert_eq!(played.discarded, 70_000);
}

#[test]
fn options_without_end_are_misbehaviour() {
    let mut config = ServerConfig::default();
    config.max_options = 5;
    let played = play(config, &client(&vec![option(99, b""); 6]));
    assert_eq!(played.replies.len(), 5);
    assert_eq!(
        played.end,
        End::Failed(Misbehaviour::TooManyOptions(5).into())
    );
}

#[test]
fn options_without_payload_refuse_one() {
    let mut config = ServerConfig::default();
    config.tls = TlsPolicy::Offer;
    let options = [3, 5, 8, 11].map(|code| option(code, b"?"));
    let played = play(config, &client(&options));
    assert_eq!(
        played.kinds(),
        [(3, INVALID), (5, INVALID), (8, INVALID), (11, INVALID)]
    );
}

#[test]
fn malformed_payload_is_refused_and_the_next_option_understood() {
    let long = "n".repeat(4097);
    for (payload, expected) in [
        (&b""[..], INVALID),
        (b"\0\0\0\x05name", INVALID),
        (b"\xff\xff\xff\xffname", INVALID),
        (b"\0\0\0\x01a\0", INVALID),
        (b"\0\0\0\x01a\0\x02\0\0", INVALID),
        (b"\0\0\0\x01a\0\0tail", INVALID),
        (b"\0\0\0\x02a\0\0\0", INVALID),
        (b"\0\0\0\x01\xff\0\0", INVALID),
        (&[string(&long), vec![0, 0]].concat(), TOO_BIG),
    ] {
        let played = serve(&[option(7, payload), option(99, b"")]);
        assert_eq!(played.kinds(), [(7, expected), (99, UNSUP)], "{payload:?}");
        assert!(played.opened.is_empty());
    }
    for (payload, expected) in [
        (&b"\0\0\0\x01a"[..], INVALID),
        (b"\0\0\0\x01a\xff\xff\xff\xff", INVALID),
        (b"\0\0\0\x01a\0\0\0\x01\0\0\0\x04abc", INVALID),
        (b"\0\0\0\x01a\0\0\0\0?", INVALID),
        (
            &[b"\0\0\0\x01a\0\0\0\x01".to_vec(), string(&long)].concat(),
            TOO_BIG,
        ),
    ] {
        let played = serve(&[option(8, b""), option(10, payload)]);
        assert_eq!(played.kinds()[1], (10, expected), "{payload:?}");
        assert!(played.opened.is_empty());
    }
}

#[test]
fn go_tells_what_was_asked_for_and_what_must_be_known() {
    let played = serve(&[info(7, "a", &[])]);
    assert_eq!(played.kinds(), [(7, INFO), (7, INFO), (7, ACK)]);
    // The size and flags, without what was not negotiated, then the block sizes.
    let mut export = vec![0, 0];
    export.extend((1u64 << 20).to_be_bytes());
    export.extend([0, 5]);
    assert_eq!(played.replies[0].2, export);
    assert_eq!(played.replies[1].2[..6], [0, 3, 0, 0, 2, 0]);
    let negotiated = played.begun();
    assert_eq!(negotiated.export_name, "a");
    assert_eq!(negotiated.mode, ReplyMode::Simple);
    assert_eq!(
        negotiated.export.flags,
        TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH
    );

    let played = serve(&[info(6, "a", &[1, 2, 3, 77])]);
    assert_eq!(played.end, End::Waiting);
    assert_eq!(played.opened, [("a".to_owned(), OpenPurpose::Info)]);
    let infos: Vec<u8> = played
        .replies
        .iter()
        .filter_map(|reply| reply.2.get(1).copied())
        .collect();
    assert_eq!(infos, [0, 1, 2, 3]);
    // A long description is cut off.
    assert_eq!(played.replies[2].2.len(), 2 + 4096);

    // Another canonical name is told unasked.
    let played = serve(&[info(6, "alias", &[])]);
    assert_eq!(played.replies[1].2, b"\0\x01a");
}

#[test]
fn information_about_one_export_does_not_bind_to_it() {
    let played = serve(&[info(6, "a", &[]), info(6, "nope", &[]), info(7, "b", &[])]);
    assert!(played.kinds().contains(&(6, UNKNOWN)));
    assert_eq!(played.begun().export_name, "b");
}

#[test]
fn an_export_too_large_for_the_protocol_is_refused() {
    let played = serve(&[info(7, "huge", &[])]);
    assert_eq!(played.kinds(), [(7, PLATFORM)]);
    assert_eq!(serve(&[option(1, b"huge")]).end, End::Closed);
}

#[test]
fn a_list_leaves_out_what_no_client_could_ask_for() {
    let played = serve(&[option(3, b"")]);
    assert_eq!(played.kinds(), [(3, SERVER), (3, SERVER), (3, ACK)]);
    assert_eq!(played.replies[0].2.len(), 4 + 1 + 4096);
    assert_eq!(played.replies[1].2, b"\0\0\0\x01b");
}

#[test]
fn a_name_alone_opens_the_export_with_or_without_zeroes() {
    for (bits, length) in [(3, 10), (2, 10), (1, 134), (0, 134)] {
        let bytes = [flags(bits), option(1, b"a")].concat();
        let played = play(ServerConfig::default(), &bytes);
        assert_eq!(played.tail.len(), length);
        assert_eq!(played.tail[..10], [0, 0, 0, 0, 0, 0x10, 0, 0, 0, 5]);
        assert_eq!(played.begun().export_name, "a");
        assert_eq!(played.opened[0].1, OpenPurpose::ExportName);
    }
}

#[test]
fn a_name_alone_that_cannot_be_opened_closes_the_connection() {
    for name in [&b"nope"[..], b"\xff", b"a\0", &[b'a'; 4097]] {
        let played = serve(&[option(1, name)]);
        assert_eq!(played.end, End::Closed);
        assert!(played.replies.is_empty());
    }
    // Forbidden after extended headers.
    let played = serve(&[option(11, b""), option(1, b"a")]);
    assert_eq!(played.end, End::Closed);
    assert!(played.opened.is_empty());
}

#[test]
fn modes_are_granted_as_configured_and_only_upwards() {
    let played = serve(&[
        option(8, b""),
        option(8, b""),
        option(11, b""),
        option(8, b""),
    ]);
    assert_eq!(
        played.kinds(),
        [(8, ACK), (8, ACK), (11, ACK), (8, EXT_HEADER_REQD)]
    );
    let mut config = ServerConfig::default();
    config.structured = false;
    config.extended = false;
    let played = play(config, &client(&[option(8, b""), option(11, b"")]));
    assert_eq!(played.kinds(), [(8, UNSUP), (11, UNSUP)]);
}

#[test]
fn contexts_are_unknown_where_they_are_turned_off() {
    for code in [9, 10] {
        let mut config = ServerConfig::default();
        config.meta_contexts = false;
        let asked = [option(8, b""), contexts(code, "a", &["base:allocation"])];
        let played = play(config, &client(&asked));
        assert_eq!(played.kinds(), [(8, ACK), (code, UNSUP)]);
        assert!(played.opened.is_empty());
    }
}

#[test]
fn flags_are_accepted_as_far_as_they_were_offered() {
    for (offered, accepted) in [(0, 0_u32), (1, 1), (2, 2), (3, 1)] {
        let config = || {
            let mut options = ServerConfig::default();
            options.flags = HandshakeFlags::from_bits_truncate(offered);
            options
        };
        let mut answer = accepted.to_be_bytes().to_vec();
        answer.extend(option(1, b"a"));
        let played = play(config(), &answer);
        assert_eq!(played.begun().export_name, "a");
        let mut answer = (!u32::from(offered) & 3).to_be_bytes().to_vec();
        answer.extend(option(1, b"a"));
        if offered != 3 {
            assert_eq!(play(config(), &answer).end, End::Closed);
        }
    }
}

#[test]
fn contexts_need_chunks() {
    for code in [9, 10] {
        let played = serve(&[contexts(code, "a", &["base:allocation"])]);
        assert_eq!(played.kinds(), [(code, INVALID)]);
        assert!(played.opened.is_empty());
    }
}

#[test]
fn contexts_are_selected_by_their_whole_name_and_listed_by_namespace() {
    let queries = [
        "base:",
        "qemu:dirty-bitmap:b",
        "base:allocation",
        "qemu:dirty-bitmap:b",
    ];
    let played = serve(&[
        option(11, b""),
        contexts(10, "a", &queries),
        info(7, "a", &[]),
    ]);
    assert_eq!(
        names(played.begun()),
        [(1, "base:allocation"), (2, "qemu:dirty-bitmap:b")]
    );
    assert_eq!(played.replies[1].2, b"\0\0\0\x01base:allocation");

    for (queries, count) in [
        (&[][..], 3),
        (&["qemu:"], 2),
        (&["qemu:dirty-bitmap:"], 2),
        (&["qemu:dirty-bitmap:a"], 1),
        (&["base:", "qemu:"], 3),
        (&["qemu"], 0),
        (&["nope:"], 0),
    ] {
        let played = serve(&[option(8, b""), contexts(9, "a", queries)]);
        let listed = played
            .kinds()
            .iter()
            .filter(|kind| **kind == (9, META_CONTEXT))
            .count();
        assert_eq!(listed, count, "{queries:?}");
        assert_eq!(played.kinds().last(), Some(&(9, ACK)));
    }
}

#[test]
fn contexts_belong_to_the_export_they_were_selected_for() {
    let select = |name| contexts(10, name, &["base:allocation"]);
    let played = serve(&[option(8, b""), select("a"), info(7, "b", &[])]);
    assert!(played.begun().contexts.is_empty());
    let played = serve(&[option(8, b""), select("a"), option(1, b"a")]);
    assert_eq!(names(played.begun()), [(1, "base:allocation")]);
    // The last selection counts, even if it selects nothing or fails.
    for after in [
        contexts(10, "a", &[]),
        contexts(10, "nope", &["base:allocation"]),
        option(10, b"garbage"),
        option(10, &[0; 70_000]),
    ] {
        let played = serve(&[option(8, b""), select("a"), after, info(7, "a", &[])]);
        assert!(played.begun().contexts.is_empty());
    }
    // A list in between changes nothing.
    let list = contexts(9, "b", &[]);
    let played = serve(&[option(8, b""), select("a"), list, info(7, "a", &[])]);
    assert_eq!(names(played.begun()), [(1, "base:allocation")]);
}

#[test]
fn the_contexts_of_one_connection_are_bounded() {
    let all: Vec<String> = (0..100).map(|n| format!("x:{n}")).collect();
    let queries: Vec<&str> = all.iter().map(String::as_str).collect();
    let played = serve(&[option(8, b""), contexts(10, "many", &queries)]);
    assert_eq!(played.kinds()[1], (10, TOO_BIG));
    let played = serve(&[option(8, b""), contexts(10, "many", &queries[..64])]);
    assert_eq!(played.kinds().last(), Some(&(10, ACK)));
    let played = serve(&[option(8, b""), contexts(9, "many", &[])]);
    assert_eq!(played.replies.len(), 1 + 100 + 1);
}

#[test]
fn before_required_tls_only_tls_and_goodbye_are_served() {
    let mut config = ServerConfig::default();
    config.tls = TlsPolicy::Require;
    let options = [
        option(3, b""),
        info(6, "a", &[]),
        info(7, "a", &[]),
        option(8, b""),
        contexts(10, "a", &[]),
        option(11, b""),
        option(99, b"?"),
        option(5, b""),
        option(5, b""),
        info(7, "a", &[]),
    ];
    let played = play(config.clone(), &client(&options));
    assert_eq!(
        played.kinds()[..9],
        [
            (3, TLS_REQD),
            (6, TLS_REQD),
            (7, TLS_REQD),
            (8, TLS_REQD),
            (10, TLS_REQD),
            (11, TLS_REQD),
            (99, TLS_REQD),
            (5, ACK),
            (5, INVALID)
        ]
    );
    assert_eq!(played.opened.len(), 1);
    assert!(played.begun().tls);

    let played = play(config.clone(), &client(&[option(1, b"a")]));
    assert_eq!(played.end, End::Closed);
    let played = play(config, &client(&[option(2, b"")]));
    assert_eq!(played.kinds(), [(2, ACK)]);
}

#[test]
fn tls_makes_everything_new() {
    let mut config = ServerConfig::default();
    config.tls = TlsPolicy::Offer;
    let options = [
        option(11, b""),
        contexts(10, "a", &["base:allocation"]),
        option(5, b""),
        contexts(10, "a", &["base:allocation"]),
        info(7, "a", &[]),
    ];
    let played = play(config, &client(&options));
    assert!(played.kinds().contains(&(10, INVALID)));
    let negotiated = played.begun();
    assert_eq!(negotiated.mode, ReplyMode::Simple);
    assert!(negotiated.contexts.is_empty());
    assert!(negotiated.tls);
}

#[test]
fn a_server_without_tls_says_so() {
    assert_eq!(serve(&[option(5, b"")]).kinds(), [(5, UNSUP)]);
}

#[test]
fn bytes_out_of_turn_are_misuse() {
    let mut handshake = ServerHandshake::new(ServerConfig::default());
    assert!(matches!(handshake.step(), ServerStep::Send(_)));
    assert_eq!(handshake.step(), ServerStep::Receive(4));
    assert_eq!(
        handshake.receive(b"12345"),
        Err(Misuse::WrongLength {
            wanted: 4,
            given: 5
        }
        .into())
    );
    // Answers that nobody asked for are ignored.
    handshake.export(served("a"));
    handshake.exports(Ok(Vec::new()));
    handshake.tls_ready();
    assert_eq!(handshake.step(), ServerStep::Receive(4));
}
