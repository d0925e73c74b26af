//! Text as XML and HTML have it, whoever wrote it.

use std::fmt::{self, Write};

/// A text in which nothing is markup, neither between tags nor in a quoted attribute. Characters that nobody sees
/// are written out, those that change the direction of what follows among them.
pub(crate) struct Escaped<'a>(pub(crate) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // No XML can have these (XML 1.0, section 2.2).
                '\u{fffe}' | '\u{ffff}' => f.write_str("?")?,
                c if c.is_control() || turns_text(c) => write!(f, "{}", c.escape_unicode())?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Whether a character changes the direction of the text around it (Unicode, annex 9, section 2).
fn turns_text(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_text_and_nothing_else() {
        let text = Escaped("a<script>\"&'\u{1b}[31m\u{ffff}\u{202e}\n").to_string();
        assert_eq!(
            text,
            "a&lt;script&gt;&quot;&amp;&#39;\\u{1b}[31m?\\u{202e}\\u{a}"
        );
    }
}
