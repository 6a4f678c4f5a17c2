//! The binary: an allocator and the command line.

use std::process::ExitCode;

/// Gives memory back after a burst, which the system's allocator does not.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    fanfold::cli::main()
}
