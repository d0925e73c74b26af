//! What fuzzers do to the inside of formats. No part of the interface.

use blockferry_block::ErrorKind;

use crate::qcow2::{
    Compression, Header,
    codec::{CompressionSettings, Compressor, Decompressor},
};

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

/// Decompresses `stream` as a cluster of either kind, and compresses `cluster` in all ways that are fast enough, of
/// which `choice` takes one: it must come back, and again after a stream that is none.
///
/// # Panics
/// When it does not.
pub fn check_qcow2_cluster(choice: u8, stream: &[u8], cluster: &[u8]) {
    let mut decompressor = Decompressor::new();
    let mut back = vec![0; cluster.len()];
    for kind in [Compression::Zlib, Compression::Zstd] {
        if let Err(error) = decompressor.decompress(kind, stream, &mut back) {
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        }
    }
    let settings = [
        (Compression::Zlib, None, 4096),
        (Compression::Zlib, Some(2), 32768),
        (Compression::Zlib, None, 32768),
        (Compression::Zstd, None, 4096),
        (Compression::Zlib, Some(9), 4096),
    ];
    let (kind, level, window) = settings[usize::from(choice) % settings.len()];
    let mut compressor = Compressor::new(&CompressionSettings {
        kind,
        level,
        window,
    });
    let mut out = vec![0; cluster.len()];
    let first = compressor.compress(cluster, &mut out);
    if let Some(length) = first {
        assert!(length < cluster.len());
        let decompressed = decompressor.decompress(kind, &out, &mut back);
        decompressed.expect("it was compressed here");
        assert!(back == cluster, "another cluster came back");
    }
    compressor.compress(stream, &mut vec![0; stream.len()]);
    assert_eq!(compressor.compress(cluster, &mut out), first);
}
