//! A client's session against servers that answer rightly, wrongly and not at all.

mod asked;
mod misbehaviour;
mod replies;
mod requests;
