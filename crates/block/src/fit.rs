//! Whether a device that was opened again is still what it was.

use crate::{Capabilities, DeviceInfo, Error, ErrorKind, Result};

/// What may come and go: doing without it is as right, if slower. Splicing is a matter of the socket, and nothing
/// stays as it was born.
const OPTIONAL: Capabilities = Capabilities::CACHE
    .union(Capabilities::SPLICE_READ)
    .union(Capabilities::SPLICE_WRITE)
    .union(Capabilities::COPY_FROM)
    .union(Capabilities::REOPEN)
    .union(Capabilities::BORN_ZERO);

/// Checks that requests made for the device as it `was` can go to the device as it `is`.
///
/// # Errors
/// `Incompatible`, which says what changed.
pub fn check_fit(was: &DeviceInfo, is: &DeviceInfo) -> Result<()> {
    match difference(was, is) {
        None => Ok(()),
        Some(message) => Err(Error::with_message(ErrorKind::Incompatible, message)),
    }
}

fn difference(was: &DeviceInfo, is: &DeviceInfo) -> Option<String> {
    if was.size != is.size {
        return Some(format!(
            "its size was {} bytes and is {} now",
            was.size, is.size
        ));
    }
    if was.limits.minimum < is.limits.minimum {
        return Some(format!(
            "it took blocks of {} bytes and takes none below {} now",
            was.limits.minimum, is.limits.minimum
        ));
    }
    if was.limits.maximum > is.limits.maximum {
        return Some(format!(
            "it took requests of {} bytes and takes {} at most now",
            was.limits.maximum, is.limits.maximum
        ));
    }
    let missing = was.capabilities - is.capabilities - OPTIONAL;
    if missing.contains(Capabilities::WRITE) {
        return Some("it could be written and is read-only now".to_owned());
    }
    if missing.is_empty() {
        return None;
    }
    let names: Vec<_> = missing
        .iter_names()
        .map(|(name, _)| name.to_ascii_lowercase().replace('_', "-"))
        .collect();
    Some(format!("it has lost an ability: {}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> DeviceInfo {
        let mut info = DeviceInfo::new("disk", 1 << 20);
        info.capabilities = Capabilities::WRITE | Capabilities::FLUSH | Capabilities::SPLICE_READ;
        info.limits.minimum = 512;
        info
    }

    fn with(change: impl FnOnce(&mut DeviceInfo)) -> DeviceInfo {
        let mut info = disk();
        change(&mut info);
        info
    }

    #[test]
    fn a_device_that_offers_as_much_or_more_fits() {
        check_fit(&disk(), &disk()).expect("it is the same");
        let more = with(|info| {
            info.capabilities |= Capabilities::ZERO;
            info.capabilities -= Capabilities::SPLICE_READ;
            info.limits.minimum = 1;
            info.limits.preferred = 65536;
        });
        check_fit(&disk(), &more).expect("nothing is missing");
    }

    #[test]
    fn what_requests_rest_on_must_not_change() {
        for (other, words) in [
            (with(|info| info.size = 512), "1048576 bytes and is 512 now"),
            (with(|info| info.limits.minimum = 4096), "none below 4096"),
            (with(|info| info.limits.maximum = 65536), "65536 at most"),
            (
                with(|info| info.capabilities = Capabilities::FLUSH),
                "read-only now",
            ),
            (
                with(|info| info.capabilities = Capabilities::WRITE),
                "ability: flush",
            ),
        ] {
            let error = check_fit(&disk(), &other).expect_err("it changed");
            assert_eq!(error.kind(), ErrorKind::Incompatible);
            assert!(!error.is_transient());
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
