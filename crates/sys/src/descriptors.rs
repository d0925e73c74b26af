//! How many descriptors a process may hold.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

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
    fn the_limit_becomes_the_most_that_is_allowed() {
        let maximum = getrlimit(Resource::Nofile).maximum;
        assert_eq!(allow_most_descriptors(), maximum);
        assert_eq!(getrlimit(Resource::Nofile).current, maximum);
    }
}
