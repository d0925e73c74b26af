//! Puts together a message that arrives in pieces, and copies nothing when it arrives whole.

/// What is kept between messages; a larger buffer, left by a long reply, is given back.
const KEEP: usize = 64 << 10;

/// The start of a message whose rest has not arrived.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    partial: Vec<u8>,
}

impl Gather {
    /// Whether the first `want` bytes of the message are here: in `input`, or set aside by
    /// earlier calls. If not, everything is taken from `input` and set aside.
    #[inline]
    pub(crate) fn ensure(&mut self, input: &mut &[u8], want: usize) -> bool {
        if self.partial.is_empty() && input.len() >= want {
            return true;
        }
        let missing = want.saturating_sub(self.partial.len());
        let (head, tail) = input.split_at(missing.min(input.len()));
        self.partial.extend_from_slice(head);
        *input = tail;
        self.partial.len() >= want
    }

    /// What [`ensure`](Self::ensure) found.
    #[inline]
    pub(crate) fn view<'a>(&'a self, input: &'a [u8], want: usize) -> &'a [u8] {
        if self.partial.is_empty() {
            &input[..want]
        } else {
            &self.partial[..want]
        }
    }

    /// Done with the message that [`view`](Self::view) showed.
    #[inline]
    pub(crate) fn consume(&mut self, input: &mut &[u8], want: usize) {
        if self.partial.is_empty() {
            *input = &input[want..];
        } else {
            debug_assert_eq!(self.partial.len(), want);
            self.partial.clear();
            self.partial.shrink_to(KEEP);
        }
    }

    /// What was set aside.
    pub(crate) fn partial(&self) -> &[u8] {
        &self.partial
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_message_is_seen_in_place() {
        let mut gather = Gather::default();
        let message = *b"abcdef";
        let mut input = &message[..];
        assert!(gather.ensure(&mut input, 4));
        assert_eq!(gather.view(input, 4), b"abcd");
        gather.consume(&mut input, 4);
        assert_eq!(input, b"ef");
        assert_eq!(gather.partial.capacity(), 0);
    }

    #[test]
    fn a_message_in_pieces_is_put_together_and_no_more_is_taken() {
        let mut gather = Gather::default();
        let mut input = &b"ab"[..];
        assert!(!gather.ensure(&mut input, 4));
        assert!(input.is_empty());
        let mut input = &b"cdef"[..];
        assert!(gather.ensure(&mut input, 4));
        assert_eq!(gather.view(input, 4), b"abcd");
        gather.consume(&mut input, 4);
        assert_eq!(input, b"ef");
    }

    #[test]
    fn a_message_may_turn_out_longer() {
        let mut gather = Gather::default();
        let mut input = &b"abc"[..];
        assert!(gather.ensure(&mut input, 2));
        assert!(!gather.ensure(&mut input, 5));
        let mut input = &b"defg"[..];
        assert!(gather.ensure(&mut input, 2));
        assert!(gather.ensure(&mut input, 5));
        assert_eq!(gather.view(input, 5), b"abcde");
        gather.consume(&mut input, 5);
        assert_eq!(input, b"fg");
    }
}
