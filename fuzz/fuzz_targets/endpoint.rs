//! An argument becomes an endpoint or an error that can be printed; nothing is opened.

#![no_main]

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use blockferry::endpoint::{Endpoint, SOURCES, escape_commas};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let text = OsStr::from_bytes(input);
    let shown = match Endpoint::parse(text) {
        Ok(endpoint) => {
            assert!(!endpoint.kind().source_kind().name.is_empty());
            endpoint.to_string()
        }
        Err(error) => error.to_string(),
    };
    assert!(!shown.contains(char::is_control), "{shown:?}");
    // As the value of a parameter it is one value, whatever is in it.
    if !input.is_empty() && !input.contains(&0) {
        let escaped = [b"split:", escape_commas(text).as_bytes()].concat();
        Endpoint::parse(OsStr::from_bytes(&escaped)).expect("one file");
    }
    for row in SOURCES {
        let text = [row.name.as_bytes(), b":", input].concat();
        let _ = Endpoint::parse(OsStr::from_bytes(&text));
    }
});
