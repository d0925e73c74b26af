//! Colours of a terminal.

use std::fmt;

/// Whether output is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colour {
    Always,
    Never,
}

/// What a terminal writes with from here on. Shown only where there are colours at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paint {
    /// As it was before.
    Normal,
    Grey,
    Green,
    Red,
    BoldBlack,
    BoldBlue,
    BoldMagenta,
    BoldRed,
    /// Bold white on black.
    Inverse,
    OnWhite,
}

impl Colour {
    /// What was asked for; else colours for a terminal, unless its user wants none (`NO_COLOR`).
    pub(crate) fn chosen(asked: Option<bool>, terminal: bool) -> Self {
        let unwanted = || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        match asked.unwrap_or_else(|| terminal && !unwanted()) {
            true => Self::Always,
            false => Self::Never,
        }
    }

    /// `paint`, or nothing where there are no colours.
    pub(crate) fn paint(self, paint: Paint) -> impl fmt::Display {
        match self {
            Self::Always => paint.code(),
            Self::Never => "",
        }
    }
}

impl Paint {
    fn code(self) -> &'static str {
        match self {
            Self::Normal => "\x1b[0m",
            Self::Grey => "\x1b[22;90m",
            Self::Green => "\x1b[22;32m",
            Self::Red => "\x1b[22;31m",
            Self::BoldBlack => "\x1b[1;30m",
            Self::BoldBlue => "\x1b[1;34m",
            Self::BoldMagenta => "\x1b[1;35m",
            Self::BoldRed => "\x1b[1;31m",
            Self::Inverse => "\x1b[1;37m\x1b[40m",
            Self::OnWhite => "\x1b[47m",
        }
    }
}
