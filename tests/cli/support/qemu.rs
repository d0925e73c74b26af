//! qemu-img and qemu-io, the judges of images in formats.

use std::path::Path;

use super::run::{Outcome, blockferry, run, tool};

/// `path` for a command line.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Runs `qemu-img`, which must succeed.
#[track_caller]
pub(crate) fn qemu_img(arguments: &[&str]) -> String {
    tool("qemu-img", arguments)
}

/// Writes to `image` with `qemu-io`, a command each.
#[track_caller]
pub(crate) fn qemu_io(image: &Path, format: &str, commands: &[&str]) {
    let mut words = vec!["-f", format];
    for command in commands {
        words.extend(["-c", command]);
    }
    words.push(text(image));
    let said = tool("qemu-io", &words);
    assert!(!said.contains("failed"), "{commands:?}: {said}");
}

/// Fails unless `qemu-img check` finds nothing wrong, not even a leak.
#[track_caller]
pub(crate) fn check(image: &Path) {
    let said = qemu_img(&["check", "-f", "qcow2", text(image)]);
    assert!(said.contains("No errors were found"), "{said}");
}

/// Fails unless both have the same contents and size, as qemu reads them.
#[track_caller]
pub(crate) fn assert_identical((one, f): (&Path, &str), (other, g): (&Path, &str)) {
    // With -s both would have to be allocated alike, too.
    let said = qemu_img(&["compare", "-f", f, "-F", g, text(one), text(other)]);
    assert!(!said.contains("Warning"), "{said}");
}

/// What `qemu-img info` says of an image.
#[track_caller]
pub(crate) fn info(image: &Path) -> serde_json::Value {
    let said = qemu_img(&["info", "--output=json", "-f", "qcow2", text(image)]);
    serde_json::from_str(&said).expect("JSON")
}

/// Runs our `convert`.
#[track_caller]
pub(crate) fn convert(arguments: &[&str]) -> Outcome {
    run(&mut blockferry([&["convert"], arguments].concat()))
}
