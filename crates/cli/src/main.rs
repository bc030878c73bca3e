//! `firstdiff`: finds the first operation where an inference engine stops agreeing with its model.

mod args;
mod cmd;
mod exit;
mod export;
mod generate;
mod interrupt;
mod load;
mod out;
mod progress;
mod sampling;
mod verify;

use clap::Parser as _;

use crate::exit::Exit;

fn main() -> std::process::ExitCode {
    let exit = match args::Args::parse().command {
        args::Command::Demo(c) => cmd::demo::run(&c),
        args::Command::Check(c) => cmd::check::run(&c),
        args::Command::Diff(c) => cmd::diff::run(&c),
        args::Command::Tokens(c) => cmd::tokens::run(&c),
        args::Command::Run(c) => cmd::run::run(&c),
        args::Command::Trace(c) => cmd::trace::run(&c),
        args::Command::Inspect(c) => cmd::inspect::run(&c),
        args::Command::Explain(c) => cmd::explain::run(&c),
        args::Command::Completions(c) => cmd::completions::run(&c),
    };
    exit.unwrap_or_else(|error| {
        eprintln!("error: {}", out::printable(&format!("{error:#}")));
        Exit::Error
    })
    .into()
}
