mod bad_input;
mod conll;
mod layouts;
mod questions;
mod real_data;
pub(super) mod support;
mod tagging;
