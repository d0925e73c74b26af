//! Sizes as people write and read them.

use std::fmt;

/// A text that is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SizeError {
    /// It is not a number with an optional unit.
    #[error("{0:?} is not a size: write a number and a unit, such as 512, 64K or 1.5G")]
    Malformed(String),
    /// It stands for more bytes than an image can have.
    #[error("{0:?} is larger than an image can be (8 EiB)")]
    TooLarge(String),
}

/// The bytes that `text` stands for: a decimal number and a unit, in upper or lower case.
///
/// The units are powers of 1024: `b` (or nothing) bytes, `k`, `M`, `G`, `T`, `P`, `E`, each also
/// as in `KiB`; and `s` sectors of 512 bytes. A number of KiB or more may have a fraction, which is
/// rounded down to whole bytes.
///
/// ```
/// use blockferry_block::parse_size;
///
/// assert_eq!(parse_size("64k"), Ok(65536));
/// assert_eq!(parse_size("1.5G"), Ok(3 << 29));
/// assert!(parse_size("a lot").is_err());
/// ```
///
/// # Errors
/// When it is no such text, or stands for more than `i64::MAX` bytes.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let malformed = || SizeError::Malformed(text.to_owned());
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = u128::from(unit_bytes(unit).ok_or_else(malformed)?);
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) if unit >= 1024 => (whole, fraction),
        Some(_) => return Err(malformed()),
        None => (number, "0"),
    };
    if whole.is_empty() || fraction.is_empty() || fraction.contains('.') {
        return Err(malformed());
    }
    // Only too many digits can fail here.
    let bytes = whole
        .parse::<u128>()
        .ok()
        .and_then(|whole| whole.checked_mul(unit))
        .and_then(|bytes| bytes.checked_add(fraction_bytes(fraction, unit)?))
        .and_then(|bytes| i64::try_from(bytes).ok())
        .ok_or_else(|| SizeError::TooLarge(text.to_owned()))?;
    Ok(bytes.unsigned_abs())
}

/// The bytes of `0.digits` units, rounded down.
fn fraction_bytes(digits: &str, unit: u128) -> Option<u128> {
    // The 20th digit of an EiB is a fraction of a byte, and the product still fits.
    let digits = &digits[..digits.len().min(20)];
    let scale = 10_u128.checked_pow(u32::try_from(digits.len()).ok()?)?;
    Some(digits.parse::<u128>().ok()?.checked_mul(unit)? / scale)
}

fn unit_bytes(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    let unit = match unit.as_str() {
        "" | "b" => return Some(1),
        "s" => return Some(512),
        _ => unit.strip_suffix("ib").unwrap_or(&unit),
    };
    let power = ["k", "m", "g", "t", "p", "e"]
        .iter()
        .position(|known| *known == unit)?;
    Some(1 << (10 * (power + 1)))
}

/// A number of bytes that prints as people read it: `512 bytes`, `3.0 GiB`.
///
/// ```
/// use blockferry_block::HumanSize;
///
/// assert_eq!(HumanSize(3 << 30).to_string(), "3.0 GiB");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HumanSize(pub u64);

impl fmt::Display for HumanSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        match self.0 {
            1 => return f.pad("1 byte"),
            0..1024 => return f.pad(&format!("{} bytes", self.0)),
            _ => {}
        }
        // In tenths of the unit, rounded; what would print as 1024.0 is 1.0 of the next unit.
        let tenths = |unit: usize| {
            let bytes = 1_u128 << (10 * (unit + 1));
            (u128::from(self.0) * 10 + bytes / 2) / bytes
        };
        let unit = (0..UNITS.len() - 1)
            .find(|unit| tenths(*unit) < 10240)
            .unwrap_or(UNITS.len() - 1);
        let tenths = tenths(unit);
        f.pad(&format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024_and_sectors_512_bytes() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("7b", 7),
            ("3s", 1536),
            ("64k", 65536),
            ("64K", 65536),
            ("1M", 1 << 20),
            ("4GiB", 4 << 30),
            ("2t", 2 << 40),
            ("1P", 1 << 50),
            ("7E", 7 << 60),
            ("1.5T", 3 << 39),
            ("0.25k", 256),
            ("9223372036854775807", i64::MAX as u64),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "", " 1", "1 ", "-1", "+1", "k", ".5G", "1.", "1.2.3", "1kk", "1kb", "0x10", "1e3",
            "ib", "1ib", "٣", "1.-5k", "1.5", "1.5s",
        ] {
            assert!(
                matches!(parse_size(text), Err(SizeError::Malformed(_))),
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_size_beyond_the_largest_image_is_refused() {
        for text in [
            "8E",
            "9223372036854775808",
            "18446744073709551616",
            "340282366920938463463374607431768211456",
            "340282366920938463463374607431768211455E",
        ] {
            assert!(
                matches!(parse_size(text), Err(SizeError::TooLarge(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn a_fraction_is_rounded_down_to_bytes() {
        for (text, bytes) in [
            ("1.0k", 1024),
            ("0.1k", 102),
            ("1.1G", 1_181_116_006),
            (
                "1.00000000000000000000000000000000000000000000009G",
                1 << 30,
            ),
            ("7.9999999999999999999E", i64::MAX as u64),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn sizes_print_with_one_decimal() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1023, "1023 bytes"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (3 << 30, "3.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(HumanSize(bytes).to_string(), text);
        }
        assert_eq!(format!("{:>9}|", HumanSize(1024)), "  1.0 KiB|");
    }
}
