mod bad_input;
mod conll;
mod layouts;
mod real_data;
pub(super) mod support;
mod tagging;
