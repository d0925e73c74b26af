//! How many descriptors a process may hold.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Lets this process, and those that it starts, have at least `wanted` descriptors open (`RLIMIT_NOFILE`). A limit that
/// is higher stays as it is.
///
/// # Errors
/// `EPERM` when that is more than an ordinary user may ask for.
pub fn raise_descriptor_limit(wanted: u64) -> io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let raised = Rlimit {
        current: Some(wanted),
        maximum: maximum.map(|maximum| maximum.max(wanted)),
    };
    Ok(setrlimit(Resource::Nofile, raised)?)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_raised_and_never_lowered() {
        let before = getrlimit(Resource::Nofile).current;
        raise_descriptor_limit(1).expect("nothing is raised");
        assert_eq!(getrlimit(Resource::Nofile).current, before);
        let maximum = getrlimit(Resource::Nofile).maximum;
        if let Some(maximum) = maximum {
            raise_descriptor_limit(maximum).expect("up to the maximum");
            assert_eq!(getrlimit(Resource::Nofile).current, Some(maximum));
        }
        assert_eq!(allow_most_descriptors(), maximum);
        assert_eq!(getrlimit(Resource::Nofile).current, maximum);
    }
}
