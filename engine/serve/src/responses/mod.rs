//! The OpenAI Responses API: stateful answers, with every event of their making in order. Errors are the OpenAI API's.

mod convert;
mod reply;
mod routes;
mod store;
mod types;

pub(crate) use routes::{routes, versioned};
pub(crate) use store::Store;
