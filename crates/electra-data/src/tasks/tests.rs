mod bad_input;
mod real_data;
mod support;
