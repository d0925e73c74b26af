//! Text that came from anywhere, made fit to be shown.

use std::ffi::OsStr;

/// The text as it can be shown: what is no UTF-8 is replaced, control characters are escaped.
#[must_use]
pub fn printable(text: &OsStr) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.to_string_lossy().chars() {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}
