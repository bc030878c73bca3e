use anyhow::{Result, anyhow};
use clap::Args as ClapArgs;
use firstdiff_diagnose::{HYPOTHESES, hypothesis};

use crate::exit::Exit;

/// Say what a cause means, how it shows, where it was seen and how to fix it.
#[derive(Debug, ClapArgs)]
pub struct Explain {
    /// The cause, as `check` names it; without it, all are listed
    id: Option<String>,
}

pub fn run(c: &Explain) -> Result<Exit> {
    match &c.id {
        None => print!("{}", firstdiff_report::explain_list(HYPOTHESES)),
        Some(id) => {
            let known = hypothesis(id).ok_or_else(|| {
                anyhow!("'{id}' is no cause that firstdiff knows; `firstdiff explain` lists them")
            })?;
            println!("{}", known.text());
        }
    }
    Ok(Exit::Agrees)
}
