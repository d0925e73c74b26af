//! Whole jobs, as the command line does them, for other programs: nothing is printed, and no signal is taken over.
//!
//! [`CopyJob`] is what `blockferry copy` does between its words and its last line: both sides are opened and looked
//! at, room is checked, the image is moved, and a new file gets its name. It is told in the words of the command line,
//! so that there is one place that says what they mean, which go together, and what they are without being said.
//! [`JobError`] is what a failure is told as, with its causes and with advice.
//!
//! ```no_run
//! use blockferry::job::{CopyJob, Stop};
//!
//! # fn example() -> Result<(), blockferry::job::JobError> {
//! let job = CopyJob::new(["--output-format=qcow2", "--", "disk.raw", "disk.qcow2"])?;
//! let done = job.run(|_event| {}, &Stop::new())?;
//! println!("{} bytes of data in {:?}", done.report.data, done.elapsed);
//! # Ok(())
//! # }
//! ```

mod copy;
mod error;
mod stop;

pub use copy::{CopyDone, CopyJob};
pub use error::JobError;
pub use stop::Stop;
