//! What an export begins with, in the words of `file(1)`.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use crate::{
    client::{ConnectOptions, blocking::Client},
    proto::NbdUri,
};

/// How much of an export is looked at, in bytes.
const PROBED: u64 = 8192;

/// The first line that `file` says of the export's first bytes. `None` where they cannot be read or nobody
/// knows: it is no failure not to know.
pub(super) fn probe(uri: &NbdUri, options: &ConnectOptions) -> Option<String> {
    let mut options = options.clone();
    options.contexts = Vec::new();
    let mut client = Client::connect_with(uri, &options).ok()?;
    let wanted = client.size().min(PROBED);
    // A server may read in larger blocks only.
    let block = u64::from(client.info().limits.minimum);
    let read = wanted.next_multiple_of(block).min(client.size());
    let mut bytes = vec![0; usize::try_from(read).ok()?];
    client.read(0, &mut bytes).ok()?;
    bytes.truncate(usize::try_from(wanted).ok()?);
    describe(&bytes)
}

/// `file` looks at a file of its own: of a pipe it can say less.
fn describe(bytes: &[u8]) -> Option<String> {
    let mut file = tempfile::NamedTempFile::new().ok()?;
    file.write_all(bytes).ok()?;
    let output = Command::new("file")
        .arg("-b")
        .arg(file.path())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next()?;
    (!line.is_empty()).then(|| line.to_owned())
}
