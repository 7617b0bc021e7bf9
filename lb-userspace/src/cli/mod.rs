//! The command line: nouns, then verbs. [`arguments`] says what may be typed, [`attach`] and [`ask`] do it, [`print`]
//! shows what came of it.

mod arguments;
mod ask;
mod attach;
mod check;
mod connections;
mod print;

use std::process::ExitCode;

use clap::Parser as _;

use crate::{
    Error,
    error::Kind,
    say::{self, Manner},
};
use arguments::{Arguments, Command, Output};

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    say::set(Manner { json: arguments.output == Output::Json, quiet: arguments.quiet });
    start_log(&arguments);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&Error::failed(format!("start: {error}")), Output::Table),
    };
    let output = arguments.output;
    match runtime.block_on(run(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, output),
    }
}

async fn run(arguments: Arguments) -> crate::Result<()> {
    match arguments.command.clone() {
        Command::Attach(attach) => attach::attach(&arguments, *attach).await,
        Command::Daemon { config, force } => attach::daemon(&arguments, config, force).await,
        Command::Check { file } => check::check(&arguments, &file),
        Command::Detach { interfaces } => attach::detach(&arguments, interfaces).await,
        Command::Demo { keep } => crate::demo::run(keep).await,
        Command::Doctor { interfaces } => {
            print::findings(&crate::doctor::examine(&interfaces, &arguments.socket).await?, arguments.output);
            Ok(())
        }
        command => ask::ask(&arguments, command).await,
    }
}

/// One line on standard error, then the hint.
fn fail(error: &Error, output: Output) -> ExitCode {
    match output {
        Output::Json => eprintln!("{}", serde_json::json!({ "error": error })),
        Output::Table => error.lines().iter().for_each(|line| eprintln!("{line}")),
    }
    ExitCode::from(error.kind.exit_code())
}

/// clap's words in the form of all other errors.
fn usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    if matches!(error.kind(), DisplayHelp | DisplayVersion) {
        // Nobody reads the help when standard output is closed.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == DisplayHelpOnMissingArgumentOrSubcommand {
        eprintln!("{error}");
        return ExitCode::from(Kind::Usage.exit_code());
    }
    let text = error.to_string();
    let what = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let what: Vec<_> = what.filter(|line| !line.starts_with("For more information")).collect();
    let what = what.join(" ");
    let what = what.trim().strip_prefix("error: ").unwrap_or(&what).trim().to_owned();
    // What was refused by a parser of ours says itself how to mend it.
    let ours = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<Error>());
    let hint =
        ours.and_then(|error| error.hint.clone()).unwrap_or_else(|| "lb --help, or lb COMMAND --help".to_owned());
    let output = if asks_for_json(std::env::args()) { Output::Json } else { Output::Table };
    fail(&Error::usage(what).hint(hint), output)
}

/// Whether a command line that could not be understood asks for JSON.
fn asks_for_json(arguments: impl Iterator<Item = String>) -> bool {
    let words: Vec<String> = arguments.collect();
    let whole = |word: &String| word == "-ojson" || word == "-o=json" || word == "--output=json";
    words.iter().any(whole)
        || words.windows(2).any(|pair| (pair[0] == "-o" || pair[0] == "--output") && pair[1] == "json")
}

fn start_log(arguments: &Arguments) {
    let level = match (arguments.quiet, arguments.verbose) {
        (true, _) => "error",
        (_, 0) => "warn",
        (_, 1) => "info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::new(format!(
        "{level},netlink_proto=error,netlink_packet_route=error,{}=trace",
        crate::dataplane::log::TARGET
    ));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    log.with_ansi(false).init();
}
