//! The text of a data disk becomes a tree. Nothing is looked up here.

use super::DataError;

/// How deep parentheses may stand in each other.
const DEEPEST: usize = 64;

/// What one field of the text does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// Moves the offset.
    Move(Move),
    /// Puts bytes at the offset, which moves behind them.
    Put(Expression),
    /// Gives the bytes a name.
    Assign(String, Expression),
}

/// How the offset moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Move {
    To(u64),
    Forward(u64),
    Back(u64),
    /// To the next multiple of a power of two.
    Align(u64),
}

/// Some bytes: those of its base, after each of the suffixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expression {
    pub(super) base: Base,
    pub(super) suffixes: Vec<Suffix>,
}

/// What the bytes are in the beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Base {
    Byte(u8),
    Bytes(Vec<u8>),
    /// The path of a file.
    File(Vec<u8>),
    /// A program for the shell.
    Script(Vec<u8>),
    Group(Vec<Field>),
    /// What was assigned to the name.
    Name(String),
    /// The text that a variable holds.
    Variable(String),
}

/// What is made of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Suffix {
    Repeat(u64),
    /// From a byte to the one before another, or to the end.
    Slice(u64, Option<u64>),
}

/// Reads a whole text.
pub(super) fn parse(text: &[u8]) -> Result<Vec<Field>, DataError> {
    let mut parser = Parser { text, at: 0 };
    let fields = parser.fields(0)?;
    match parser.peek() {
        None => Ok(fields),
        Some(_) => Err(parser.wrong("')' without a '(' before it")),
    }
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    /// The fields up to the end of the text, or to a `)` that ends them.
    fn fields(&mut self, depth: usize) -> Result<Vec<Field>, DataError> {
        let mut fields = Vec::new();
        loop {
            self.skip_space();
            match self.peek() {
                None | Some(b')') => return Ok(fields),
                Some(b'@') => fields.push(Field::Move(self.movement()?)),
                Some(_) => fields.push(self.bytes(depth)?),
            }
        }
    }

    fn movement(&mut self) -> Result<Move, DataError> {
        self.at += 1;
        let sign = self.peek();
        if matches!(sign, Some(b'+' | b'-' | b'^')) {
            self.at += 1;
        }
        let start = self.at;
        let number = self.number()?;
        match sign {
            Some(b'+') => Ok(Move::Forward(number)),
            Some(b'-') => Ok(Move::Back(number)),
            Some(b'^') if number.is_power_of_two() => Ok(Move::Align(number)),
            Some(b'^') => {
                self.at = start;
                Err(self.wrong("an alignment is a power of two"))
            }
            _ => Ok(Move::To(number)),
        }
    }

    fn bytes(&mut self, depth: usize) -> Result<Field, DataError> {
        let mut expression = Expression {
            base: self.base(depth)?,
            suffixes: Vec::new(),
        };
        loop {
            self.skip_space();
            if self.take(b"*") {
                self.skip_space();
                expression.suffixes.push(Suffix::Repeat(self.number()?));
            } else if self.take(b"[") {
                expression.suffixes.push(self.slice()?);
            } else if self.take(b"->") {
                self.skip_space();
                return Ok(Field::Assign(self.name()?, expression));
            } else {
                return Ok(Field::Put(expression));
            }
        }
    }

    fn base(&mut self, depth: usize) -> Result<Base, DataError> {
        match self.peek() {
            Some(b'0'..=b'9') => {
                let start = self.at;
                let number = self.number()?;
                u8::try_from(number).map(Base::Byte).map_err(|_| {
                    self.at = start;
                    self.wrong("a byte is a number from 0 to 255")
                })
            }
            Some(b'"') => self.string(),
            Some(b'<') => self.outside(),
            Some(b'(') if depth >= DEEPEST => Err(DataError::TooDeep),
            Some(b'(') => {
                let start = self.at;
                self.at += 1;
                let fields = self.fields(depth + 1)?;
                if !self.take(b")") {
                    self.at = start;
                    return Err(self.wrong("'(' without a ')' behind it"));
                }
                Ok(Base::Group(fields))
            }
            Some(b'\\') => self.name().map(Base::Name),
            Some(b'$') => {
                self.at += 1;
                let is_first = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'_';
                if !self.peek().as_ref().is_some_and(is_first) {
                    return Err(self.wrong("'$' without the name of a variable"));
                }
                Ok(Base::Variable(
                    self.word(|byte| byte.is_ascii_alphanumeric() || byte == b'_'),
                ))
            }
            Some(b'l' | b'b') => self.integer(),
            Some(b'*' | b'[') => Err(self.wrong("there is nothing before it that has bytes")),
            _ => Err(self.wrong("this is not a field")),
        }
    }

    /// `le16:N` and its sisters.
    fn integer(&mut self) -> Result<Base, DataError> {
        for (prefix, length, big) in [
            (b"le16:", 2, false),
            (b"be16:", 2, true),
            (b"le32:", 4, false),
            (b"be32:", 4, true),
            (b"le64:", 8, false),
            (b"be64:", 8, true),
        ] {
            if !self.take(prefix) {
                continue;
            }
            let start = self.at;
            let number = self.number()?;
            if length < 8 && number >> (8 * length) != 0 {
                self.at = start;
                return Err(self.wrong(&format!("the number has more than {} bits", 8 * length)));
            }
            if self.peek().is_some_and(|byte| byte.is_ascii_alphanumeric()) {
                return Err(self.wrong("the number does not end here"));
            }
            return Ok(Base::Bytes(match big {
                true => number.to_be_bytes()[8 - length..].to_vec(),
                false => number.to_le_bytes()[..length].to_vec(),
            }));
        }
        Err(self.wrong("this is not a field"))
    }

    fn string(&mut self) -> Result<Base, DataError> {
        let start = self.at;
        self.at += 1;
        let mut bytes = Vec::new();
        while let Some(byte) = self.next() {
            bytes.push(match byte {
                b'"' => return Ok(Base::Bytes(bytes)),
                b'\\' => match self.next() {
                    Some(b'a') => 0x07,
                    Some(b'b') => 0x08,
                    Some(b'f') => 0x0c,
                    Some(b'n') => b'\n',
                    Some(b'r') => b'\r',
                    Some(b't') => b'\t',
                    Some(b'v') => 0x0b,
                    Some(b'x') => self.two_digits()?,
                    Some(b'0'..=b'9' | b'u') => {
                        self.at -= 1;
                        return Err(self.wrong("write bytes in a string as \\xNN"));
                    }
                    Some(other) => other,
                    None => break,
                },
                other => other,
            });
        }
        self.at = start;
        Err(self.wrong("a string without a '\"' behind it"))
    }

    fn two_digits(&mut self) -> Result<u8, DataError> {
        let digits = self.text.get(self.at..self.at + 2);
        let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let byte = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .ok_or_else(|| self.wrong("'\\x' needs two hexadecimal digits"))?;
        self.at += 2;
        Ok(byte)
    }

    /// `<FILE` or `<(SCRIPT)`.
    fn outside(&mut self) -> Result<Base, DataError> {
        self.at += 1;
        let start = self.at;
        if !self.take(b"(") {
            let rest = &self.text[start..];
            let is_end = |byte: &u8| byte.is_ascii_whitespace() || b"*[)".contains(byte);
            let length = rest.iter().position(is_end).unwrap_or(rest.len());
            if length == 0 {
                return Err(self.wrong("'<' without a file or a script behind it"));
            }
            self.at += length;
            return Ok(Base::File(rest[..length].to_vec()));
        }
        let mut depth = 1_usize;
        while let Some(byte) = self.next() {
            match byte {
                b'(' => depth += 1,
                b')' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                let script = &self.text[start + 1..self.at - 1];
                return Ok(Base::Script(script.to_vec()));
            }
        }
        self.at = start;
        Err(self.wrong("'<(' without a ')' behind it"))
    }

    /// `N:M]`, each number or none.
    fn slice(&mut self) -> Result<Suffix, DataError> {
        let start = match self.peek() {
            Some(b':') => 0,
            _ => self.number()?,
        };
        if !self.take(b":") {
            return Err(self.wrong("a slice is written [N:M]"));
        }
        let end = match self.peek() {
            Some(b']') => None,
            _ => Some(self.number()?),
        };
        if !self.take(b"]") {
            return Err(self.wrong("a slice is written [N:M]"));
        }
        Ok(Suffix::Slice(start, end))
    }

    /// `\NAME`.
    fn name(&mut self) -> Result<String, DataError> {
        if !self.take(b"\\") {
            return Err(self.wrong("'->' needs a \\NAME behind it"));
        }
        let name = self.word(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        match name.is_empty() {
            true => Err(self.wrong("'\\' without a name behind it")),
            false => Ok(name),
        }
    }

    fn word(&mut self, belongs: impl Fn(u8) -> bool) -> String {
        let rest = &self.text[self.at..];
        let length = rest.iter().position(|byte| !belongs(*byte));
        let word = &rest[..length.unwrap_or(rest.len())];
        self.at += word.len();
        // Only ASCII belongs to words.
        String::from_utf8_lossy(word).into_owned()
    }

    /// A number as C writes it: `0x` for hexadecimal, `0` for octal. It ends where no digit follows.
    fn number(&mut self) -> Result<u64, DataError> {
        let start = self.at;
        if !self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            return Err(self.wrong("a number is missing"));
        }
        let radix = if self.take(b"0x") || self.take(b"0X") {
            16
        } else if self.peek() == Some(b'0') {
            8
        } else {
            10
        };
        let mut number = 0_u64;
        while let Some(digit) = self
            .peek()
            .and_then(|byte| char::from(byte).to_digit(radix))
        {
            let next = number
                .checked_mul(radix.into())
                .and_then(|number| number.checked_add(digit.into()));
            let Some(next) = next else {
                self.at = start;
                return Err(self.wrong("the number has more than 64 bits"));
            };
            number = next;
            self.at += 1;
        }
        Ok(number)
    }

    /// Skips white space and comments.
    fn skip_space(&mut self) {
        while let Some(byte) = self.peek() {
            match byte {
                b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => self.at += 1,
                b'#' => while self.next().is_some_and(|byte| byte != b'\n') {},
                _ => return,
            }
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn take(&mut self, expected: &[u8]) -> bool {
        let is = self.text[self.at..].starts_with(expected);
        if is {
            self.at += expected.len();
        }
        is
    }

    fn wrong(&self, what: &str) -> DataError {
        DataError::Syntax {
            position: self.at,
            what: what.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_found_where_they_are() {
        for (text, position, part) in [
            ("1 2 x", 4, "not a field"),
            ("1 )", 2, "without a '('"),
            (" (1", 1, "without a ')'"),
            ("@", 1, "number is missing"),
            ("@ 4", 1, "number is missing"),
            ("1 @^3", 4, "power of two"),
            ("256", 0, "0 to 255"),
            ("99999999999999999999", 0, "64 bits"),
            ("le16:0x10000", 5, "16 bits"),
            ("le16:08", 6, "does not end"),
            ("le8:1", 0, "not a field"),
            ("*2", 0, "nothing before"),
            ("@4*2", 2, "nothing before"),
            ("1*-1", 2, "number is missing"),
            ("\"abc\"[1]", 7, "[N:M]"),
            ("\"abc\"[-1:]", 6, "number is missing"),
            ("\"a", 0, "string without"),
            ("\"\\1\"", 2, "\\xNN"),
            ("\"\\xg0\"", 3, "two hexadecimal"),
            ("\"\\x", 3, "two hexadecimal"),
            ("< f", 1, "without a file"),
            ("<(a", 1, "without a ')'"),
            ("$", 1, "name of a variable"),
            ("${x}", 1, "name of a variable"),
            ("\\", 1, "without a name"),
            ("1 -> a", 5, "\\NAME"),
        ] {
            match parse(text.as_bytes()) {
                Err(DataError::Syntax { position: at, what }) => {
                    assert_eq!(at, position, "{text}: {what}");
                    assert!(what.contains(part), "{text}: {what}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn parentheses_do_not_stand_in_each_other_without_an_end() {
        let nested = |depth| "(".repeat(depth) + &")".repeat(depth);
        assert!(parse(nested(DEEPEST).as_bytes()).is_ok());
        assert_eq!(parse(nested(1_000_000).as_bytes()), Err(DataError::TooDeep));
    }

    #[test]
    fn a_script_ends_with_its_own_parenthesis() {
        let fields = parse(b"<(a (b) #)*2").expect("a script");
        let expression = Expression {
            base: Base::Script(b"a (b) #".to_vec()),
            suffixes: vec![Suffix::Repeat(2)],
        };
        assert_eq!(fields, [Field::Put(expression)]);
    }
}
