//! Sizes as QEMU reads them: hexadecimal, too.

use std::borrow::Cow;

use crate::block::{self, SizeError};

/// The bytes that `text` stands for.
pub(in crate::compat) fn parse_size(text: &str) -> Result<u64, SizeError> {
    block::parse_size(&decimal(text))
}

/// The whole bytes before a fraction of nothing: `1024.0` and `1024.0b`.
fn whole_bytes(text: &str) -> Option<&str> {
    let number = text.strip_suffix(['b', 'B']).unwrap_or(text);
    let (whole, fraction) = number.split_once('.')?;
    let is_nothing = !fraction.is_empty() && fraction.bytes().all(|digit| digit == b'0');
    is_nothing.then_some(whole)
}

/// The same size as our own parsers read it: without a hexadecimal number, which has no unit, or a fraction of nothing.
pub(in crate::compat) fn decimal(text: &str) -> Cow<'_, str> {
    let text = text.trim_start();
    let unsigned = text.trim_start_matches(['+', '-']);
    let digits = unsigned.strip_prefix("0x").or(unsigned.strip_prefix("0X"));
    let number = digits
        .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
        .and_then(|digits| u128::from_str_radix(digits, 16).ok());
    match number {
        Some(number) => {
            let sign = &text[..text.len() - unsigned.len()];
            Cow::Owned(format!("{sign}{number}"))
        }
        None => Cow::Borrowed(whole_bytes(text).unwrap_or(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_numbers_are_numbers_of_bytes() {
        for (text, bytes) in [("0x10", 16), ("0XfF", 255), ("16", 16), ("1k", 1024)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["0x", "0xg", "0x10k", "0x1.5", "0x-1", "-0x10"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert_eq!(parse_size(" 4k"), Ok(4096));
        assert_eq!(parse_size("1024.0"), Ok(1024));
        assert_eq!(parse_size("1024.00b"), Ok(1024));
        assert!(parse_size("1.5").is_err() && parse_size("1.").is_err());
        let too_large = parse_size("0x8000000000000000");
        assert!(matches!(too_large, Err(SizeError::TooLarge(_))));
        assert_eq!(decimal("+0x1000"), "+4096");
    }
}
