//! `blockferry resize`: another size for an image.

use std::pin::pin;

use crate::{
    block::{ErrorKind, HumanSize},
    endpoint::{Endpoint, resize_image},
};

use super::super::{
    failure::Failure,
    options::{ResizeJob, Timeouts, open_options},
    output::tell,
    signals::{Interrupt, Signals},
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
    let mut signals = Signals::listen().map_err(|error| Failure::system("signals", &error))?;
    let options = job.trust.in_options(open_options(Timeouts::PATIENT));
    let resizing = resize_image(&job.image, job.size, &job.options, &options);
    let mut resizing = pin!(resizing);
    let interrupt = tokio::select! {
        resized = &mut resizing => return Ok(resized?),
        interrupt = signals.next() => interrupt,
    };
    // It ends where the image is sound; who does not want to wait for that leaves it as a crash would.
    job.options.stop.ask();
    let resized = tokio::select! {
        resized = resizing => resized,
        again = signals.next() => return Err(abandoned(&job.image, again)),
    };
    match resized {
        Err(error) if error.kind() == ErrorKind::Cancelled => {
            let note = format!("{} has the size that it had", job.image);
            Err(Failure::interrupted(interrupt).note(note))
        }
        resized => Ok(resized?),
    }
}

fn abandoned(image: &Endpoint, interrupt: Interrupt) -> Failure {
    let note = format!(
        "{image} has its old size or the new one; 'blockferry check --repair leaks' gives back what space was lost in a qcow2 image"
    );
    Failure::interrupted(interrupt).note(note)
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
