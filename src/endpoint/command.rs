//! `[ CMD ARGS... ]`: a server that is started for one endpoint, and how it travels through an
//! argument list as one argument.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    os::unix::ffi::{OsStrExt, OsStringExt},
};

use super::EndpointError;

/// The separator inside an encoded group. No argument of a process can contain it.
const SEPARATOR: u8 = 0;

const ENCODED_START: &[u8] = b"[\0";
const ENCODED_END: &[u8] = b"\0]";

/// A command that serves an image on the socket that it is handed by systemd socket activation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerCommand {
    program: OsString,
    arguments: Vec<OsString>,
}

impl ServerCommand {
    /// The command `program` with `arguments`.
    #[must_use]
    pub fn new(program: impl Into<OsString>, arguments: Vec<OsString>) -> Self {
        Self {
            program: program.into(),
            arguments,
        }
    }

    /// The program: a path, or a name that is looked up in `PATH`.
    #[must_use]
    pub fn program(&self) -> &OsStr {
        &self.program
    }

    /// Its arguments, without the program's name.
    #[must_use]
    pub fn arguments(&self) -> &[OsString] {
        &self.arguments
    }

    /// Reads a group back that [`collapse_groups`] made; `None` when the text is no such group.
    pub(super) fn decode(text: &OsStr) -> Option<Result<Self, EndpointError>> {
        let inner = text
            .as_bytes()
            .strip_prefix(ENCODED_START)?
            .strip_suffix(ENCODED_END);
        let Some(inner) = inner else {
            return Some(Err(EndpointError::EmptyCommand));
        };
        let mut words = inner
            .split(|byte| *byte == SEPARATOR)
            .map(|word| OsString::from_vec(word.to_vec()));
        let program = words.next().filter(|program| !program.is_empty());
        Some(
            program
                .map(|program| Self::new(program, words.collect()))
                .ok_or(EndpointError::EmptyCommand),
        )
    }
}

impl fmt::Display for ServerCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[ {}", super::printable(&self.program))?;
        for argument in &self.arguments {
            write!(f, " {}", super::printable(argument))?;
        }
        f.write_str(" ]")
    }
}

/// Makes one argument of each `[ CMD ARGS... ]` group of an argument list, so that the options of CMD
/// are not taken for ours. Groups nest; the brackets of the inner ones stay arguments of CMD.
///
/// # Errors
/// [`EndpointError::UnterminatedGroup`] when a group has no end.
pub fn collapse_groups(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Vec<OsString>, EndpointError> {
    let mut collapsed = Vec::new();
    let mut group: Vec<u8> = Vec::new();
    let mut depth = 0_usize;
    for argument in arguments {
        match argument.as_bytes() {
            b"[" => depth += 1,
            b"]" if depth > 0 => depth -= 1,
            _ if depth > 0 => {}
            _ => {
                collapsed.push(argument);
                continue;
            }
        }
        if !group.is_empty() {
            group.push(SEPARATOR);
        }
        group.extend_from_slice(argument.as_bytes());
        if depth == 0 {
            collapsed.push(OsString::from_vec(std::mem::take(&mut group)));
        }
    }
    if depth > 0 {
        return Err(EndpointError::UnterminatedGroup);
    }
    Ok(collapsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collapse(words: &[&str]) -> Vec<OsString> {
        collapse_groups(words.iter().map(OsString::from)).expect("balanced brackets")
    }

    fn decode(text: &OsStr) -> ServerCommand {
        ServerCommand::decode(text)
            .expect("a group")
            .expect("a command")
    }

    #[test]
    fn a_group_becomes_one_argument_and_comes_back_whole() {
        let words = collapse(&[
            "copy", "-p", "[", "nbdkit", "-r", "memory", "1G", "]", "out",
        ]);
        assert_eq!(words.len(), 4);
        assert_eq!((&*words[0], &*words[3]), ("copy".as_ref(), "out".as_ref()));
        let command = decode(&words[2]);
        assert_eq!(command.program(), "nbdkit");
        assert_eq!(command.arguments(), ["-r", "memory", "1G"]);
        assert_eq!(command.to_string(), "[ nbdkit -r memory 1G ]");
    }

    #[test]
    fn the_brackets_of_an_inner_group_belong_to_the_command() {
        let words = collapse(&["[", "blockferry", "serve", "[", "nbdkit", "]", "]"]);
        assert_eq!(words.len(), 1);
        assert_eq!(decode(&words[0]).arguments(), ["serve", "[", "nbdkit", "]"]);
    }

    #[test]
    fn two_groups_stay_two() {
        let words = collapse(&["[", "a", "]", "[", "b", "c", "]"]);
        assert_eq!(words.len(), 2);
        assert_eq!(decode(&words[1]).to_string(), "[ b c ]");
    }

    #[test]
    fn a_group_without_an_end_is_refused() {
        let words = ["copy", "[", "nbdkit", "[", "]", "out"].map(OsString::from);
        assert_eq!(
            collapse_groups(words),
            Err(EndpointError::UnterminatedGroup)
        );
    }

    #[test]
    fn an_empty_group_names_no_command() {
        for words in [&["[", "]"][..], &["[", "", "]"]] {
            assert_eq!(
                ServerCommand::decode(&collapse(words)[0]),
                Some(Err(EndpointError::EmptyCommand))
            );
        }
    }

    #[test]
    fn arguments_need_not_be_utf8_and_may_be_empty() {
        let odd = OsString::from_vec(vec![0xff, 0xfe]);
        let words = vec!["[".into(), "cat".into(), odd.clone(), "".into(), "]".into()];
        let collapsed = collapse_groups(words).expect("balanced brackets");
        assert_eq!(decode(&collapsed[0]).arguments(), [odd, OsString::from("")]);
    }

    #[test]
    fn a_lone_closing_bracket_is_an_argument() {
        assert_eq!(collapse(&["a", "]"]), ["a", "]"]);
    }

    #[test]
    fn other_text_is_no_group() {
        assert_eq!(ServerCommand::decode(OsStr::new("[file]")), None);
        assert_eq!(ServerCommand::decode(OsStr::new("[")), None);
    }
}
