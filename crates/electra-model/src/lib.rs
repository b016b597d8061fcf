//! ELECTRA networks, their parameters and their files.
