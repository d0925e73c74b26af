//! How those wait who open a device again that was lost: while an NBD server restarts, for one.

use std::time::Duration;

use crate::{Error, ErrorKind};

/// The pause before the first attempt to open a lost device again; it doubles from one to the next.
pub const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause between two attempts.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The pause before an attempt, after so many in vain: from [`FIRST_PAUSE`] to [`LONGEST_PAUSE`].
///
/// ```
/// use std::time::Duration;
///
/// use blockferry_block::reopening::pause;
///
/// let seconds: Vec<_> = (0..8).map(|attempts| pause(attempts).as_secs_f64()).collect();
/// assert_eq!(seconds, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0]);
/// assert_eq!(pause(u32::MAX), Duration::from_secs(10));
/// ```
#[must_use]
pub fn pause(attempts: u32) -> Duration {
    let factor = 1_u32.checked_shl(attempts.min(16)).unwrap_or(u32::MAX);
    FIRST_PAUSE.saturating_mul(factor).min(LONGEST_PAUSE)
}

/// Whether another attempt may go better than one that failed with `error`: while a server restarts its socket may
/// refuse or be missing.
#[must_use]
pub fn can_heal(error: &Error) -> bool {
    error.is_transient()
        || matches!(
            error.kind(),
            ErrorKind::Refused | ErrorKind::NotFound | ErrorKind::Io
        )
}
