//! lb's development commands: `cargo xtask setup|run|test|example|lint|bench`. One file per command.

mod bench;
mod consul;
mod example;
mod lint;
mod node;
mod run;
mod setup;
mod shell;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "lb's development commands")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and testing need, where it is missing
    Setup,
    /// Build lb and run it: `cargo xtask run -- ARGS` is `sudo lb ARGS`
    Run {
        /// lb's arguments
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Run all tests: unit, packets, end to end, and the serial group
    Test,
    /// Show a scenario of docs/scenarios/ in a lab of its own
    Example {
        /// Its name; without one, say which there are
        name: Option<String>,
    },
    /// Check formatting and lints
    Lint,
    /// Measure: packets, end to end, or the control plane
    Bench {
        /// What is measured
        #[arg(value_enum, default_value = "packets")]
        benchmark: bench::Benchmark,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Setup => setup::setup(setup::Part::Test),
        Command::Run { arguments } => run::run(&arguments),
        Command::Test => test::test(),
        Command::Example { name } => example::example(name.as_deref()),
        Command::Lint => lint::lint(),
        Command::Bench { benchmark } => bench::bench(benchmark),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
