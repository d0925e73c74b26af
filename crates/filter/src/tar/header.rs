//! A tar header, and the extended ones (pax): blocks and records, without a device.

/// The unit of an archive, in bytes.
pub(super) const BLOCK: usize = 512;

/// What is wrong with an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TarFlaw {
    #[error("the checksum of a header is wrong")]
    Checksum,
    #[error("a size is not a number")]
    Size,
    #[error("an extended header is malformed")]
    Pax,
    #[error("an extended header or a name is too long")]
    TooLong,
    #[error("a member ends nowhere")]
    Place,
}

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// In bytes: what follows the header, without what fills its last block.
    pub(super) size: u64,
    /// As it is written; never checked, and no path to open.
    pub(super) name: Vec<u8>,
    /// Whether more blocks of a sparse file's map follow.
    pub(super) is_continued: bool,
}

/// What a header stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A plain file.
    File,
    /// A plain file without its holes, as old versions of GNU tar write it.
    Sparse,
    /// A directory, a link, a device, ...
    Other,
    /// Records about the next member.
    Pax,
    /// The name of the next member.
    LongName,
    /// Something else that is no member.
    Aside,
}

impl Header {
    /// Reads a header; `None` for a block of zeroes, which ends an archive.
    pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Option<Self>, TarFlaw> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if !is_checksum_right(block) {
            return Err(TarFlaw::Checksum);
        }
        let name = full_name(block);
        let flag = block[156];
        let kind = match flag {
            // Before there was a flag for directories, they had a slash.
            0 | b'0' | b'7' if name.ends_with(b"/") => Kind::Other,
            0 | b'0' | b'7' => Kind::File,
            b'S' => Kind::Sparse,
            b'x' | b'X' => Kind::Pax,
            b'L' => Kind::LongName,
            b'g' | b'K' => Kind::Aside,
            _ => Kind::Other,
        };
        // Nothing follows a link, a device, a directory or a FIFO, whatever the size says.
        let size = match flag {
            b'1'..=b'6' => 0,
            _ => number(&block[124..136]).ok_or(TarFlaw::Size)?,
        };
        Ok(Some(Self {
            kind,
            size,
            name,
            is_continued: kind == Kind::Sparse && block[482] != 0,
        }))
    }

    /// Whether a block of a sparse file's map is followed by another one.
    pub(super) fn continues(block: &[u8; BLOCK]) -> bool {
        block[504] != 0
    }
}

/// The sum of all bytes, those of the sum itself counting as blanks. Some have added signed bytes.
fn is_checksum_right(block: &[u8; BLOCK]) -> bool {
    let (mut unsigned, mut signed) = (0_i64, 0_i64);
    for (at, byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&at) {
            b' '
        } else {
            *byte
        };
        unsigned += i64::from(byte);
        signed += i64::from(byte as i8);
    }
    let written = number(&block[148..156]).and_then(|sum| i64::try_from(sum).ok());
    written == Some(unsigned) || written == Some(signed)
}

/// The name, with what POSIX keeps of a long one elsewhere.
fn full_name(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = text(&block[..100]);
    let prefix = text(&block[345..500]);
    if &block[257..263] != b"ustar\0" || prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, b"/", name].concat()
}

/// The bytes before the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0);
    &field[..end.unwrap_or(field.len())]
}

/// A number: octal digits between blanks, or in base 256 with the highest bit set.
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // Another bit is the sign.
        if first & 0x40 != 0 {
            return None;
        }
        let mut value = u64::from(first & 0x3f);
        for byte in rest {
            value = value.checked_mul(256)? | u64::from(*byte);
        }
        return Some(value);
    }
    let digits = text(field).trim_ascii();
    let mut value = 0_u64;
    for digit in digits {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        value = value.checked_mul(8)? | u64::from(digit);
    }
    Some(value)
}

/// What an extended header says of the next member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    /// Whether the file is stored without its holes.
    pub(super) is_sparse: bool,
}

impl Pax {
    /// Reads records of `LENGTH KEY=VALUE` and a line feed, the length being that of all of it.
    pub(super) fn parse(mut records: &[u8]) -> Result<Self, TarFlaw> {
        let mut pax = Self::default();
        let mut sparse_name = None;
        while !records.is_empty() {
            let (key, value, rest) = record(records).ok_or(TarFlaw::Pax)?;
            records = rest;
            match key {
                b"path" => pax.name = Some(value.to_vec()),
                b"size" => pax.size = Some(decimal(value).ok_or(TarFlaw::Size)?),
                b"GNU.sparse.name" => sparse_name = Some(value.to_vec()),
                _ => {}
            }
            pax.is_sparse |= key.starts_with(b"GNU.sparse.");
        }
        // The path of a sparse file is one that no other file has.
        pax.name = sparse_name.or(pax.name);
        Ok(pax)
    }
}

/// Key and value of the first record, and the other records.
fn record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let digits = records.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&records[..digits])?).ok()?;
    let (record, rest) = records.split_at_checked(length)?;
    let record = record.get(digits + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], rest))
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_in_base_256() {
        for (field, value) in [
            (&b"00000000644\0"[..], Some(0o644)),
            (b"  1750 \0\0\0\0\0", Some(0o1750)),
            (b"777777777777", Some(0o7777_7777_7777)),
            (b"\0\0\0\0\0\0\0\0\0\0\0\0", Some(0)),
            (b"            ", Some(0)),
            (b"12\0garbage!!", Some(0o12)),
            (b"\x80\0\0\0\0\0\0\x01\0\0\0\0", Some(1 << 32)),
            (
                b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
                Some(u64::MAX),
            ),
            (b"\x80\0\0\x01\0\0\0\0\0\0\0\0", None),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\xc0\0\0\0\0\0\0\0\0\0\0\x01", None),
            (b"00000000648\0", None),
            (b"-1\0\0\0\0\0\0\0\0\0\0", None),
            (b"0x10\0\0\0\0\0\0\0\0", None),
            (b"1 2\0\0\0\0\0\0\0\0\0", None),
            (b"", None),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
    }

    #[test]
    fn records_are_as_long_as_they_say() {
        let pax = Pax::parse(b"13 path=a\n=b\n12 size=123\n27 GNU.sparse.realsize=7\n1");
        assert_eq!(pax, Err(TarFlaw::Pax), "something is left");
        let pax = Pax::parse(b"13 path=a\n=b\n12 size=123\n5 a=\n").expect("records");
        assert_eq!(pax.name.as_deref(), Some(&b"a\n=b"[..]));
        assert_eq!((pax.size, pax.is_sparse), (Some(123), false));
        let pax = Pax::parse(b"22 GNU.sparse.major=1\n21 GNU.sparse.name=d\n14 path=x/y/z\n");
        let pax = pax.expect("records");
        assert!(pax.is_sparse && pax.name.as_deref() == Some(b"d"));
        for lie in [
            &b"0 path=a\n"[..],
            b"8 path=a\n",
            b"11 path=a\n",
            b"99999999999999999999 path=a\n",
            b"18446744073709551615 path=a\n",
            b"+10 path=a\n",
            b" path=a\n",
            b"path=a\n",
            b"10 path=ab",
            b"3 \n",
            b"4 a\n",
            b"2 path=a\n",
            b"10",
            b"\0",
        ] {
            assert_eq!(Pax::parse(lie), Err(TarFlaw::Pax), "{lie:?}");
        }
        for lie in [
            &b"9 size=\n"[..],
            b"10 size=-\n",
            b"29 size=99999999999999999999\n",
        ] {
            assert!(Pax::parse(lie).is_err(), "{lie:?}");
        }
        assert_eq!(Pax::parse(b""), Ok(Pax::default()));
    }
}
