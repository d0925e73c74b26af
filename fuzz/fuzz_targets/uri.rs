//! Any text is an NBD URI that survives being printed, or an error of one line.
#![no_main]

use blockferry_proto::{NbdUri, Transport, is_nbd_uri};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match text.parse::<NbdUri>() {
        Ok(uri) => {
            assert!(is_nbd_uri(text));
            if let Transport::Ssh { host, .. } = &uri.transport {
                assert!(!host.is_empty() && !host.starts_with('-'));
            }
            let printed = uri.to_string();
            assert_eq!(printed.parse().as_ref(), Ok(&uri), "{printed}");
        }
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
});
