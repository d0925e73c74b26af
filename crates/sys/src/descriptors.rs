//! How many descriptors a process may hold, and what it looks like when there are no more.

use std::io;

use rustix::{
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

/// Lets this process have as many descriptors as an ordinary user may ask for, and says how many that are;
/// `None` for no limit. Where the system refuses even that, the limit stays as it was.
#[must_use]
pub fn allow_most_descriptors() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(_) => current,
    }
}

/// Whether a call failed for want of descriptors or memory on this side, so that nothing is said of the other one.
#[must_use]
pub fn is_shortage(error: &io::Error) -> bool {
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    let number = error.raw_os_error();
    number.is_some_and(|number| shortages.contains(&Errno::from_raw_os_error(number)))
}

// Miri knows nothing of getrlimit.
#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_descriptors_is_told_from_who_is_refused() {
        let raised = |error: Errno| is_shortage(&io::Error::from(error));
        assert!(raised(Errno::MFILE) && raised(Errno::NOMEM));
        assert!(!raised(Errno::CONNREFUSED) && !raised(Errno::ACCESS));
        // An address of a family that this machine does not have: the next one may do.
        assert!(!raised(Errno::ADDRNOTAVAIL));
        assert!(!is_shortage(&io::ErrorKind::TimedOut.into()));
    }

    #[test]
    fn the_limit_becomes_the_most_that_is_allowed() {
        let maximum = getrlimit(Resource::Nofile).maximum;
        assert_eq!(allow_most_descriptors(), maximum);
        assert_eq!(getrlimit(Resource::Nofile).current, maximum);
    }
}
