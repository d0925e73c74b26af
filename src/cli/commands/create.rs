//! `blockferry create`: an image with nothing in it.

use crate::block::HumanSize;

use super::{
    super::{
        failure::Failure,
        options::{CreateJob, open_options},
        output::{print, tell},
        signals::Signals,
    },
    copy::unless_interrupted,
};

pub(crate) fn run(job: CreateJob) -> Result<(), Failure> {
    let runtime = super::runtime()?;
    runtime.block_on(create(job))
}

async fn create(job: CreateJob) -> Result<(), Failure> {
    let mut signals = Signals::listen().map_err(|error| Failure::system("signals", &error))?;
    let options = job.trust.in_options(open_options(job.timeouts));
    let (destination, mut image) = (job.destination, job.image);
    let settled = image.settle_size(&destination, &options);
    let size = unless_interrupted(settled, &mut signals).await??;
    if let Some(announce) = job.announce {
        print(&announce(size))?;
    }
    unless_interrupted(image.create(&destination, &options), &mut signals).await??;
    if !job.quiet {
        let human = HumanSize(size);
        tell(&format!("created {destination}: {human} ({size} bytes)"));
    }
    Ok(())
}
