//! The minivmm command.

use std::process::ExitCode;

fn main() -> ExitCode {
    minivmm::cli::main()
}
