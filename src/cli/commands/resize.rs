//! `blockferry resize`: another size for an image.

use crate::{block::HumanSize, endpoint::resize_image};

use super::{
    super::{
        failure::Failure,
        options::{ResizeJob, Timeouts, open_options},
        output::tell,
        signals::Signals,
    },
    in_place::{Ends, until_sound},
};

/// Resizes the image; the sizes of its disk before and after are returned.
pub(crate) fn resize(job: &ResizeJob) -> Result<(u64, u64), Failure> {
    let runtime = super::runtime()?;
    let resized = runtime.block_on(resize_image_of(job));
    // What a second signal did not wait for is not waited for here.
    runtime.shutdown_background();
    resized
}

async fn resize_image_of(job: &ResizeJob) -> Result<(u64, u64), Failure> {
    let signals = Signals::listen().map_err(|error| Failure::system("signals", &error))?;
    let options = job.trust.in_options(open_options(Timeouts::PATIENT));
    let resizing = resize_image(&job.image, job.size, &job.options, &options);
    let image = &job.image;
    let ends = Ends {
        stopped: format!("{image} has the size that it had"),
        abandoned: format!(
            "{image} has its old size or the new one; 'blockferry check --repair leaks' gives back what space was lost in a qcow2 image"
        ),
    };
    until_sound(resizing, || job.options.stop.ask(), signals, ends).await
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
