//! Whatever an image begins with: its header is refused in one line, or it is written again as it was read.
#![no_main]

use blockferry_format::fuzzing::check_qcow2_header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    check_qcow2_header(data);
    // No fuzzer should have to find these out: the magic, the version, the size of clusters.
    let mut likely = data.to_vec();
    likely.resize(data.len().max(112), 0);
    let mut put = |at: usize, bytes: &[u8]| likely[at..at + bytes.len()].copy_from_slice(bytes);
    let at = |at: usize| data.get(at).copied().unwrap_or_default();
    put(0, b"QFI\xfb");
    put(4, &[0, 0, 0, 2 + (at(7) & 1)]);
    put(20, &[0, 0, 0, 9 + at(23) % 13]);
    put(32, &[0; 4]);
    put(72, &[0, 0, 0, 0, 0, 0, 0, at(79) & 7]);
    put(100, &[0, 0, 0, 104 + (at(103) & 8)]);
    check_qcow2_header(&likely);
});
