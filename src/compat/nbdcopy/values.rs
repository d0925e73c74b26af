//! The values of nbdcopy's options.

use std::{ffi::OsStr, fs::File, sync::Arc};

use blockferry_sys::duplicate_inherited;

use crate::{
    block::parse_size,
    cli::{failure::Failure, percent::PercentTo},
    copy::DigestOptions,
    endpoint::printable,
};

/// The limits of a request, in bytes.
const SHORTEST_REQUEST: u32 = 4 << 10;
pub(super) const LONGEST_REQUEST: u32 = 32 << 20;

fn unreadable(option: &str, value: &OsStr) -> Failure {
    let value = printable(value);
    Failure::usage(format!("--{option}: could not parse: {value}"))
}

pub(super) fn number(option: &str, value: &OsStr) -> Result<u32, Failure> {
    let text = value.to_str().map(str::trim_start);
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| unreadable(option, value))
}

pub(super) fn at_least_one(option: &str, value: &OsStr) -> Result<u32, Failure> {
    match number(option, value)? {
        0 => Err(unreadable(option, value)),
        number => Ok(number),
    }
}

pub(super) fn size(option: &str, value: &OsStr) -> Result<u64, Failure> {
    let size = value.to_str().and_then(|text| parse_size(text).ok());
    size.ok_or_else(|| unreadable(option, value))
}

pub(super) fn request_size(value: &OsStr) -> Result<u32, Failure> {
    let possible = SHORTEST_REQUEST..=LONGEST_REQUEST;
    u32::try_from(size("request-size", value)?)
        .ok()
        .filter(|size| possible.contains(size) && size.is_power_of_two())
        .ok_or_else(|| {
            Failure::usage(format!(
                "--request-size: must be a power of 2 within {SHORTEST_REQUEST}-{LONGEST_REQUEST}"
            ))
        })
}

pub(super) fn sparse(value: &OsStr) -> Result<u64, Failure> {
    match size("sparse", value)? {
        size if size == 0 || (size >= 512 && size.is_power_of_two()) => Ok(size),
        _ => Err(Failure::usage("--sparse: must be a power of 2 and >= 512")),
    }
}

pub(super) fn blkhash(value: &OsStr) -> Result<DigestOptions, Failure> {
    let options = printable(value).parse::<DigestOptions>();
    options.map_err(|error| Failure::usage(format!("--blkhash: {error}")))
}

/// The descriptor that the caller opened for us, before anything of ours can get its number. Where it
/// did not, there is nobody who waits for it.
pub(super) fn progress_to(value: &OsStr) -> Result<Option<PercentTo>, Failure> {
    let number = number("progress", value)?;
    let number = i32::try_from(number).map_err(|_| unreadable("progress", value))?;
    Ok(match duplicate_inherited(number) {
        Ok(descriptor) => Some(PercentTo::Lines(Arc::new(File::from(descriptor)))),
        Err(_) => {
            let what = format!("warning: --progress: descriptor {number} is not open");
            Failure::failed(what).report();
            None
        }
    })
}
