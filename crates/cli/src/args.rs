//! The command line. Each subcommand's own arguments stand in its file.

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::cmd;

/// Finds the first operation where an LLM inference engine stops agreeing with its model.
#[derive(Debug, Parser)]
#[command(
    name = "firstdiff",
    version,
    after_help = "Exit codes: 0 agrees, 1 diverges, 2 error, 3 unmeasured."
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check a broken engine's trace of a tiny bundled model: no download, no GPU
    Demo(cmd::demo::Demo),
    /// Hold an engine's trace against its model: the verdict
    Check(cmd::check::Check),
    /// Compare two traces of the same tokens, without a model
    Diff(cmd::diff::Diff),
    /// Compare the tokens two engines chose: a tie, or a divergence
    Tokens(cmd::tokens::Tokens),
    /// Generate text with the reference or on a GPU
    Run(cmd::run::Run),
    /// Record a trace of the reference, or of the engine on a GPU
    Trace(cmd::trace::Trace),
    /// Look a model over before anything runs: tensors, values, configuration
    Inspect(cmd::inspect::Inspect),
    /// Say what a cause means, how it shows and how to fix it
    Explain(cmd::explain::Explain),
    /// Print a completion script for a shell
    Completions(cmd::completions::Completions),
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Options of every command that executes a model.
#[derive(Clone, Debug, ClapArgs)]
pub struct Resources {
    /// Memory for weights, mapped or dequantised, e.g. 512M or 8G [default: a quarter of the machine's]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<usize>,
    /// Threads; results do not depend on it [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

/// Precision of the reference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// Double precision.
    F64,
}

/// `512M`, `8G`, `1.5GiB`, or bytes.
fn parse_size(text: &str) -> Result<usize, String> {
    let trimmed = text.trim().trim_end_matches("iB").trim_end_matches('B');
    let (number, unit) = match trimmed.find(|c: char| !c.is_ascii_digit() && c != '.') {
        Some(at) => trimmed.split_at(at),
        None => (trimmed, ""),
    };
    let factor = match unit.trim().to_ascii_uppercase().as_str() {
        "" => 1u64,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        _ => return Err(format!("'{text}' is no size; write 512M or 8G")),
    };
    match number.parse::<f64>() {
        Ok(n) if n >= 0.0 && n.is_finite() => Ok((n * factor as f64) as usize),
        _ => Err(format!("'{text}' is no size; write 512M or 8G")),
    }
}

/// Token ids separated by commas.
pub fn parse_tokens(text: &str) -> Result<Vec<i64>, String> {
    let parse = |t: &str| t.trim().parse::<i64>().map_err(|_| format!("'{t}' is no token id; write 1,2,3"));
    text.split(',').map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("1.5GiB"), Ok(3 << 29));
        assert_eq!(parse_size("1000"), Ok(1000));
        for wrong in ["", "M", "12X", "-1G", "1e9"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }
}
