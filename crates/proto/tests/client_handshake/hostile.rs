//! Servers of another kind, and such as break the rules; and a driver that does.

use blockferry_proto::{
    ClientHandshake, Error, Goal, Incompatibility, Misbehaviour, Misuse, OptionCode, Outcome, Step,
    Tls, limits,
};

use crate::script::{
    ACK, INFO, META_CONTEXT, SERVER, SHUTDOWN, Script, UNKNOWN, block_size, config, export, goal,
    options,
};

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
