//! The subcommands, one file each: arguments, help and what they do.

pub mod check;
pub mod completions;
pub mod demo;
pub mod diff;
pub mod explain;
pub mod inspect;
pub mod run;
pub mod tokens;
pub mod trace;
