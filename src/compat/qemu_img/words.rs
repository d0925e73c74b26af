//! Failures in the words of `qemu-img`, as far as scripts look for them.

use crate::{
    block::{Error, ErrorKind, Operation},
    cli::failure::Failure,
};

use super::super::qemu::names::could_not_open;

/// The same failure as `qemu-img` would tell it.
pub(super) fn retold(failure: Failure) -> Failure {
    let Some(cause) = failure.cause().cloned() else {
        return failure;
    };
    let why = why(&failure);
    let at = |cause: &Error| match cause.offset() {
        Some(offset) => format!(" at byte {offset}"),
        None => String::new(),
    };
    let message = match cause.operation() {
        None | Some(Operation::Open) => {
            let Some(endpoint) = cause.endpoint() else {
                return failure;
            };
            let opening = could_not_open(endpoint);
            // As it is told where the protocol below the format failed.
            match failure.is_of_the_system() {
                true => format!("{opening}: {opening}: {why}"),
                false => format!("{opening}: {why}"),
            }
        }
        Some(Operation::Read | Operation::Copy) => {
            format!("error while reading{}: {why}", at(&cause))
        }
        Some(Operation::Extents) => {
            format!("error while reading block status{}: {why}", at(&cause))
        }
        Some(Operation::Write | Operation::Zero) => {
            format!("error while writing{}: {why}", at(&cause))
        }
        Some(_) => return failure,
    };
    let name = cause.endpoint().unwrap_or_default();
    match message.contains(name) {
        true => failure.saying(message),
        false => {
            let name = name.to_owned();
            failure.saying(format!("{message} ({name})"))
        }
    }
}

/// The failure to make the new image `target`, where it is that, in the words for it; `doing` says what was done.
pub(super) fn uncreated(failure: Failure, target: &str, doing: &str) -> Failure {
    let is_that = |cause: &Error| {
        cause.operation() == Some(Operation::Open) && cause.endpoint() == Some(target)
    };
    if !failure.cause().is_some_and(is_that) {
        return failure;
    }
    let why = why(&failure);
    failure.saying(format!(
        "{target}: {doing}: Could not create '{target}': {why}"
    ))
}

/// Why it failed, with the words of the C library for what is not there.
pub(super) fn why(failure: &Failure) -> String {
    const MISSING: &str = "No such file or directory";
    // There is no such option here.
    let why = failure
        .reason()
        .replace("--allow-backing DIR", "BLOCKFERRY_ALLOW_BACKING=DIR");
    let is_missing = |cause: &Error| cause.kind() == ErrorKind::NotFound;
    match failure.cause().is_some_and(is_missing) && !why.contains(MISSING) {
        true => format!("{MISSING} ({why})"),
        false => why,
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use super::*;

    fn told(error: Error) -> String {
        let name: Arc<str> = Arc::from("disk");
        retold(Failure::from(error.on(&name))).to_string()
    }

    #[test]
    fn scripts_find_the_words_that_they_look_for() {
        let system = |number| Error::from(io::Error::from_raw_os_error(number));
        let missing = told(system(2).during(Operation::Open));
        assert!(
            missing.contains("Could not open 'disk': No such file or directory"),
            "{missing}"
        );
        let full = told(system(28).during(Operation::Write).at(4096, 512));
        assert!(
            full.contains("error while writing at byte 4096: No space left on device"),
            "{full}"
        );
        let broken = told(system(5).during(Operation::Read).at(0, 512));
        assert!(
            broken.contains("error while reading at byte 0: Input/output error"),
            "{broken}"
        );
        let message = "it is not a qcow2 image";
        let other = Error::with_message(ErrorKind::Corrupt, message).during(Operation::Open);
        assert!(told(other).ends_with("Could not open 'disk': it is not a qcow2 image"));
        let size = Error::with_message(ErrorKind::InvalidInput, "too small");
        let size = size.during(Operation::Resize);
        assert!(told(size).ends_with("disk: resize: too small"));
    }
}
