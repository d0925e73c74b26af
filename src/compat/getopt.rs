//! Argument lists as `getopt_long(3)` reads them: options before, between and after the operands, short
//! ones in bundles, long ones cut short as far as they stay unambiguous, and all operands after `--`.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    vec,
};

use crate::endpoint::printable;

/// An option of a tool.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flag<T> {
    /// Its long name, without the dashes.
    pub(super) long: &'static str,
    /// Its letter.
    pub(super) short: Option<u8>,
    pub(super) argument: Argument,
    /// What it means to the tool. Two flags of one meaning are two spellings of one option.
    pub(super) means: T,
}

/// A row of a tool's table of options.
pub(super) const fn flag<T: Copy>(
    long: &'static str,
    short: Option<u8>,
    argument: Argument,
    means: T,
) -> Flag<T> {
    Flag {
        long,
        short,
        argument,
        means,
    }
}

/// Whether an option takes an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Argument {
    No,
    Required,
    /// Only as `--long=ARGUMENT`, never with the letter or as the next word.
    Optional,
}

/// An argument list that breaks the rules, in getopt's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Mistake {
    #[error("unrecognized option '--{0}'")]
    UnknownLong(String),
    #[error("invalid option -- '{0}'")]
    UnknownShort(String),
    #[error("option '--{option}' is ambiguous; possibilities: {possibilities}")]
    Ambiguous {
        option: String,
        possibilities: String,
    },
    #[error("option '--{0}' requires an argument")]
    NoArgumentLong(&'static str),
    #[error("option requires an argument -- '{0}'")]
    NoArgumentShort(char),
    #[error("option '--{0}' doesn't allow an argument")]
    Argument(&'static str),
}

/// Reads `words`, without the program's name: `choose` is told each option with its argument, and what is no option is
/// returned, in order.
pub(super) fn read<T: Copy + PartialEq, E: From<Mistake>>(
    flags: &[Flag<T>],
    words: Vec<OsString>,
    mut choose: impl FnMut(T, Option<&OsStr>) -> Result<(), E>,
) -> Result<Vec<OsString>, E> {
    let mut arguments = Arguments::new(flags, words);
    while let Some((option, argument)) = arguments.next_option()? {
        choose(option, argument.as_deref())?;
    }
    Ok(arguments.operands)
}

/// An argument list while it is read.
#[derive(Debug)]
struct Arguments<'a, T> {
    flags: &'a [Flag<T>],
    words: vec::IntoIter<OsString>,
    /// What is left of a bundle of short options.
    bundle: Vec<u8>,
    /// What is no option, in order.
    operands: Vec<OsString>,
}

impl<'a, T: Copy + PartialEq> Arguments<'a, T> {
    fn new(flags: &'a [Flag<T>], words: Vec<OsString>) -> Self {
        Self {
            flags,
            words: words.into_iter(),
            bundle: Vec::new(),
            operands: Vec::new(),
        }
    }

    /// The next option and its argument; `None` at the end.
    fn next_option(&mut self) -> Result<Option<(T, Option<OsString>)>, Mistake> {
        loop {
            if !self.bundle.is_empty() {
                return self.short().map(Some);
            }
            let Some(word) = self.words.next() else {
                return Ok(None);
            };
            match word.as_bytes() {
                b"--" => self.operands.extend(self.words.by_ref()),
                [b'-', b'-', long @ ..] => return self.long(long).map(Some),
                [b'-', bundle @ ..] if !bundle.is_empty() => self.bundle = bundle.to_vec(),
                _ => self.operands.push(word),
            }
        }
    }

    fn short(&mut self) -> Result<(T, Option<OsString>), Mistake> {
        let letter = self.bundle.remove(0);
        let flags = self.flags.iter();
        let Some(flag) = flags.filter(|flag| flag.short == Some(letter)).last() else {
            // All bytes of a letter that is not ASCII.
            let length = self.bundle.iter().take_while(|byte| **byte & 0xc0 == 0x80);
            let length = if letter >= 0xc0 { length.count() } else { 0 };
            let mut unknown = vec![letter];
            unknown.extend(self.bundle.drain(..length));
            return Err(Mistake::UnknownShort(printable(OsStr::from_bytes(
                &unknown,
            ))));
        };
        if flag.argument != Argument::Required {
            return Ok((flag.means, None));
        }
        let argument = match std::mem::take(&mut self.bundle) {
            rest if rest.is_empty() => self.words.next(),
            rest => Some(OsString::from_vec(rest)),
        };
        match argument {
            Some(argument) => Ok((flag.means, Some(argument))),
            None => Err(Mistake::NoArgumentShort(char::from(letter))),
        }
    }

    fn long(&mut self, text: &[u8]) -> Result<(T, Option<OsString>), Mistake> {
        let (name, value) = match text.iter().position(|byte| *byte == b'=') {
            Some(end) => (&text[..end], Some(OsStr::from_bytes(&text[end + 1..]))),
            None => (text, None),
        };
        let flag = self.find(name, text)?;
        let argument = match (flag.argument, value) {
            (Argument::No, Some(_)) => return Err(Mistake::Argument(flag.long)),
            (Argument::Required, None) => {
                let next = self.words.next();
                Some(next.ok_or(Mistake::NoArgumentLong(flag.long))?)
            }
            (_, value) => value.map(ToOwned::to_owned),
        };
        Ok((flag.means, argument))
    }

    /// The flag of this name, or the only one whose name begins so; a mistake shows the whole `word`.
    fn find(&self, name: &[u8], word: &[u8]) -> Result<Flag<T>, Mistake> {
        let shown = || printable(OsStr::from_bytes(word));
        if let Some(flag) = self.flags.iter().find(|flag| flag.long.as_bytes() == name) {
            return Ok(*flag);
        }
        let begin_so = |flag: &&Flag<T>| flag.long.as_bytes().starts_with(name);
        let candidates: Vec<_> = self.flags.iter().filter(begin_so).collect();
        let Some(first) = candidates.first() else {
            return Err(Mistake::UnknownLong(shown()));
        };
        if candidates.iter().all(|flag| flag.means == first.means) {
            return Ok(**first);
        }
        let names: Vec<_> = candidates
            .iter()
            .map(|flag| format!("'--{}'", flag.long))
            .collect();
        Err(Mistake::Ambiguous {
            option: shown(),
            possibilities: names.join(" "),
        })
    }
}

/// What the hidden `--long-options` prints for completion scripts: all but itself and its sister.
pub(super) fn long_options<T>(flags: &[Flag<T>]) -> String {
    let names = flags.iter().map(|flag| flag.long);
    names
        .filter(|name| !["long-options", "short-options"].contains(name))
        .map(|name| format!("--{name}\n"))
        .collect()
}

/// What the hidden `--short-options` prints.
pub(super) fn short_options<T>(flags: &[Flag<T>]) -> String {
    let letters = flags.iter().filter_map(|flag| flag.short);
    letters
        .map(|letter| format!("-{}\n", char::from(letter)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn flag(long: &'static str, short: Option<u8>, argument: Argument) -> Flag<&'static str> {
        Flag {
            long,
            short,
            argument,
            means: long,
        }
    }

    const FLAGS: &[Flag<&str>] = &[
        flag("connections", Some(b'C'), Argument::Required),
        flag("long-options", None, Argument::No),
        flag("progress", Some(b'p'), Argument::Optional),
        flag("request-size", None, Argument::Required),
        flag("requests", Some(b'R'), Argument::Required),
        Flag {
            long: "target-is-zero",
            short: None,
            argument: Argument::No,
            means: "zero",
        },
        Flag {
            long: "target-is-zeroed",
            short: None,
            argument: Argument::No,
            means: "zero",
        },
        flag("verbose", Some(b'v'), Argument::No),
    ];

    type Parsed = (Vec<(&'static str, Option<String>)>, Vec<String>);

    fn parse(words: &[&str]) -> Result<Parsed, Mistake> {
        let text = |word: OsString| word.into_string().expect("UTF-8");
        let words = words.iter().map(OsString::from).collect();
        let mut options = Vec::new();
        let operands = read(FLAGS, words, |means, argument| {
            options.push((means, argument.map(ToOwned::to_owned).map(text)));
            Ok::<_, Mistake>(())
        })?;
        Ok((options, operands.into_iter().map(text).collect()))
    }

    fn options(words: &[&str]) -> Vec<(&'static str, Option<String>)> {
        parse(words).expect("valid").0
    }

    fn mistake(words: &[&str]) -> String {
        parse(words).expect_err("a mistake").to_string()
    }

    fn with(means: &'static str, argument: &str) -> (&'static str, Option<String>) {
        (means, Some(argument.to_owned()))
    }

    #[test]
    fn every_spelling_of_an_argument_is_understood() {
        for words in [
            &["-C4"][..],
            &["-C", "4"],
            &["--connections=4"],
            &["--connections", "4"],
            &["--conn", "4"],
            &["--c=4"],
        ] {
            assert_eq!(options(words), [with("connections", "4")], "{words:?}");
        }
    }

    #[test]
    fn an_optional_argument_stands_behind_the_equals_sign_only() {
        assert_eq!(options(&["--progress=3"]), [with("progress", "3")]);
        let (found, operands) = parse(&["--progress", "3", "-p", "4"]).expect("valid");
        assert_eq!(found, [("progress", None), ("progress", None)]);
        assert_eq!(operands, ["3", "4"]);
        assert_eq!(mistake(&["-p3"]), "invalid option -- '3'");
    }

    #[test]
    fn short_options_come_in_bundles() {
        let found = options(&["-pvC4"]);
        assert_eq!(
            found,
            [
                ("progress", None),
                ("verbose", None),
                with("connections", "4")
            ]
        );
        assert_eq!(
            options(&["-vC", "-v"]),
            [("verbose", None), with("connections", "-v")]
        );
    }

    #[test]
    fn options_stand_anywhere_before_the_double_dash() {
        let (found, operands) =
            parse(&["-v", "in", "-R", "2", "-", "out", "-p", "--", "-v", "--"]).expect("valid");
        assert_eq!(
            found,
            [("verbose", None), with("requests", "2"), ("progress", None)]
        );
        assert_eq!(operands, ["in", "-", "out", "-v", "--"]);
    }

    #[test]
    fn a_name_may_be_cut_short_while_it_means_one_option() {
        assert_eq!(options(&["--verb"]), [("verbose", None)]);
        assert_eq!(options(&["--target"]), [("zero", None)]);
        assert_eq!(options(&["--requests=1"]), [with("requests", "1")]);
        assert_eq!(
            mistake(&["--request"]),
            "option '--request' is ambiguous; possibilities: '--request-size' '--requests'"
        );
    }

    #[test]
    fn mistakes_are_named_as_getopt_names_them() {
        assert_eq!(mistake(&["--bogus=1"]), "unrecognized option '--bogus=1'");
        assert_eq!(mistake(&["-x"]), "invalid option -- 'x'");
        assert_eq!(mistake(&["-vö"]), "invalid option -- 'ö'");
        assert_eq!(mistake(&["-C"]), "option requires an argument -- 'C'");
        assert_eq!(
            mistake(&["--conn"]),
            "option '--connections' requires an argument"
        );
        assert_eq!(
            mistake(&["--verbose=1"]),
            "option '--verbose' doesn't allow an argument"
        );
    }

    #[test]
    fn bytes_that_are_no_text_are_no_reason_to_panic() {
        let words = vec![OsString::from_vec(b"-\xff\xc3".to_vec())];
        let mut arguments = Arguments::new(FLAGS, words);
        assert!(arguments.next_option().is_err());
        assert!(arguments.next_option().is_err());
        assert!(arguments.next_option().expect("the end").is_none());
    }

    #[test]
    fn the_lists_for_completion_leave_the_hidden_ones_out() {
        assert!(!long_options(FLAGS).contains("long-options"));
        assert!(long_options(FLAGS).starts_with("--connections\n--progress\n"));
        assert_eq!(short_options(FLAGS), "-C\n-p\n-R\n-v\n");
    }
}
