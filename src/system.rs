//! What the system says of an error, in its own words and nothing else.

use std::io;

/// How the number begins that Rust puts behind the system's words.
const NUMBER: &str = " (os error ";

/// What tempfile puts behind them: the name of a file that nobody knows.
const PLACE: &str = " at path \"";

/// The words of `error`, without its number.
pub(crate) fn words(error: &io::Error) -> String {
    let mut text = error.to_string();
    if let Some(end) = text.find(PLACE)
        && text[..end].ends_with(')')
    {
        text.truncate(end);
    }
    without_numbers(text)
}

/// A text without the numbers of system errors in it: their words stand in front of them.
pub(crate) fn without_numbers(mut text: String) -> String {
    let mut from = 0;
    while let Some(found) = text[from..].find(NUMBER) {
        let start = from + found;
        let number = start + NUMBER.len();
        let digits = text[number..].bytes().take_while(u8::is_ascii_digit);
        let end = number + digits.count();
        if end > number && text[end..].starts_with(')') {
            text.replace_range(start..=end, "");
            from = start;
        } else {
            from = number;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_stay_and_the_numbers_go() {
        assert_eq!(
            words(&io::Error::from_raw_os_error(28)),
            "No space left on device"
        );
        let text = "a: Broken pipe (os error 32), after 3 bytes: No such file (os error 2)";
        assert_eq!(
            without_numbers(text.to_owned()),
            "a: Broken pipe, after 3 bytes: No such file"
        );
        for text in [
            "",
            " (os error ",
            " (os error )",
            " (os error 2",
            "(os error 2)",
        ] {
            assert_eq!(without_numbers(text.to_owned()), text);
        }
    }

    #[test]
    fn nobody_hears_of_files_without_a_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let missing = directory.path().join("missing");
        let error = tempfile::NamedTempFile::new_in(missing).expect_err("no directory");
        assert!(error.to_string().contains(" at path "), "{error}");
        assert_eq!(words(&error), "No such file or directory");
    }
}
