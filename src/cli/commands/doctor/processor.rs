//! The processors, and which of their instructions our libraries use.

use super::finding::{Finding, Group, State};

pub(super) fn findings() -> Group {
    let mut findings = vec![count()];
    findings.extend(instructions());
    Group(findings)
}

fn count() -> Finding {
    match std::thread::available_parallelism() {
        Ok(count) => Finding::new("processors", State::Yes)
            .value(count.get(), count.to_string())
            .meaning("so many threads compress, hash and compare; a copy moves its data on one"),
        Err(error) => {
            Finding::new("processors", State::Unknown).meaning(crate::system::words(&error))
        }
    }
}

/// Each is used where it is there, without being asked for.
#[cfg(target_arch = "x86_64")]
fn instructions() -> Vec<Finding> {
    use std::arch::is_x86_feature_detected as has;
    let sha = has!("sha") && has!("ssse3") && has!("sse4.1");
    let crc = has!("pclmulqdq") && has!("sse4.1");
    let aes = has!("aes") && has!("pclmulqdq");
    vec![
        zero_scan("SSE2"),
        instruction("SHA", sha, "sha1 and sha256"),
        instruction("CRC", crc, "the checksums of gzip and ZIP"),
        instruction("AES", aes, "TLS"),
    ]
}

#[cfg(target_arch = "aarch64")]
fn instructions() -> Vec<Finding> {
    use std::arch::is_aarch64_feature_detected as has;
    vec![
        zero_scan("NEON"),
        instruction("SHA", has!("sha2"), "sha1 and sha256"),
        instruction("CRC", has!("crc"), "the checksums of gzip and ZIP"),
        instruction("AES", has!("aes"), "TLS"),
    ]
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn instructions() -> Vec<Finding> {
    Vec::new()
}

/// The compiler makes it of what every processor of the kind has.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn zero_scan(by: &str) -> Finding {
    let found = Finding::new("zero scan", State::Yes).value(by, by);
    found.meaning("zeroes are found as fast as memory is read")
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn instruction(name: &str, is_there: bool, what: &str) -> Finding {
    match is_there {
        true => {
            Finding::new(name, State::Yes).meaning(format!("{what}: by instructions made for it"))
        }
        false => Finding::new(name, State::No).meaning(format!("{what}: in software, slower")),
    }
}
