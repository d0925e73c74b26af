//! Whatever a server says during the handshake, a client ends it in order: no panic, no read of a
//! size that the server chose freely, and nothing that breaks the rules in its outcome.
#![no_main]

use blockferry_proto::{
    ClientConfig, ClientHandshake, Goal, Negotiated, Outcome, Step, Tls, limits,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, mut input)) = data.split_first() else {
        return;
    };
    let goal = match choice & 3 {
        0 | 1 => Goal::Transmit,
        2 => Goal::Info,
        _ => Goal::List,
    };
    let tls = match choice >> 2 & 3 {
        0 | 1 => Tls::Off,
        2 => Tls::Prefer,
        _ => Tls::Require,
    };
    let mut config = ClientConfig::default();
    config.export = if choice & 64 == 0 { "disk" } else { "" }.to_owned();
    config.goal = goal;
    config.tls = tls;
    config.contexts = vec!["base:allocation".to_owned(), "a:b".to_owned()];
    config.structured = choice & 16 == 0;
    config.extended = choice & 32 == 0;
    config.all_contexts = choice & 128 != 0;
    let mut handshake = ClientHandshake::new(config).expect("the names are fine");
    let mut secured = false;
    let mut failed = false;
    loop {
        match handshake.step() {
            Step::Send(bytes) => assert!(!bytes.is_empty()),
            Step::Receive(count) => {
                assert!(!failed, "a handshake goes on after an error");
                assert!(0 < count && count <= 2 * limits::STRING + 4);
                let Some((head, tail)) = input.split_at_checked(count) else {
                    let _ = handshake.hung_up().to_string();
                    return;
                };
                input = tail;
                if let Err(error) = handshake.receive(head) {
                    let _ = error.to_string();
                    failed = true;
                }
            }
            Step::StartTls => {
                assert!(!secured && tls != Tls::Off);
                secured = true;
                handshake.tls_ready();
            }
            Step::Done => break,
        }
    }
    let outcome = handshake.take_outcome();
    assert_eq!(outcome.is_none(), failed);
    let check = |negotiated: &Negotiated| {
        assert!(negotiated.export.size <= limits::EXPORT_SIZE);
        assert_eq!(negotiated.tls, secured);
        assert!(secured || tls != Tls::Require);
    };
    match outcome {
        None => {}
        Some(Outcome::Transmit(negotiated)) => {
            check(&negotiated);
            assert!(negotiated.contexts.len() <= 2);
        }
        Some(Outcome::Info(report)) => check(&report.negotiated),
        Some(Outcome::List(report)) => {
            let listed = &report.exports;
            assert!(listed.len() <= limits::LISTED_EXPORTS);
            listed.iter().flat_map(|one| &one.info).for_each(check);
        }
    }
});
