//! Model families. One file each: its defaults, and its forward pass from top to bottom.

mod decoder;
mod deepseek_v4;
mod gemma3_text;
mod llama;
mod minimind;
mod qwen2;
mod qwen3;
mod qwen3_moe;

use firstdiff_checkpoint::Checkpoint;

use crate::{Error, Program, Settings};

/// A model family.
#[derive(Debug)]
pub struct Family {
    /// What `model_type` says.
    pub name: &'static str,
    /// Members users would recognise.
    pub members: &'static str,
    /// Writes the forward pass down.
    pub(crate) build: fn(&Settings, &Checkpoint) -> Result<Program, Error>,
}

/// Every family.
pub const FAMILIES: &[Family] = &[
    gemma3_text::FAMILY,
    llama::FAMILY,
    minimind::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    qwen3_moe::FAMILY,
    deepseek_v4::FAMILY,
];
