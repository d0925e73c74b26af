//! Values of options and parameters, as nbdkit reads them.

use std::{ffi::OsStr, path::PathBuf, time::Duration};

use crate::{block::parse_size, cli::failure::Failure, endpoint::printable};

fn wrong(name: &str, value: &OsStr, wanted: &str) -> Failure {
    let value = printable(value);
    Failure::usage(format!("{name}: {value:?} is not {wanted}"))
}

/// Text in UTF-8.
pub(super) fn text(name: &str, value: &OsStr) -> Result<String, Failure> {
    let text = value.to_str().map(str::to_owned);
    text.ok_or_else(|| wrong(name, value, "text in UTF-8"))
}

/// A path, which does not depend on where we are: a server in the background is elsewhere.
pub(super) fn path(name: &str, value: &OsStr) -> Result<PathBuf, Failure> {
    std::path::absolute(value).map_err(|_| wrong(name, value, "a path"))
}

/// A number that begins with 0x where it is hexadecimal, and with 0 where it is octal.
pub(super) fn unsigned(name: &str, value: &OsStr) -> Result<u32, Failure> {
    let parse = |text: &str| {
        let text = text.trim_start();
        let lower = text.to_ascii_lowercase();
        let (digits, radix) = match lower.strip_prefix("0x") {
            Some(digits) => (digits, 16),
            None if lower.len() > 1 && lower.starts_with('0') => (&lower[1..], 8),
            None => (&*lower, 10),
        };
        let is_plain = digits.starts_with(|c: char| c.is_ascii_alphanumeric());
        is_plain.then(|| u32::from_str_radix(digits, radix).ok())?
    };
    let number = value.to_str().and_then(parse);
    number.ok_or_else(|| wrong(name, value, "a number"))
}

/// A number of 64 bits.
pub(super) fn long(name: &str, value: &OsStr) -> Result<u64, Failure> {
    let number = value.to_str().and_then(|text| text.trim().parse().ok());
    number.ok_or_else(|| wrong(name, value, "a number"))
}

/// A size with an optional unit.
pub(super) fn size(name: &str, value: &OsStr) -> Result<u64, Failure> {
    let size = value.to_str().map(str::trim_start);
    let size = size.and_then(|text| parse_size(text).ok());
    size.ok_or_else(|| wrong(name, value, "a size"))
}

/// Yes or no.
pub(super) fn boolean(name: &str, value: &OsStr) -> Result<bool, Failure> {
    let word = printable(value).to_ascii_lowercase();
    match word.as_str() {
        "1" | "true" | "t" | "yes" | "y" | "on" => Ok(true),
        "0" | "false" | "f" | "no" | "n" | "off" => Ok(false),
        _ => Err(wrong(name, value, "a boolean")),
    }
}

/// A time that is more than none: seconds, unless there is a unit behind it.
pub(super) fn delay(name: &str, value: &OsStr) -> Result<Duration, Failure> {
    let delay = time(name, value).ok();
    delay
        .filter(|delay| !delay.is_zero())
        .ok_or_else(|| wrong(name, value, "a time of more than 0 seconds"))
}

/// A time: seconds, unless there is a unit behind it.
pub(super) fn time(name: &str, value: &OsStr) -> Result<Duration, Failure> {
    let parse = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, unit) = text.split_at(end.unwrap_or(text.len()));
        let unit = match unit.trim() {
            "" | "s" | "sec" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            "m" | "min" => 60.0,
            _ => return None,
        };
        let seconds = number.parse::<f64>().ok()? * unit;
        Duration::try_from_secs_f64(seconds).ok()
    };
    let time = value.to_str().and_then(parse);
    time.ok_or_else(|| wrong(name, value, "a time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_bases_and_nothing_behind_them() {
        let number = |text| unsigned("n", OsStr::new(text)).ok();
        assert_eq!(number("16"), Some(16));
        assert_eq!(number("0x10"), Some(16));
        assert_eq!(number("020"), Some(16));
        assert_eq!(number("0"), Some(0));
        for text in ["", "x", "1x", "-1", "0x", "4294967296", "+1", "0x+1", "09"] {
            assert_eq!(number(text), None, "{text}");
        }
    }

    #[test]
    fn a_boolean_is_a_word_in_any_case() {
        let boolean = |text| boolean("b", OsStr::new(text)).ok();
        assert_eq!(boolean("Yes"), Some(true));
        assert_eq!(boolean("1"), Some(true));
        assert_eq!(boolean("OFF"), Some(false));
        assert_eq!(boolean("2"), None);
        assert_eq!(boolean(""), None);
    }

    #[test]
    fn a_time_is_in_seconds_unless_it_has_a_unit() {
        let delay = |text| delay("d", OsStr::new(text)).ok();
        assert_eq!(delay("2"), Some(Duration::from_secs(2)));
        assert_eq!(delay("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(delay("20ms"), Some(Duration::from_millis(20)));
        for text in ["", "0", "-1", "1x", "nan", "1e400"] {
            assert_eq!(delay(text), None, "{text}");
        }
    }
}
