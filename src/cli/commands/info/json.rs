//! Facts as JSON: the keys and values of nbdinfo, as people like to read JSON, or in nbdinfo's own layout.

use std::{
    fmt::{self, Display},
    io::{self, Write},
};

use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};

use crate::inspect::Facts;

/// The facts, indented.
pub(crate) fn pretty(facts: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(facts).expect("strings, numbers and names");
    // JSON lets some characters stand that steer a terminal. Outside of strings there are none but ends of lines.
    let mut steady = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        match c.is_control() && c != '\n' {
            true => steady += &format!("\\u{:04x}", u32::from(c)),
            false => steady.push(c),
        }
    }
    steady + "\n"
}

/// The facts as nbdinfo lays them out.
pub(crate) fn as_nbdinfo(facts: &Facts) -> String {
    serialize(facts) + "\n"
}

/// A text with the escapes of a JSON string, as nbdinfo writes them, without the quotes.
pub(crate) struct Escaped<'a>(pub(crate) &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = serialize(&self.0);
        f.write_str(&quoted[1..quoted.len() - 1])
    }
}

fn serialize(value: &impl Serialize) -> String {
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, Layout::default());
    value
        .serialize(&mut serializer)
        .expect("strings, numbers and names");
    // The serializer only writes what it was given as text.
    String::from_utf8_lossy(&bytes).into_owned()
}

/// nbdinfo's layout: one tab less than the depth, members of one object on lines of their own, the
/// last one of a list of objects followed by the end of the list on the same line.
#[derive(Default)]
struct Layout {
    /// The brackets that are open.
    open: Vec<Bracket>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bracket {
    Object,
    EmptyList,
    List,
}

impl Layout {
    fn new_line(&self, writer: &mut (impl Write + ?Sized), depth: usize) -> io::Result<()> {
        writer.write_all(b"\n")?;
        (0..depth).try_for_each(|_| writer.write_all(b"\t"))
    }

    /// The lines of an object begin where its bracket does.
    fn depth(&self) -> usize {
        let lists = self.open.iter().filter(|open| **open != Bracket::Object);
        lists.count()
    }
}

impl Formatter for Layout {
    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open.push(Bracket::Object);
        writer.write_all(b"{")
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if !first {
            writer.write_all(b",")?;
        }
        self.new_line(writer, self.depth())
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open.pop();
        self.new_line(writer, self.depth())?;
        writer.write_all(b"}")
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open.push(Bracket::EmptyList);
        writer.write_all(b"[")
    }

    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if let Some(list) = self.open.last_mut() {
            *list = Bracket::List;
        }
        if !first {
            writer.write_all(b",")?;
        }
        self.new_line(writer, self.depth())
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        match self.open.pop() {
            Some(Bracket::EmptyList) => {}
            _ if self.depth() == 0 => writer.write_all(b" ")?,
            _ => self.new_line(writer, self.depth())?,
        }
        writer.write_all(b"]")
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        // JSON lets some characters stand that steer a terminal.
        let mut rest = fragment;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| c.is_control()) {
            write!(writer, "{}\\u{:04x}", &rest[..at], u32::from(c))?;
            rest = &rest[at + c.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }

    /// Control characters have no short escapes.
    fn write_char_escape<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        let code = match escape {
            CharEscape::Quote => return writer.write_all(b"\\\""),
            CharEscape::ReverseSolidus => return writer.write_all(b"\\\\"),
            CharEscape::Solidus => b'/',
            CharEscape::Backspace => 8,
            CharEscape::FormFeed => 12,
            CharEscape::LineFeed => b'\n',
            CharEscape::CarriageReturn => b'\r',
            CharEscape::Tab => b'\t',
            CharEscape::AsciiControl(code) => code,
        };
        write!(writer, "\\u{code:04x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        inspect::facts::tests::negotiated,
        proto::{HandshakeStyle, ListReport, ReplyMode},
    };

    fn facts() -> Facts {
        let mut negotiated = negotiated("x");
        negotiated.export.description = None;
        Facts::of_export(&negotiated, "x", None)
    }

    #[test]
    fn the_json_has_nbdinfos_keys_and_types() {
        for text in [pretty(&facts()), as_nbdinfo(&facts())] {
            let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(value["protocol"], "newstyle-fixed");
            assert_eq!(value["TLS"], false);
            assert_eq!(value["structured"], true);
            let export = &value["exports"][0];
            assert_eq!(export["export-name"], "x");
            assert_eq!(export["export-size"], 1 << 20);
            assert_eq!(export["export-size-str"], "1M");
            assert_eq!(export["contexts"][0], "base:allocation");
            assert_eq!(export["can_flush"], true);
            assert_eq!(export["can_trim"], false);
            assert!(export.get("block_size_minimum").is_none());
        }
    }

    #[test]
    fn no_text_steers_a_terminal_and_all_are_kept() {
        let name = "a\u{1b}b\u{9b}c\u{7f}\nd\u{85}";
        let text = pretty(&Facts::of_export(&negotiated(name), name, None));
        let is_bad = |c: char| c.is_control() && c != '\n';
        assert!(!text.contains(is_bad), "{text:?}");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["exports"][0]["export-name"], name);
    }

    #[test]
    fn the_layout_is_nbdinfos() {
        let mut facts = facts();
        let text = as_nbdinfo(&facts);
        let (start, end) = (
            "{\n\"protocol\": \"newstyle-fixed\",\n\"TLS\": false,\n\"structured\": true,\n\
             \"extended\": false,\n\"exports\": [\n\t{\n\t\"export-name\": \"x\",\n\
             \t\"contexts\": [\n\t\t\"base:allocation\"\n\t],\n\t\"is_rotational\": false,\n",
            "\n\t\"export-size-str\": \"1M\"\n\t} ]\n}\n",
        );
        assert!(text.starts_with(start) && text.ends_with(end), "{text}");

        let other = Facts::of_export(&negotiated("y"), "y", None);
        facts.exports.extend(other.exports);
        let text = as_nbdinfo(&facts);
        assert!(
            text.contains("\n\t},\n\t{\n\t\"export-name\": \"y\","),
            "{text}"
        );

        let report = ListReport {
            exports: Vec::new(),
            style: HandshakeStyle::New,
            mode: ReplyMode::Simple,
            tls: false,
        };
        let text = as_nbdinfo(&Facts::of_list(report, None));
        assert!(text.ends_with("\n\"exports\": []\n}\n"), "{text}");
    }

    #[test]
    fn strings_are_escaped_as_nbdinfo_does_and_cannot_steer_a_terminal() {
        let escaped = Escaped("a\"b\\c\nd\u{1b}e\u{9b}\u{7f}ö/").to_string();
        assert_eq!(escaped, "a\\\"b\\\\c\\u000ad\\u001be\\u009b\\u007fö/");
        let parsed: String = serde_json::from_str(&format!("\"{escaped}\"")).expect("JSON");
        assert_eq!(parsed, "a\"b\\c\nd\u{1b}e\u{9b}\u{7f}ö/");
    }
}
