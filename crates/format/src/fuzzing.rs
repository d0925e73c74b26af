//! What fuzzers do to the inside of formats. No part of the interface.

use blockferry_block::ErrorKind;

use crate::qcow2::Header;

/// Parses `bytes` as the header of a qcow2 image. What is written of it must say the same, and stay the same.
///
/// # Panics
/// When it does not.
pub fn check_qcow2_header(bytes: &[u8]) {
    let header = match Header::parse(bytes) {
        Ok(header) => header,
        Err(error) => {
            assert!(!error.to_string().contains(char::is_control), "{error}");
            return;
        }
    };
    let written = match header.encode() {
        Ok(written) => written,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            return;
        }
    };
    let again = Header::parse(&written).expect("it was written here");
    let mut expected = header;
    expected.length = again.length;
    assert_eq!(again, expected);
    assert_eq!(again.encode().expect("it fitted before"), written);
}
