//! See [`openhosting::cli`].

fn main() {}
