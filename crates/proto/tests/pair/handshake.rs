//! Every combination of what a client may want and a server may grant.

use blockferry_proto::{
    ClientConfig, Goal, Negotiated, OptionErrorCode, Outcome, ReplyMode, ServerConfig, Tls,
    TlsPolicy, TransmissionFlags,
};
use blockferry_proto::{Error, Incompatibility};
use proptest::prelude::*;

use crate::link::join;

fn names(negotiated: &Negotiated) -> Vec<&str> {
    let contexts = negotiated.contexts.iter();
    contexts.map(|context| context.name.as_str()).collect()
}

#[derive(Clone, Copy, Debug)]
struct Case {
    client_tls: Tls,
    server_tls: TlsPolicy,
    client_structured: bool,
    server_structured: bool,
    client_extended: bool,
    server_extended: bool,
    contexts: bool,
    knows_go: bool,
}

impl Case {
    fn client(self, goal: Goal, export: &str) -> ClientConfig {
        let contexts = ["base:allocation", "not:there"].map(str::to_owned);
        let mut config = ClientConfig::default();
        config.export = export.to_owned();
        config.goal = goal;
        config.tls = self.client_tls;
        config.contexts = if self.contexts {
            contexts.to_vec()
        } else {
            Vec::new()
        };
        config.all_contexts = false;
        config.structured = self.client_structured;
        config.extended = self.client_extended;
        config
    }

    fn server(self) -> ServerConfig {
        let mut config = ServerConfig::default();
        config.tls = self.server_tls;
        config.structured = self.server_structured;
        config.extended = self.server_extended;
        config
    }

    fn mode(self) -> ReplyMode {
        if self.client_extended && self.server_extended {
            ReplyMode::Extended
        } else if self.client_structured && self.server_structured {
            ReplyMode::Structured
        } else {
            ReplyMode::Simple
        }
    }

    fn tls(self) -> Result<bool, Incompatibility> {
        match (self.client_tls, self.server_tls) {
            (Tls::Off, TlsPolicy::Require) => Err(Incompatibility::TlsRequired),
            (Tls::Require, TlsPolicy::Off) => Err(Incompatibility::TlsRefused),
            (Tls::Off, _) | (_, TlsPolicy::Off) => Ok(false),
            _ => Ok(true),
        }
    }
}

fn cases() -> impl Iterator<Item = Case> {
    let flags = 0u32..64;
    let tls = [Tls::Off, Tls::Prefer, Tls::Require];
    let policies = [TlsPolicy::Off, TlsPolicy::Offer, TlsPolicy::Require];
    flags.flat_map(move |bits| {
        tls.into_iter().flat_map(move |client_tls| {
            policies.into_iter().map(move |server_tls| Case {
                client_tls,
                server_tls,
                client_structured: bits & 1 != 0,
                server_structured: bits & 2 != 0,
                client_extended: bits & 4 != 0,
                server_extended: bits & 8 != 0,
                contexts: bits & 16 != 0,
                knows_go: bits & 32 != 0,
            })
        })
    })
}

#[test]
fn both_sides_agree_on_how_to_transmit() {
    for case in cases() {
        let joined = join(
            case.client(Goal::Transmit, "disk"),
            case.server(),
            case.knows_go,
        );
        let tls = match case.tls() {
            Ok(tls) => tls,
            Err(incompatibility) => {
                assert_eq!(joined.client, Err(incompatibility.into()), "{case:?}");
                assert_eq!(joined.server, Ok(None));
                continue;
            }
        };
        assert_eq!(joined.tls, tls, "{case:?}");
        if !case.knows_go && case.mode() == ReplyMode::Extended {
            let Err(Error::Refused(refusal)) = joined.client else {
                panic!("{case:?}: {:?}", joined.client);
            };
            assert_eq!(refusal.code, OptionErrorCode::Unsupported);
            continue;
        }
        let Ok(Some(Outcome::Transmit(client))) = joined.client else {
            panic!("{case:?}: {:?}", joined.client);
        };
        let server = joined.server.unwrap().unwrap();
        assert_eq!(client.mode, case.mode(), "{case:?}");
        assert_eq!(client.tls, tls);
        assert_eq!(client.export_name, "disk");
        assert_eq!(client.export.size, server.export.size);
        assert_eq!(client.export.flags, server.export.flags);
        assert_eq!(client.contexts, server.contexts, "{case:?}");
        assert_eq!(client.mode, server.mode);
        assert_eq!(client.tls, server.tls);
        assert_eq!(client.handshake_flags, server.handshake_flags);
        let expected: &[&str] = if case.contexts && client.mode.is_chunked() {
            &["base:allocation"]
        } else {
            &[]
        };
        assert_eq!(names(&client), expected, "{case:?}");
        let has_flag = |flag| client.export.flags.contains(flag);
        assert_eq!(
            has_flag(TransmissionFlags::SEND_DF),
            client.mode.is_chunked()
        );
        assert_eq!(
            has_flag(TransmissionFlags::BLOCK_STATUS_PAYLOAD),
            client.mode == ReplyMode::Extended
        );
        if case.knows_go {
            assert_eq!(client.export, server.export, "{case:?}");
        }
    }
}

#[test]
fn both_goodbyes_are_understood() {
    for case in cases().filter(|case| case.tls().is_ok() && case.knows_go) {
        let joined = join(case.client(Goal::Info, ""), case.server(), true);
        assert_eq!(joined.server, Ok(None));
        let Ok(Some(Outcome::Info(report))) = joined.client else {
            panic!("{case:?}: {:?}", joined.client);
        };
        let export = &report.negotiated.export;
        assert_eq!(export.name.as_deref(), Some("disk"));
        assert_eq!(export.description.as_deref(), Some("the first disk"));
        let expected: &[&str] = if case.mode().is_chunked() {
            &["base:allocation", "a:depth"]
        } else {
            &[]
        };
        assert_eq!(names(&report.negotiated), expected);

        let joined = join(case.client(Goal::List, ""), case.server(), true);
        assert_eq!(joined.server, Ok(None));
        let Ok(Some(Outcome::List(report))) = joined.client else {
            panic!("{case:?}: {:?}", joined.client);
        };
        let listed = report.exports;
        assert_eq!(listed.len(), 2);
        assert_eq!(listed[0].export.description, "the first disk");
        assert_eq!(names(listed[0].info.as_ref().unwrap()), expected);
        let refusal = listed[1].info.as_ref().unwrap_err();
        assert_eq!(refusal.code, OptionErrorCode::Unknown);
        assert_eq!(refusal.message, "no such export here");
    }
}

#[test]
fn an_unknown_export_is_refused_in_words_or_by_hanging_up() {
    for case in cases().filter(|case| case.tls() == Ok(false)) {
        let joined = join(
            case.client(Goal::Transmit, "ghost"),
            case.server(),
            case.knows_go,
        );
        assert_eq!(joined.server, Ok(None));
        let Err(Error::Refused(refusal)) = joined.client else {
            panic!("{case:?}: {:?}", joined.client);
        };
        if case.knows_go {
            assert_eq!(refusal.message, "no such export here");
        } else {
            assert_eq!(refusal.message, "");
        }
    }
}

#[test]
fn an_export_without_anything_is_enough() {
    for case in cases().filter(|case| case.tls() == Ok(true) && case.knows_go) {
        let joined = join(case.client(Goal::Transmit, "small"), case.server(), true);
        let Ok(Some(Outcome::Transmit(client))) = joined.client else {
            panic!("{case:?}: {:?}", joined.client);
        };
        assert_eq!(client.export.size, 512);
        assert_eq!(client.export.block_sizes, None);
        assert!(client.contexts.is_empty());
    }
}

proptest! {
    #[test]
    fn any_name_reaches_the_server_whole(export in "\\PC{0,64}") {
        let mut config = ClientConfig::default();
        config.export = export.clone();
        let joined = join(config, ServerConfig::default(), true);
        match joined.client {
            Ok(_) => prop_assert!(["", "disk", "small"].contains(&export.as_str())),
            Err(Error::Refused(refusal)) => prop_assert_eq!(refusal.code, OptionErrorCode::Unknown),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}
