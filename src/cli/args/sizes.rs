//! Numbers of bytes and of seconds, as people write them.

use std::{fmt, str::FromStr, time::Duration};

use crate::block::parse_size;

/// A number of bytes as people write it: `256K`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_size(text)
            .map(Size)
            .map_err(|error| error.to_string())
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [
            (60, "E"),
            (50, "P"),
            (40, "T"),
            (30, "G"),
            (20, "M"),
            (10, "K"),
        ] {
            let bytes = 1_u64 << shift;
            if self.0 >= bytes && self.0.is_multiple_of(bytes) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

pub(super) fn parse_request_size(text: &str) -> Result<Size, String> {
    let size = Size::from_str(text)?;
    if !size.0.is_power_of_two() || !(4 * KIB..=32 * MIB).contains(&size.0) {
        return Err("it must be a power of two from 4K to 32M".to_owned());
    }
    Ok(size)
}

/// More than 0 seconds, with a fraction or without.
pub(super) fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok();
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "it must be a number of seconds above 0".to_owned())
}

pub(super) fn parse_queue_size(text: &str) -> Result<Size, String> {
    let size = Size::from_str(text)?;
    if !(4 * KIB..=4 * GIB).contains(&size.0) {
        return Err("it must lie between 4K and 4G".to_owned());
    }
    Ok(size)
}

/// 0, or whole sectors.
pub(super) fn parse_sparse(text: &str) -> Result<Size, String> {
    let size = Size::from_str(text)?;
    if size.0 > 32 * MIB || !size.0.is_multiple_of(512) {
        return Err("it must be 0, or a multiple of 512 up to 32M".to_owned());
    }
    Ok(size)
}
