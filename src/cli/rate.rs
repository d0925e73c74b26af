//! How fast a copy may be: a limit that is given, and one that is read from a file while the copy runs.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{block::read_rate, copy::Control, endpoint::printable};

use super::{failure::Failure, progress::View, signals::Reload};

/// How often the file is looked at.
const PAUSE: Duration = Duration::from_secs(1);

/// The limit of a copy, as it was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Bytes a second; `None` for no limit.
    pub(crate) limit: Option<u64>,
    /// The file that says it instead, now and later.
    pub(crate) file: Option<PathBuf>,
}

/// A limit that is followed while a copy runs.
#[derive(Debug)]
pub(crate) struct Limit {
    file: Option<Followed>,
}

/// A file, and what was found in it.
#[derive(Debug)]
struct Followed {
    path: PathBuf,
    /// What was in it when it was looked at last.
    seen: Found,
    /// What it said when it made sense last; 0 for no limit.
    rate: u64,
    /// The last nonsense that was told of.
    told: Option<String>,
}

/// The rate in a file in bytes a second, 0 for no limit, or what is wrong with it.
type Found = Result<u64, String>;

impl Rate {
    /// Sets the limit that holds in the beginning.
    pub(crate) fn begin(&self, control: &Control) -> Result<Limit, Failure> {
        control.set_rate(self.limit.filter(|rate| *rate > 0));
        let Some(path) = &self.file else {
            return Ok(Limit { file: None });
        };
        let rate = read_rate(path).map_err(|why| Failure::failed(complaint(path, &why)))?;
        control.set_rate(Some(rate).filter(|rate| *rate > 0));
        Ok(Limit {
            file: Some(Followed {
                path: path.clone(),
                seen: Ok(rate),
                rate,
                told: None,
            }),
        })
    }
}

impl Limit {
    /// Sets every new limit that the file says, for as long as it is polled.
    pub(crate) async fn follow(
        &mut self,
        control: &Control,
        view: &View,
        reload: &mut Reload,
    ) -> Infallible {
        let Some(file) = &mut self.file else {
            return std::future::pending().await;
        };
        let mut ticks = tokio::time::interval(PAUSE);
        loop {
            let at_once = tokio::select! {
                _ = ticks.tick() => false,
                () = reload.asked() => true,
            };
            match file.look(at_once) {
                Some(Ok(rate)) => control.set_rate(Some(rate).filter(|rate| *rate > 0)),
                Some(Err(complaint)) => view.warn(&complaint),
                None => {}
            }
        }
    }
}

impl Followed {
    /// Reads the file, and returns a rate that is new, or a complaint that was not made before.
    ///
    /// What makes no sense counts when it is still there at the next look, or `at_once`: someone may just
    /// be writing it.
    fn look(&mut self, at_once: bool) -> Option<Found> {
        let found = read_rate(&self.path);
        let settled = at_once || found == self.seen;
        self.seen.clone_from(&found);
        match found {
            Ok(rate) => {
                self.told = None;
                let is_new = std::mem::replace(&mut self.rate, rate) != rate;
                is_new.then_some(Ok(rate))
            }
            Err(why) => {
                if !settled || self.told.as_ref() == Some(&why) {
                    return None;
                }
                let complaint = format!("{}; the rate stays", complaint(&self.path, &why));
                self.told = Some(why);
                Some(Err(complaint))
            }
        }
    }
}

fn complaint(path: &Path, why: &str) -> String {
    format!("the rate in {}: {why}", printable(path.as_os_str()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn followed(text: &str) -> (tempfile::NamedTempFile, Followed) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), text).expect("written");
        let rate = read_rate(file.path()).expect("a rate");
        let followed = Followed {
            path: file.path().to_owned(),
            seen: Ok(rate),
            rate,
            told: None,
        };
        (file, followed)
    }

    #[test]
    fn each_new_rate_is_found_once() {
        let (file, mut followed) = followed("10M\n");
        assert_eq!(followed.look(false), None);
        for (text, rate) in [("20M", 20 << 20), (" 512K \n", 512 << 10), ("0", 0)] {
            fs::write(file.path(), text).expect("written");
            assert_eq!(followed.look(false), Some(Ok(rate)));
            assert_eq!(followed.look(false), None);
        }
    }

    #[test]
    fn nonsense_is_told_once_and_changes_nothing() {
        let (file, mut followed) = followed("10M");
        fs::write(file.path(), "fast").expect("written");
        assert_eq!(followed.look(false), None, "it may just be being written");
        let complaint = followed.look(false).expect("told").expect_err("no rate");
        assert!(complaint.contains("fast") && complaint.contains("the rate stays"));
        assert_eq!(followed.look(false), None);
        assert_eq!(followed.rate, 10 << 20);
        fs::write(file.path(), "10M").expect("written");
        assert_eq!(followed.look(false), None, "it is still the same");
        fs::remove_file(file.path()).expect("removed");
        let complaint = followed.look(true).expect("told at once");
        assert!(complaint.is_err());
    }

    #[test]
    fn what_is_no_file_of_a_size_is_refused_in_the_beginning() {
        let control = Control::new();
        for path in ["/dev/zero", "/nonexistent", "/"] {
            let rate = Rate {
                limit: None,
                file: Some(PathBuf::from(path)),
            };
            let failure = rate.begin(&control).expect_err("no rate");
            assert!(failure.to_string().contains(path));
        }
    }
}
