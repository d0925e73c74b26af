//! Colours that the colour-blind tell apart (Okabe and Ito, "Color Universal Design"), and greys.
//!
//! They are those for a white page. A dark one has others in their place: `page/style.css` names each of these
//! and says which.

use std::fmt;

/// A colour: red, green and blue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Colour(pub(crate) u8, pub(crate) u8, pub(crate) u8);

pub(crate) const BLUE: Colour = Colour(0x00, 0x72, 0xb2);
pub(crate) const ORANGE: Colour = Colour(0xe6, 0x9f, 0x00);
pub(crate) const GREEN: Colour = Colour(0x00, 0x9e, 0x73);
pub(crate) const PURPLE: Colour = Colour(0xcc, 0x79, 0xa7);
pub(crate) const VERMILION: Colour = Colour(0xd5, 0x5e, 0x00);
/// What is there and has nothing in it.
pub(crate) const PALE: Colour = Colour(0xe4, 0xe4, 0xe4);
/// What is not there.
pub(crate) const BLANK: Colour = Colour(0xfa, 0xfa, 0xfa);
/// Lines behind everything.
pub(crate) const GRID: Colour = Colour(0xdd, 0xdd, 0xdd);
/// The lines of axes, and frames.
pub(crate) const AXIS: Colour = Colour(0x88, 0x88, 0x88);
/// Text beside a drawing.
pub(crate) const TEXT: Colour = Colour(0x55, 0x55, 0x55);

impl fmt::Display for Colour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(red, green, blue) = self;
        write!(f, "#{red:02X}{green:02X}{blue:02X}")
    }
}
