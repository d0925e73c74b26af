//! Numbers as C prints them with `%g`.

use std::fmt;

/// A number that is not negative with so many significant digits, from 1 on: `Significant(number, digits)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Significant(pub(crate) f64, pub(crate) usize);

impl fmt::Display for Significant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(number, digits) = *self;
        let digits = digits.max(1);
        // Rounding comes first: 0.99999999 is 1.
        let scientific = format!("{number:.*e}", digits - 1);
        let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        let exponent: i32 = exponent.parse().unwrap_or(0);
        let short = |digits: &str| match digits.contains('.') {
            true => digits
                .trim_end_matches('0')
                .trim_end_matches('.')
                .to_owned(),
            false => digits.to_owned(),
        };
        let digits = i32::try_from(digits).unwrap_or(i32::MAX);
        if (-4..digits).contains(&exponent) {
            let places = usize::try_from(digits - 1 - exponent).unwrap_or(0);
            return f.write_str(&short(&format!("{number:.places$}")));
        }
        let sign = if exponent < 0 { '-' } else { '+' };
        write!(f, "{}e{sign}{:02}", short(mantissa), exponent.abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_printed_as_c_does() {
        for (number, text) in [
            (0.0, "0"),
            (100.0, "100"),
            (6.25, "6.25"),
            (100.0 / 3.0, "33.3333"),
            (200.0 / 3.0, "66.6667"),
            (99.999_999_9, "100"),
            (1.966_080_1, "1.96608"),
            (0.006_103_515_6, "0.00610352"),
            (0.000_1, "0.0001"),
            (0.000_099_999_99, "0.0001"),
            (0.000_003_725_29, "3.72529e-06"),
            (1e-12, "1e-12"),
        ] {
            assert_eq!(Significant(number, 6).to_string(), text);
        }
        for (number, text) in [(0.0, "0"), (1.5, "1.5"), (953.67, "954"), (999.9, "1e+03")] {
            assert_eq!(Significant(number, 3).to_string(), text);
        }
    }
}
