//! The extents cache in front of a source that knows at each moment what is true.

mod model;
mod rules;
mod sharing;
mod source;
