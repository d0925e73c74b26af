//! The values of qemu-nbd's options.

use std::ffi::OsStr;

use crate::{cli::failure::Failure, endpoint::printable};

use super::super::qemu::text;

/// No server has this much to say of an export, in bytes.
const LONGEST_STRING: usize = 4096;

/// That `what` is not there, and what there is `instead` if anything.
pub(super) fn unsupported(what: &str, instead: &str) -> Failure {
    Failure::usage(match instead {
        "" => format!("{what} is not supported"),
        _ => format!("{what} is not supported: {instead}"),
    })
}

/// A name or a description of an export.
pub(super) fn export_text(what: &str, value: &OsStr) -> Result<String, Failure> {
    let text = text(what, value)?;
    if text.len() > LONGEST_STRING {
        return Err(Failure::usage(format!("the export's {what} is too long")));
    }
    Ok(text)
}

fn invalid(what: &str, value: &OsStr) -> Failure {
    Failure::usage(format!("Invalid {what} '{}'", printable(value)))
}

/// A number without a unit, in decimal or hexadecimal.
pub(super) fn number(value: &OsStr, what: &str) -> Result<u64, Failure> {
    // One word of the shell's may be an option and its argument: `'-e 2'`.
    let text = value.to_str().unwrap_or_default().trim_start();
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| invalid(what, value))
}

pub(super) fn small_number<T: TryFrom<u64>>(value: &OsStr, what: &str) -> Result<T, Failure> {
    T::try_from(number(value, what)?).map_err(|_| invalid(what, value))
}

pub(super) fn one_of(value: &OsStr, what: &str, known: &[&str]) -> Result<(), Failure> {
    match known.iter().any(|known| value == *known) {
        true => Ok(()),
        false => Err(invalid(what, value)),
    }
}

pub(super) fn discard(value: &OsStr) -> Result<bool, Failure> {
    match value.to_str() {
        Some("ignore" | "off") => Ok(false),
        Some("unmap" | "on") => Ok(true),
        _ => Err(invalid("discard mode", value)),
    }
}
