//! The server's side: [`ServerHandshake`] until transmission begins, then [`ServerSession`] for
//! the requests and [`ReplyWriter`] for the answers.

mod config;
mod handshake;
mod options;
mod replies;
mod requests;
mod rules;

pub use config::{OpenPurpose, OptionRefusal, ServedExport, ServerConfig, TlsPolicy};
pub use handshake::{ServerHandshake, ServerStep};
pub use replies::{ReplyHeader, ReplyTo, ReplyWriter};
pub use requests::{
    ContextSelection, RefusedRequest, RequestEvent, RequestLimits, ServerRequest, ServerSession,
};
