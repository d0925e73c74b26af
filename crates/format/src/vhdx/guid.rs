//! Identifiers as Microsoft's formats store them.

use std::fmt;

/// A GUID in its binary form: of the five groups that its text has, the first three are little-endian numbers.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Guid(pub(crate) [u8; 16]);

impl Guid {
    /// None: where there is nothing to identify.
    pub(crate) const ZERO: Self = Self([0; 16]);

    /// The GUID whose text has the digits of `number`.
    pub(crate) const fn new(number: u128) -> Self {
        let b = number.to_be_bytes();
        Self([
            b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13],
            b[14], b[15],
        ])
    }

    /// The one at `at` of `bytes`, which are long enough.
    pub(crate) fn at(bytes: &[u8], at: usize) -> Self {
        let mut guid = Self::ZERO;
        guid.0.copy_from_slice(&bytes[at..at + 16]);
        guid
    }

    /// Reads a text: `{83ed0ec3-24c8-49a6-a959-5e4bf1288bfb}`, in any case, with or without the braces.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let inner = text.strip_prefix('{').and_then(|it| it.strip_suffix('}'));
        let groups: Vec<&str> = inner.unwrap_or(text).split('-').collect();
        let lengths = groups.iter().map(|group| group.len());
        let digits = groups.concat();
        let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !lengths.eq([8, 4, 4, 4, 12]) || !is_hex {
            return None;
        }
        u128::from_str_radix(&digits, 16).ok().map(Self::new)
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
        for (place, index) in order.into_iter().enumerate() {
            if matches!(place, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{:02x}", self.0[index])?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guid_is_stored_with_three_little_endian_groups() {
        let guid = Guid::new(0x2dc2_7766_f623_4200_9d64_115e_9bfd_4a08);
        let bytes = [
            0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd,
            0x4a, 0x08,
        ];
        assert_eq!(guid.0, bytes);
        let text = "2dc27766-f623-4200-9d64-115e9bfd4a08";
        assert_eq!(guid.to_string(), text);
        for text in [
            text.to_owned(),
            format!("{{{text}}}"),
            text.to_ascii_uppercase(),
        ] {
            assert_eq!(Guid::parse(&text), Some(guid), "{text}");
        }
    }

    #[test]
    fn what_is_no_guid_is_none() {
        for text in [
            "",
            "{}",
            "2dc27766f62342009d64115e9bfd4a08",
            "2dc27766-f623-4200-9d64-115e9bfd4a0",
            "+dc27766-f623-4200-9d64-115e9bfd4a08",
            "2dc27766-f623-4200-9d64-115e9bfd4a08-",
            "\u{e4}\u{e4}\u{e4}\u{e4}-\u{e4}\u{e4}-f623-4200-9d64-115e9bfd",
        ] {
            assert_eq!(Guid::parse(text), None, "{text:?}");
        }
    }
}
