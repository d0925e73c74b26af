//! The client's side: [`ClientHandshake`] until transmission begins, [`ClientSession`] after.

mod coverage;
mod negotiation;
mod options;
mod outcome;
mod request;
mod session;
mod status;
mod table;

pub use negotiation::{ClientConfig, ClientHandshake, Goal, Step, Tls};
pub use outcome::{InfoReport, ListReport, Listed, Outcome};
pub use request::{Request, RequestHeader};
pub use session::{ClientSession, ReplyEvent, ServerError};
pub use table::Cookie;
