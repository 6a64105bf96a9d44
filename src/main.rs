//! The binary: hands the command line to [`groupcast::cli`] and returns its exit code.

fn main() -> std::process::ExitCode {
    groupcast::cli::main()
}
