//! Whatever a compressed cluster holds, it is decompressed or refused; and every cluster that is compressed comes back.
#![no_main]

use blockferry_format::fuzzing::check_qcow2_cluster;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else {
        return;
    };
    check_qcow2_cluster(choice, data, &written(choice, data));
});

/// A cluster that repeats itself as `data` says: three bytes are a literal, or a length and how far back.
fn written(choice: u8, data: &[u8]) -> Vec<u8> {
    let size = 512 << (choice % 9);
    let mut cluster = Vec::with_capacity(size + 512);
    for step in data.chunks_exact(3).cycle().take(size) {
        let back = usize::from(u16::from_be_bytes([step[1], step[2]])) + 1;
        match step[0] {
            0..128 => cluster.push(step[1]),
            length if back <= cluster.len() => {
                let start = cluster.len() - back;
                for at in start..start + 3 + 2 * usize::from(length - 128) {
                    cluster.push(cluster[at]);
                }
            }
            _ => cluster.extend_from_slice(step),
        }
        if cluster.len() >= size {
            break;
        }
    }
    cluster.resize(size, 0);
    cluster
}
