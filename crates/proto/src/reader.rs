//! Big-endian fields: a bounded [`Reader`] over received bytes and a [`Put`] trait to build
//! messages. Reading past the end is a value, never a panic.

/// The message ended before the field did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Truncated;

/// Reads fields from the front of a slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Truncated> {
        let (head, tail) = self.bytes.split_at_checked(count).ok_or(Truncated)?;
        self.bytes = tail;
        Ok(head)
    }

    /// Everything that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Truncated> {
        let (head, tail) = self.bytes.split_first_chunk::<N>().ok_or(Truncated)?;
        self.bytes = tail;
        Ok(*head)
    }

    #[inline]
    pub(crate) fn u16(&mut self) -> Result<u16, Truncated> {
        self.array().map(u16::from_be_bytes)
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> Result<u32, Truncated> {
        self.array().map(u32::from_be_bytes)
    }

    #[inline]
    pub(crate) fn u64(&mut self) -> Result<u64, Truncated> {
        self.array().map(u64::from_be_bytes)
    }

    /// A `u32` length and as many bytes.
    pub(crate) fn prefixed(&mut self) -> Result<&'a [u8], Truncated> {
        let length = usize::try_from(self.u32()?).map_err(|_| Truncated)?;
        self.bytes(length)
    }
}

/// Appends big-endian fields.
pub(crate) trait Put {
    fn put(&mut self, bytes: &[u8]);

    #[inline]
    fn put_u16(&mut self, value: u16) {
        self.put(&value.to_be_bytes());
    }

    #[inline]
    fn put_u32(&mut self, value: u32) {
        self.put(&value.to_be_bytes());
    }

    #[inline]
    fn put_u64(&mut self, value: u64) {
        self.put(&value.to_be_bytes());
    }

    /// A `u32` length and the bytes, which are at most a bounded string.
    fn put_prefixed(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= crate::limits::OPTION_PAYLOAD);
        self.put_u32(bytes.len() as u32);
        self.put(bytes);
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// A message of at most `N` bytes, held in place: headers of the transmission phase, which are
/// built once per request and must not allocate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inline<const N: usize> {
    bytes: [u8; N],
    len: u8,
}

impl<const N: usize> Inline<N> {
    pub(crate) const fn new() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
        }
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    #[inline]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl<const N: usize> Put for Inline<N> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        // The messages have fixed layouts that fit; N is chosen by the type that wraps this.
        let start = usize::from(self.len);
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len() as u8;
    }
}

/// What a peer sent as a string for people: bad UTF-8 is replaced.
pub(crate) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a peer sent as a name: UTF-8 without NUL, and not too long (section "Conventions").
pub(crate) fn name(bytes: &[u8]) -> Option<String> {
    if bytes.len() > crate::limits::STRING || bytes.contains(&0) {
        return None;
    }
    String::from_utf8(bytes.to_vec()).ok()
}

/// The longest prefix of `text` that fits in a protocol string.
pub(crate) fn bounded(text: &str) -> &str {
    let mut end = text.len().min(crate::limits::STRING);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_past_the_end_is_truncated_and_takes_nothing() {
        let mut reader = Reader::new(&[1, 2, 3]);
        assert_eq!(reader.u32(), Err(Truncated));
        assert_eq!(reader.u16(), Ok(0x0102));
        assert_eq!(reader.rest(), [3]);
        assert!(reader.is_empty());
    }

    #[test]
    fn a_length_prefix_that_lies_is_truncated() {
        let mut reader = Reader::new(&[0xff, 0xff, 0xff, 0xff, 1]);
        assert_eq!(reader.prefixed(), Err(Truncated));
    }

    #[test]
    fn names_are_utf8_without_nul_and_bounded() {
        assert_eq!(name("é".as_bytes()), Some("é".to_owned()));
        assert_eq!(name(b"a\0b"), None);
        assert_eq!(name(&[0xff]), None);
        assert_eq!(name(&[b'a'; 4097]), None);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let long = "é".repeat(3000);
        assert_eq!(bounded(&long).len(), 4096);
        let odd = format!("a{long}");
        assert_eq!(bounded(&odd).len(), 4095);
    }
}
