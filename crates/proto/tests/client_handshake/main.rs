//! A client's handshake against scripted servers, friendly and hostile.

mod friendly;
mod hostile;
mod script;
