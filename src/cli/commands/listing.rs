//! `blockferry snapshot` and `blockferry bitmap`: lists of what is in an image.

use crate::{
    block::Error,
    endpoint::image_details,
    format::qcow2::Details,
    inspect::{Bitmap, State},
};

use super::{
    super::{
        failure::Failure,
        options::{ListingJob, open_options},
        output::print,
    },
    info::{json, text},
};

/// What is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listed {
    Snapshots,
    Bitmaps,
}

impl Listed {
    fn name(self) -> &'static str {
        match self {
            Self::Snapshots => "snapshots",
            Self::Bitmaps => "bitmaps",
        }
    }
}

pub(crate) fn run(job: &ListingJob, what: Listed) -> Result<(), Failure> {
    let options = open_options(job.timeouts);
    let details = super::runtime()?.block_on(image_details(&job.endpoint, &options));
    let details = details.map_err(|error: Error| Failure::from(error))?;
    let Some(details) = details.as_ref().and_then(|details| details.as_qcow2()) else {
        let message = format!(
            "{}: it is not a qcow2 image, and no other format has {}",
            job.endpoint,
            what.name()
        );
        return Err(Failure::failed(message));
    };
    let text = list(details, what, job.json);
    print(&text)
}

fn list(details: &Details, what: Listed, json: bool) -> String {
    match what {
        Listed::Snapshots => {
            let states: Vec<_> = details.snapshots.iter().map(State::from).collect();
            match json {
                true => json::pretty(&states),
                false => lines(states.iter().map(text::state)),
            }
        }
        Listed::Bitmaps => {
            let bitmaps: Vec<_> = details.bitmaps.iter().map(Bitmap::from).collect();
            match json {
                true => json::pretty(&bitmaps),
                false => lines(bitmaps.iter().map(text::bitmap)),
            }
        }
    }
}

fn lines(of: impl Iterator<Item = String>) -> String {
    of.map(|line| line + "\n").collect()
}
