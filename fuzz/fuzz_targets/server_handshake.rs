//! Whatever a client says during the handshake, a server stays in order: no panic, no read of a
//! size that the client chose freely, and no word about an export before required TLS.
#![no_main]

use blockferry_proto::{
    ListedExport, OptionErrorCode, OptionRefusal, ReplyMode, ServedExport, ServerConfig,
    ServerHandshake, ServerStep, TlsPolicy, TransmissionFlags, limits,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, mut input)) = data.split_first() else {
        return;
    };
    let tls = match choice & 3 {
        0 | 1 => TlsPolicy::Off,
        2 => TlsPolicy::Offer,
        _ => TlsPolicy::Require,
    };
    let mut config = ServerConfig::default();
    config.tls = tls;
    config.structured = choice & 4 == 0;
    config.extended = choice & 8 == 0;
    config.max_options = 50;
    config.meta_contexts = choice & 16 == 0;
    let mut handshake = ServerHandshake::new(config);
    let mut secured = false;
    loop {
        match handshake.step() {
            ServerStep::Send(bytes) => assert!(!bytes.is_empty()),
            ServerStep::Receive(count) => {
                assert!(0 < count && count <= limits::OPTION_PAYLOAD);
                let Some((head, tail)) = input.split_at_checked(count) else {
                    return;
                };
                input = tail;
                if let Err(error) = handshake.receive(head) {
                    let _ = error.to_string();
                    assert_eq!(handshake.step(), ServerStep::Close);
                    return;
                }
            }
            ServerStep::Discard(count) => {
                assert!(0 < count && count <= limits::OPTION_DISCARD);
                input = input.get(count..).unwrap_or_default();
            }
            ServerStep::StartTls => {
                assert!(!secured && tls != TlsPolicy::Off);
                secured = true;
                handshake.tls_ready();
            }
            ServerStep::Open { name, .. } => {
                assert!(secured || tls != TlsPolicy::Require);
                assert!(name.len() <= limits::STRING && !name.contains('\0'));
                handshake.export(match name.as_str() {
                    "no" => Err(OptionRefusal::new(OptionErrorCode::Unknown, "no")),
                    _ => Ok(ServedExport {
                        canonical_name: None,
                        description: Some("d".to_owned()),
                        size: 1 << 20,
                        flags: TransmissionFlags::all(),
                        block_sizes: None,
                        contexts: vec!["base:allocation".to_owned(), "a:b".to_owned()],
                    }),
                });
            }
            ServerStep::List => {
                assert!(secured || tls != TlsPolicy::Require);
                handshake.exports(Ok(vec![ListedExport::default()]));
            }
            ServerStep::Done(negotiated) => {
                assert_eq!(negotiated.tls, secured);
                assert!(secured || tls != TlsPolicy::Require);
                assert!(negotiated.contexts.is_empty() || negotiated.mode != ReplyMode::Simple);
                return;
            }
            ServerStep::Close => return,
        }
    }
});
