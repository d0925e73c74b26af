//! `blockferry resize`: another size for an image.

use crate::{block::HumanSize, endpoint::resize_image};

use super::super::{
    failure::Failure,
    options::{ResizeJob, Timeouts, open_options},
    output::tell,
    signals::Signals,
};

/// Resizes the image; the sizes of its disk before and after are returned.
pub(crate) fn resize(job: &ResizeJob) -> Result<(u64, u64), Failure> {
    let runtime = super::runtime()?;
    runtime.block_on(async {
        // A signal in the middle would leave a disk of the old size: the end is waited for.
        let _signals = Signals::listen().map_err(|error| Failure::system("signals", &error))?;
        let options = job.trust.in_options(open_options(Timeouts::PATIENT));
        let resized = resize_image(&job.image, job.size, &job.options, &options);
        Ok(resized.await?)
    })
}

pub(crate) fn run(job: &ResizeJob) -> Result<(), Failure> {
    let (old, new) = resize(job)?;
    if !job.quiet {
        let (was, is) = (HumanSize(old), HumanSize(new));
        let image = &job.image;
        tell(&format!(
            "resized {image}: {is} ({new} bytes), it was {was}"
        ));
    }
    Ok(())
}
