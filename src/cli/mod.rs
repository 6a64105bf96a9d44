//! The command line: one file a command. Exit code 0 on success, 1 on failure, 2 on bad usage.

use std::process::ExitCode;

pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
