mod bad_input;
mod layouts;
mod real_data;
pub(super) mod support;
mod tagging;
