//! A client's handshake against scripted servers, friendly and hostile.

use blockferry_proto::error::{Incompatibility, Misbehaviour, Misuse};
use blockferry_proto::limits;
use blockferry_proto::{
    ClientConfig, ClientHandshake, Error, Goal, HandshakeStyle, MetaContext, OptionCode,
    OptionErrorCode, Outcome, ReplyMode, Step, Tls, TransmissionFlags,
};

const ACK: u32 = 1;
const SERVER: u32 = 2;
const INFO: u32 = 3;
const META_CONTEXT: u32 = 4;
const UNSUP: u32 = 0x8000_0001;
const TLS_REQD: u32 = 0x8000_0005;
const UNKNOWN: u32 = 0x8000_0006;
const SHUTDOWN: u32 = 0x8000_0007;

/// What a server has to say, played without looking at what the client says.
struct Script {
    bytes: Vec<u8>,
}

/// What came of it: the result, and what the client sent.
struct Played {
    result: Result<Option<Outcome>, Error>,
    sent: Vec<Vec<u8>>,
    tls_after: Option<usize>,
}

impl Script {
    fn greeting(flags: u16) -> Self {
        let mut bytes = b"NBDMAGICIHAVEOPT".to_vec();
        bytes.extend(flags.to_be_bytes());
        Self { bytes }
    }

    /// The whole greeting of an oldstyle server.
    fn old_style(size: u64, flags: u16) -> Self {
        let mut bytes = b"NBDMAGIC".to_vec();
        bytes.extend(0x0000_4202_8186_1253_u64.to_be_bytes());
        bytes.extend(size.to_be_bytes());
        bytes.extend(u32::from(flags).to_be_bytes());
        bytes.extend([0; 124]);
        Self { bytes }
    }

    fn fixed() -> Self {
        Self::greeting(3)
    }

    /// A server with simple replies only.
    fn simple() -> Self {
        Self::fixed().reply(11, UNSUP, b"").reply(8, UNSUP, b"")
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }

    fn reply(mut self, option: u32, kind: u32, payload: &[u8]) -> Self {
        self.bytes.extend(0x0003_e889_0455_65a9_u64.to_be_bytes());
        self.bytes.extend(option.to_be_bytes());
        self.bytes.extend(kind.to_be_bytes());
        self.bytes.extend((payload.len() as u32).to_be_bytes());
        self.bytes.extend(payload);
        self
    }

    fn export(self, option: u32) -> Self {
        self.reply(option, INFO, &export(1 << 20, 1))
    }

    fn context(self, option: u32, id: u32, name: &str) -> Self {
        let mut payload = id.to_be_bytes().to_vec();
        payload.extend(name.as_bytes());
        self.reply(option, META_CONTEXT, &payload)
    }

    fn listed(self, name: &str, description: &str) -> Self {
        let mut payload = (name.len() as u32).to_be_bytes().to_vec();
        payload.extend(name.as_bytes());
        payload.extend(description.as_bytes());
        self.reply(3, SERVER, &payload)
    }

    fn play(&self, config: ClientConfig) -> Played {
        let mut handshake = ClientHandshake::new(config).unwrap();
        let mut input = &self.bytes[..];
        let mut played = Played {
            result: Ok(None),
            sent: Vec::new(),
            tls_after: None,
        };
        loop {
            match handshake.step() {
                Step::Send(bytes) => played.sent.push(bytes),
                Step::Receive(count) => {
                    let Some((head, tail)) = input.split_at_checked(count) else {
                        played.result = Err(handshake.hung_up());
                        return played;
                    };
                    input = tail;
                    if let Err(error) = handshake.receive(head) {
                        played.result = Err(error);
                    }
                }
                Step::StartTls => {
                    played.tls_after = Some(self.bytes.len() - input.len());
                    handshake.tls_ready();
                }
                Step::Done => break,
            }
        }
        assert!(input.is_empty() || played.result.is_err());
        if played.result.is_ok() {
            played.result = Ok(handshake.take_outcome());
        }
        played
    }

    fn fails(&self, config: ClientConfig) -> Error {
        self.play(config).result.unwrap_err()
    }

    fn misbehaves(&self, config: ClientConfig) -> Misbehaviour {
        match self.fails(config) {
            Error::Misbehaved(misbehaviour) => misbehaviour,
            other => panic!("{other}"),
        }
    }
}

fn export(size: u64, flags: u16) -> Vec<u8> {
    let mut payload = vec![0, 0];
    payload.extend(size.to_be_bytes());
    payload.extend(flags.to_be_bytes());
    payload
}

fn block_size(minimum: u32, preferred: u32, maximum: u32) -> Vec<u8> {
    let mut payload = vec![0, 3];
    for size in [minimum, preferred, maximum] {
        payload.extend(size.to_be_bytes());
    }
    payload
}

fn config() -> ClientConfig {
    let mut config = ClientConfig::default();
    config.export = "disk".to_owned();
    config
}

fn goal(goal: Goal) -> ClientConfig {
    let mut config = config();
    config.goal = goal;
    config
}

fn tls(tls: Tls) -> ClientConfig {
    let mut config = config();
    config.tls = tls;
    config
}

fn options(played: &Played) -> Vec<u32> {
    let sent = played.sent.concat();
    let mut rest = &sent[4..];
    let mut options = Vec::new();
    while let Some(tail) = rest.strip_prefix(b"IHAVEOPT") {
        let field = |at: usize| u32::from_be_bytes(tail[at..at + 4].try_into().unwrap());
        options.push(field(0));
        rest = &tail[8 + field(4) as usize..];
    }
    options
}

#[test]
fn the_best_mode_that_the_server_has_is_negotiated() {
    let script = Script::fixed()
        .reply(11, ACK, b"")
        .context(10, 7, "base:allocation")
        .reply(10, ACK, b"")
        .export(7)
        .reply(7, INFO, b"\0\x01disk")
        .reply(7, INFO, b"\0\x02a disk")
        .reply(7, INFO, &block_size(512, 4096, 1 << 25))
        .reply(7, INFO, b"\x12\x34what is this")
        .reply(7, ACK, b"");
    let played = script.play(config());
    assert_eq!(options(&played), [11, 10, 7]);
    let Ok(Some(Outcome::Transmit(negotiated))) = played.result else {
        panic!("{:?}", played.result);
    };
    assert_eq!(negotiated.mode, ReplyMode::Extended);
    assert_eq!(negotiated.export_name, "disk");
    assert_eq!(negotiated.export.name.as_deref(), Some("disk"));
    assert_eq!(negotiated.export.description.as_deref(), Some("a disk"));
    assert_eq!(negotiated.export.size, 1 << 20);
    assert_eq!(negotiated.export.flags, TransmissionFlags::HAS_FLAGS);
    assert_eq!(negotiated.export.block_sizes.unwrap().minimum(), 512);
    assert_eq!(
        negotiated.contexts,
        [MetaContext {
            id: 7,
            name: "base:allocation".to_owned()
        }]
    );
    assert!(!negotiated.tls);
}

#[test]
fn a_server_without_extended_headers_is_asked_for_structured_replies() {
    let script = Script::fixed()
        .reply(11, UNSUP, b"what?")
        .reply(8, ACK, b"")
        .reply(10, UNSUP, b"")
        .export(7)
        .reply(7, ACK, b"");
    let played = script.play(config());
    assert_eq!(options(&played), [11, 8, 10, 7]);
    let Ok(Some(Outcome::Transmit(negotiated))) = played.result else {
        panic!("{:?}", played.result);
    };
    assert_eq!(negotiated.mode, ReplyMode::Structured);
    assert!(negotiated.contexts.is_empty());
}

#[test]
fn contexts_of_a_failed_selection_are_forgotten() {
    let script = Script::fixed()
        .reply(11, ACK, b"")
        .context(10, 1, "base:allocation")
        .reply(10, UNKNOWN, b"")
        .export(7)
        .reply(7, ACK, b"");
    let Ok(Some(Outcome::Transmit(negotiated))) = script.play(config()).result else {
        panic!();
    };
    assert!(negotiated.contexts.is_empty());
}

/// What a client that wants all contexts gets of a server that lists `listed`.
fn all_contexts(listed: &[String]) -> Played {
    let mut script = Script::fixed().reply(11, ACK, b"");
    for name in listed {
        script = script.context(9, 0, name);
    }
    script = script.reply(9, ACK, b"").context(10, 7, "base:allocation");
    if listed.len() > 1 {
        script = script.context(10, 9, &listed[1]);
    }
    let script = script.reply(10, ACK, b"").export(7).reply(7, ACK, b"");
    let mut config = config();
    config.all_contexts = true;
    script.play(config)
}

#[test]
fn all_contexts_are_those_that_the_server_lists() {
    let played = all_contexts(&[
        "base:allocation".to_owned(),
        "qemu:dirty-bitmap:b".to_owned(),
    ]);
    assert_eq!(options(&played), [11, 9, 10, 7]);
    let Ok(Some(Outcome::Transmit(negotiated))) = played.result else {
        panic!("{:?}", played.result);
    };
    let contexts = negotiated.contexts.iter();
    let contexts = contexts.map(|context| (context.id, &*context.name));
    assert!(contexts.eq([(7, "base:allocation"), (9, "qemu:dirty-bitmap:b")]));
}

#[test]
fn a_server_that_lists_contexts_without_end_is_asked_for_as_many_as_can_be_selected() {
    for (count, length) in [(4000, 100), (40, 4000)] {
        let names = (0..count).map(|number| format!("x:{number:0length$}"));
        let listed: Vec<_> = names.collect();
        let mut base = vec!["base:allocation".to_owned()];
        base.extend(listed);
        let played = all_contexts(&base);
        assert_eq!(options(&played), [11, 9, 10, 7]);
        let asked = &played.sent[3];
        assert!(asked.len() < 64 << 10, "{} bytes", asked.len());
        assert!(matches!(played.result, Ok(Some(Outcome::Transmit(_)))));
    }
}

#[test]
fn without_a_list_the_usual_contexts_are_selected() {
    let script = Script::fixed()
        .reply(11, ACK, b"")
        .reply(9, UNSUP, b"")
        .context(10, 7, "base:allocation")
        .reply(10, ACK, b"")
        .export(7)
        .reply(7, ACK, b"");
    let mut config = config();
    config.all_contexts = true;
    let played = script.play(config);
    assert_eq!(options(&played), [11, 9, 10, 7]);
    let Ok(Some(Outcome::Transmit(negotiated))) = played.result else {
        panic!("{:?}", played.result);
    };
    assert_eq!(negotiated.contexts[0].name, "base:allocation");
}

#[test]
fn without_go_the_export_is_opened_by_name() {
    let mut by_name = 4096_u64.to_be_bytes().to_vec();
    by_name.extend([0, 3]);
    let played = Script::simple()
        .reply(7, UNSUP, b"")
        .raw(&by_name)
        .play(config());
    assert_eq!(options(&played), [11, 8, 7, 1]);
    let Ok(Some(Outcome::Transmit(negotiated))) = played.result else {
        panic!("{:?}", played.result);
    };
    assert_eq!(negotiated.export.size, 4096);
    assert_eq!(
        negotiated.export.flags,
        TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY
    );
}

#[test]
fn zeroes_are_read_where_they_were_not_negotiated_away() {
    let mut by_name = 4096_u64.to_be_bytes().to_vec();
    by_name.extend([0, 1]);
    by_name.extend([0; 124]);
    // Not even fixed newstyle: no option but one can be tried.
    let played = Script::greeting(0).raw(&by_name).play(config());
    assert_eq!(options(&played), [1]);
    assert!(matches!(played.result, Ok(Some(Outcome::Transmit(_)))));
}

#[test]
fn a_hang_up_after_the_name_means_that_there_is_no_such_export() {
    let Error::Refused(refusal) = Script::greeting(0).fails(config()) else {
        panic!();
    };
    assert_eq!(refusal.code, OptionErrorCode::Unknown);
    assert_eq!(refusal.option, OptionCode::ExportName);
    assert_eq!(Script::fixed().fails(config()), Misbehaviour::HungUp.into());
}

#[test]
fn an_unknown_export_is_refused_and_the_client_says_goodbye() {
    let played = Script::simple()
        .reply(7, UNKNOWN, b"no disk here")
        .play(config());
    assert_eq!(options(&played), [11, 8, 7, 2]);
    let Err(Error::Refused(refusal)) = played.result else {
        panic!();
    };
    assert_eq!(refusal.code, OptionErrorCode::Unknown);
    assert_eq!(refusal.message, "no disk here");
}

#[test]
fn info_describes_one_export_and_leaves() {
    let script = Script::fixed()
        .reply(11, ACK, b"")
        .export(6)
        .reply(6, ACK, b"")
        .context(9, 0, "base:allocation")
        .context(9, 0, "qemu:dirty-bitmap:b")
        .reply(9, ACK, b"");
    let played = script.play(goal(Goal::Info));
    assert_eq!(options(&played), [11, 6, 9, 2]);
    let Ok(Some(Outcome::Info(report))) = played.result else {
        panic!("{:?}", played.result);
    };
    let names = report
        .negotiated
        .contexts
        .iter()
        .map(|context| &context.name);
    assert!(names.eq(["base:allocation", "qemu:dirty-bitmap:b"]));
}

#[test]
fn without_info_the_export_is_opened_and_left_at_once() {
    let mut by_name = 4096_u64.to_be_bytes().to_vec();
    by_name.extend([0, 1]);
    let script = Script::simple().reply(6, UNSUP, b"").raw(&by_name);
    let played = script.play(goal(Goal::Info));
    assert_eq!(options(&played), [11, 8, 6, 1]);
    assert!(matches!(played.result, Ok(Some(Outcome::Info(_)))));
    let farewell = played.sent.last().unwrap();
    assert_eq!(farewell.len(), 28);
    assert_eq!(farewell[..8], [0x25, 0x60, 0x95, 0x13, 0, 0, 0, 2]);
}

#[test]
fn an_oldstyle_greeting_is_all_there_is_to_know() {
    let mut config = config();
    config.export = String::new();
    let script = Script::old_style(12345, 0x0103);
    let played = script.play(config.clone());
    assert!(played.sent.is_empty());
    let Ok(Some(Outcome::Transmit(negotiated))) = played.result else {
        panic!("{:?}", played.result);
    };
    assert_eq!(negotiated.style, HandshakeStyle::Old);
    assert_eq!(negotiated.mode, ReplyMode::Simple);
    assert_eq!(negotiated.export.size, 12345);
    assert_eq!(
        negotiated.export.flags,
        TransmissionFlags::HAS_FLAGS
            | TransmissionFlags::READ_ONLY
            | TransmissionFlags::CAN_MULTI_CONN
    );
    assert!(negotiated.contexts.is_empty() && !negotiated.tls);

    // Who only wanted to know says goodbye to the transmission that has begun.
    let mut wanted = config.clone();
    wanted.goal = Goal::Info;
    let played = script.play(wanted);
    assert_eq!(played.sent.len(), 1);
    assert_eq!(played.sent[0][..8], [0x25, 0x60, 0x95, 0x13, 0, 0, 0, 2]);
    assert!(matches!(played.result, Ok(Some(Outcome::Info(_)))));

    let played = Script::old_style(1 << 63, 1).play(config.clone());
    assert_eq!(
        played.result.unwrap_err(),
        Misbehaviour::ExportSize(1 << 63).into()
    );
    let played = Script::old_style(1, 2).play(config);
    assert_eq!(
        played.result.unwrap_err(),
        Misbehaviour::TransmissionFlags(2).into()
    );
}

#[test]
fn an_oldstyle_server_does_not_get_away_with_another_export() {
    let mut named = config();
    named.export = "disk".to_owned();
    assert_eq!(
        Script::old_style(1 << 20, 1).fails(named),
        Incompatibility::OldStyle.into()
    );
}

#[test]
fn a_list_asks_about_every_export_and_survives_the_failure_of_one() {
    let script = Script::fixed()
        .reply(11, UNSUP, b"")
        .reply(8, ACK, b"")
        .listed("a", "first")
        .listed("b", "")
        .reply(3, ACK, b"")
        .reply(6, UNKNOWN, b"gone")
        .export(6)
        .reply(6, ACK, b"")
        .reply(9, UNSUP, b"");
    let played = script.play(goal(Goal::List));
    assert_eq!(options(&played), [11, 8, 3, 6, 6, 9, 2]);
    let Ok(Some(Outcome::List(report))) = played.result else {
        panic!("{:?}", played.result);
    };
    assert_eq!(report.mode, ReplyMode::Structured);
    let listed = report.exports;
    assert_eq!(listed[0].export.description, "first");
    assert_eq!(
        listed[0].info.as_ref().unwrap_err().code,
        OptionErrorCode::Unknown
    );
    assert_eq!(listed[1].info.as_ref().unwrap().export_name, "b");
}

#[test]
fn tls_starts_right_after_its_acknowledgement_and_everything_comes_after() {
    let before = Script::fixed().reply(5, ACK, b"");
    let length = before.bytes.len();
    let script = before
        .reply(11, UNSUP, b"")
        .reply(8, UNSUP, b"")
        .export(7)
        .reply(7, ACK, b"");
    for mode in [Tls::Prefer, Tls::Require] {
        let played = script.play(tls(mode));
        assert_eq!(played.tls_after, Some(length));
        assert_eq!(options(&played), [5, 11, 8, 7]);
        let Ok(Some(Outcome::Transmit(negotiated))) = played.result else {
            panic!();
        };
        assert!(negotiated.tls);
    }
}

#[test]
fn a_refusal_of_tls_matters_only_where_tls_is_required() {
    let script = Script::fixed()
        .reply(5, UNSUP, b"")
        .reply(11, UNSUP, b"")
        .reply(8, UNSUP, b"")
        .export(7)
        .reply(7, ACK, b"");
    assert!(script.play(tls(Tls::Prefer)).result.is_ok());
    let played = script.play(tls(Tls::Require));
    assert_eq!(options(&played), [5, 2]);
    assert_eq!(
        played.result.unwrap_err(),
        Incompatibility::TlsRefused.into()
    );
}

#[test]
fn a_server_that_requires_tls_is_incompatible_without_it() {
    let script = Script::fixed().reply(11, TLS_REQD, b"");
    assert_eq!(script.fails(config()), Incompatibility::TlsRequired.into());
    let script = Script::simple().reply(7, TLS_REQD, b"");
    assert_eq!(script.fails(config()), Incompatibility::TlsRequired.into());
}

#[test]
fn servers_of_another_kind_are_incompatible() {
    let cases = [
        (
            b"SSH-2.0-OpenSSH_9".to_vec(),
            Tls::Off,
            Goal::Transmit,
            Incompatibility::NotNbd(u64::from_be_bytes(*b"SSH-2.0-")),
        ),
        (
            Script::old_style(1 << 20, 1).bytes,
            Tls::Off,
            Goal::List,
            Incompatibility::OldStyle,
        ),
        (
            Script::old_style(1 << 20, 1).bytes,
            Tls::Require,
            Goal::Transmit,
            Incompatibility::OldStyle,
        ),
        (
            b"NBDMAGICIHAVENOT\0\0".to_vec(),
            Tls::Off,
            Goal::Transmit,
            Incompatibility::UnknownStyle(u64::from_be_bytes(*b"IHAVENOT")),
        ),
        (
            Script::greeting(2).bytes,
            Tls::Require,
            Goal::Transmit,
            Incompatibility::NotFixedNewstyle,
        ),
        (
            Script::greeting(2).bytes,
            Tls::Off,
            Goal::List,
            Incompatibility::NotFixedNewstyle,
        ),
    ];
    for (bytes, tls, goal, expected) in cases {
        let mut config = config();
        config.tls = tls;
        config.goal = goal;
        let played = Script { bytes }.play(config);
        assert!(played.sent.is_empty());
        assert_eq!(played.result.unwrap_err(), expected.into());
    }
}

#[test]
fn a_server_that_shuts_down_is_left() {
    let played = Script::fixed().reply(11, SHUTDOWN, b"").play(config());
    assert_eq!(options(&played), [11, 2]);
    assert!(matches!(played.result, Err(Error::Refused(_))));
}

#[test]
fn a_reply_without_its_magic_or_to_another_option_is_misbehaviour() {
    assert_eq!(
        Script::fixed().raw(&[7; 20]).misbehaves(config()),
        Misbehaviour::OptionReplyMagic(0x0707_0707_0707_0707)
    );
    assert_eq!(
        Script::fixed().reply(8, ACK, b"").misbehaves(config()),
        Misbehaviour::ReplyToOtherOption {
            asked: OptionCode::ExtendedHeaders,
            answered: 8
        }
    );
    // A reply behind the final one is taken for a reply to the next option, and is to another.
    assert_eq!(
        Script::fixed()
            .reply(11, ACK, b"")
            .reply(11, ACK, b"")
            .misbehaves(config()),
        Misbehaviour::ReplyToOtherOption {
            asked: OptionCode::SetMetaContext,
            answered: 11
        }
    );
}

#[test]
fn a_reply_type_that_does_not_belong_to_the_option_is_misbehaviour() {
    for (script, option, reply) in [
        (
            Script::fixed().reply(11, INFO, &export(1, 1)),
            OptionCode::ExtendedHeaders,
            INFO,
        ),
        (
            Script::simple().reply(7, SERVER, b""),
            OptionCode::Go,
            SERVER,
        ),
        (Script::simple().reply(7, 99, b""), OptionCode::Go, 99),
    ] {
        assert_eq!(
            script.misbehaves(config()),
            Misbehaviour::UnexpectedOptionReply { option, reply }
        );
    }
}

#[test]
fn lengths_are_bounded_before_anything_is_read() {
    let head = |option: u32, kind: u32, length: u32| {
        let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes
    };
    for (goal_is, option, kind, limit) in [
        (Goal::Transmit, 7, ACK, 0),
        (Goal::Transmit, 7, INFO, 4098),
        (Goal::Transmit, 7, UNKNOWN, 4096),
        (Goal::List, 3, SERVER, 8196),
    ] {
        for length in [limit + 1, u32::MAX] {
            let script = Script::simple().raw(&head(option, kind, length));
            assert_eq!(
                script.misbehaves(goal(goal_is)),
                Misbehaviour::OptionReplyTooLong {
                    option: OptionCode::from_wire(option),
                    reply: kind,
                    length,
                    limit
                }
            );
        }
    }
}

#[test]
fn malformed_information_is_misbehaviour() {
    for payload in [
        &b""[..],
        b"\0",
        b"\0\0\0\0",
        b"\0\0\0\0\0\0\0\0\0\0\0\x01\0",
        b"\0\x01na\0me",
        b"\0\x01\xff",
        b"\0\x03\0\0\0\x01",
    ] {
        assert_eq!(
            Script::simple()
                .reply(7, INFO, payload)
                .misbehaves(config()),
            Misbehaviour::OptionReplyMalformed {
                option: OptionCode::Go,
                reply: INFO
            }
        );
    }
}

#[test]
fn impossible_exports_are_misbehaviour() {
    let too_large = 1 << 63;
    let cases = [
        (
            vec![export(too_large, 1)],
            Misbehaviour::ExportSize(too_large),
        ),
        (
            vec![export(512, 0x0102)],
            Misbehaviour::TransmissionFlags(0x0102),
        ),
        (vec![], Misbehaviour::MissingExportInfo(OptionCode::Go)),
        (
            vec![export(512, 1), export(1024, 1)],
            Misbehaviour::DuplicateInfo(0),
        ),
        (
            vec![b"\0\x01a".to_vec(), b"\0\x01a".to_vec()],
            Misbehaviour::DuplicateInfo(1),
        ),
    ];
    for (infos, expected) in cases {
        let script = infos
            .iter()
            .fold(Script::simple(), |script, info| script.reply(7, INFO, info))
            .reply(7, ACK, b"");
        assert_eq!(script.misbehaves(config()), expected);
    }
    let script = Script::simple()
        .export(7)
        .reply(7, INFO, &block_size(3, 4096, 1 << 20))
        .reply(7, ACK, b"");
    assert!(matches!(
        script.misbehaves(config()),
        Misbehaviour::BlockSizes(_)
    ));
    let mut by_name = u64::MAX.to_be_bytes().to_vec();
    by_name.extend([0, 1]);
    assert_eq!(
        Script::greeting(2).raw(&by_name).misbehaves(config()),
        Misbehaviour::ExportSize(u64::MAX)
    );
}

#[test]
fn a_small_export_may_have_a_maximum_below_the_preferred_block_size() {
    let script = Script::simple()
        .reply(7, INFO, &export(1024, 1))
        .reply(7, INFO, &block_size(1, 4096, 1024))
        .reply(7, ACK, b"");
    let Ok(Some(Outcome::Transmit(negotiated))) = script.play(config()).result else {
        panic!();
    };
    assert_eq!(negotiated.export.block_sizes.unwrap().preferred(), 4096);
}

#[test]
fn only_contexts_that_were_asked_for_are_accepted_and_each_once() {
    let asked = || Script::fixed().reply(11, ACK, b"");
    assert_eq!(
        asked().context(10, 1, "qemu:x").misbehaves(config()),
        Misbehaviour::ContextNotRequested("qemu:x".to_owned())
    );
    let mut two = config();
    two.contexts = vec!["base:allocation".to_owned(), "a:b".to_owned()];
    for (id, name) in [(2, "base:allocation"), (1, "a:b")] {
        assert_eq!(
            asked()
                .context(10, 1, "base:allocation")
                .context(10, id, name)
                .misbehaves(two.clone()),
            Misbehaviour::DuplicateContext {
                id,
                name: name.to_owned()
            }
        );
    }
    assert_eq!(
        asked()
            .reply(10, META_CONTEXT, b"\0\0")
            .misbehaves(config()),
        Misbehaviour::OptionReplyMalformed {
            option: OptionCode::SetMetaContext,
            reply: META_CONTEXT
        }
    );
}

#[test]
fn replies_without_end_are_misbehaviour() {
    let mut script = Script::simple();
    for _ in 0..=limits::LISTED_EXPORTS {
        script = script.listed("x", "");
    }
    assert_eq!(
        script.misbehaves(goal(Goal::List)),
        Misbehaviour::TooManyReplies {
            option: OptionCode::List,
            limit: limits::LISTED_EXPORTS
        }
    );
    let mut script = Script::simple();
    for _ in 0..=limits::INFO_REPLIES {
        script = script.reply(7, INFO, b"\x12\x34");
    }
    assert_eq!(
        script.misbehaves(config()),
        Misbehaviour::TooManyReplies {
            option: OptionCode::Go,
            limit: limits::INFO_REPLIES
        }
    );
}

#[test]
fn a_long_list_with_long_descriptions_is_bounded_in_bytes() {
    let description = "d".repeat(4096);
    let name = "n".repeat(4096);
    let mut script = Script::simple();
    for _ in 0..=limits::HANDSHAKE_BYTES / 8192 {
        script = script.listed(&name, &description);
    }
    assert_eq!(
        script.misbehaves(goal(Goal::List)),
        Misbehaviour::HandshakeTooLong(limits::HANDSHAKE_BYTES)
    );
}

#[test]
fn listed_names_must_be_names() {
    for payload in [
        &b"\0\0\0\x02a"[..],
        b"\xff\xff\xff\xff",
        b"\0\0\0\x01\0",
        b"\0\0\0\x01\xff",
    ] {
        assert_eq!(
            Script::simple()
                .reply(3, SERVER, payload)
                .misbehaves(goal(Goal::List)),
            Misbehaviour::OptionReplyMalformed {
                option: OptionCode::List,
                reply: SERVER
            }
        );
    }
}

#[test]
fn names_that_the_protocol_cannot_carry_are_misuse() {
    for export in ["a\0b".to_owned(), "a".repeat(4097)] {
        let mut config = config();
        config.export = export;
        assert_eq!(
            ClientHandshake::new(config).unwrap_err(),
            Misuse::Name.into()
        );
    }
    let contexts = vec!["a:b".to_owned(); 65];
    let mut config = config();
    config.contexts = contexts;
    assert_eq!(
        ClientHandshake::new(config).unwrap_err(),
        Misuse::TooManyContexts(64).into()
    );
}

#[test]
fn bytes_out_of_turn_are_misuse_and_change_nothing() {
    let mut handshake = ClientHandshake::new(config()).unwrap();
    assert_eq!(handshake.step(), Step::Receive(8));
    assert_eq!(
        handshake.receive(b"NBD"),
        Err(Misuse::WrongLength {
            wanted: 8,
            given: 3
        }
        .into())
    );
    assert_eq!(handshake.step(), Step::Receive(8));
    handshake.receive(b"NBDMAGIC").unwrap();
    assert_eq!(handshake.step(), Step::Receive(8));
    handshake.receive(b"IHAVEOPT").unwrap();
    assert_eq!(handshake.step(), Step::Receive(2));
}
