//! Servers that mean well, whatever they have and have not.

use blockferry_proto::{
    Error, Goal, HandshakeStyle, Incompatibility, MetaContext, Misbehaviour, OptionCode,
    OptionErrorCode, Outcome, ReplyMode, Tls, TransmissionFlags,
};

use crate::script::{
    ACK, INFO, Played, Script, TLS_REQD, UNKNOWN, UNSUP, block_size, config, goal, options, tls,
};

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
