//! `cargo dev`: what developing firstdiff takes. Not published.

mod bench;
mod bench_causes;
mod bench_large;
mod bench_verdicts;
mod cases;
mod demo;
mod docs;
mod engines;
mod lock;
mod models;
mod python;
mod stories;
mod test;
mod wheel;
mod workspace;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo dev")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every test: Rust, the Python recorders, and everything end to end on real models
    Test(test::Test),
    /// Lock the Python packages of tests and benchmarks again
    Lock(lock::Lock),
    /// Measure speed and memory side by side with transformers
    Bench(bench::Bench),
    /// Write the cases again: a small trace for each hypothesis, from the torch engine
    Cases(cases::Cases),
    /// Run real engines on tiny models and check their traces with nothing declared
    Engines(engines::Engines),
    /// Build the wheel of program and recorders, and try it in an empty environment
    Wheel(wheel::Wheel),
    /// Write docs/STORIES.md again: engines with the bugs of real stories, and what is said of them
    Stories,
    /// Write the generated pages of docs/ again
    Docs,
    /// Make the demo's bundled files again, from a real transformers run
    Demo,
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Test(c) => test::run(&c),
        Command::Lock(c) => c.run(),
        Command::Bench(c) => bench::run(&c),
        Command::Cases(c) => cases::run(&c),
        Command::Engines(c) => engines::run(&c),
        Command::Wheel(c) => c.run(),
        Command::Stories => stories::run(),
        Command::Docs => docs::run(),
        Command::Demo => demo::run(),
    }
}
