//! The client's side: [`ClientHandshake`] until transmission begins, [`ClientSession`] after.

mod config;
mod coverage;
mod event;
mod negotiation;
mod options;
mod outcome;
mod questions;
mod request;
mod session;
mod status;
mod table;

pub use config::{ClientConfig, Goal, Tls};
pub use event::{ReplyEvent, ServerError};
pub use negotiation::{ClientHandshake, Step};
pub use outcome::{InfoReport, ListReport, Listed, Outcome};
pub use request::{Request, RequestHeader};
pub use session::ClientSession;
pub use table::Cookie;
