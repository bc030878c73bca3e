//! A checkpoint and the program it is run with.

use firstdiff_checkpoint::{Checkpoint, TensorInfo};

use crate::{Error, FAMILIES, Family, Op, OpKind, Program, Setting, Settings, Simulation};

/// A model, ready to execute: every weight the program needs is in the checkpoint, in the right shape.
#[derive(Debug)]
pub struct Model {
    /// The file.
    pub checkpoint: Checkpoint,
    /// The family it belongs to.
    pub family: &'static Family,
    /// Its forward pass.
    pub program: Program,
    /// The configuration values used, and where each came from.
    pub settings: Vec<Setting>,
}

/// Families whose name looks like a supported one, and what sets them apart.
const REFUSED: &[(&str, &str)] = &[(
    "deepseek_v41",
    "a different architecture from deepseek_v4: shared compressed streams, lagged hyper-connections, engram tables",
)];

/// How the program uses a tensor of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Usage {
    /// Read by these operations.
    Used(Vec<String>),
    /// Read while the program was built (`rope_freqs`).
    Folded,
    /// A copy or buffer that transformers also ignores.
    Ignored(&'static str),
    /// Read by nothing: a part of the model may be missing from the program.
    Unused,
}

/// A checkpoint tensor and its use.
#[derive(Debug)]
pub struct TensorUse<'m> {
    /// The tensor.
    pub tensor: &'m TensorInfo,
    /// What reads it.
    pub usage: Usage,
}

/// Scales for activations and caches, by the end of their name.
const ACTIVATION_SCALES: [&str; 8] = [
    ".input_scale",
    ".input_scale_inv",
    ".input_global_scale",
    ".output_scale",
    ".activation_scale",
    ".k_scale",
    ".v_scale",
    ".q_scale",
];

impl Model {
    /// Builds the program of `checkpoint` and checks that every weight is there.
    ///
    /// # Errors
    /// When the family is unknown, the configuration is invalid, or a tensor is missing or has
    /// another shape.
    pub fn new(checkpoint: Checkpoint) -> Result<Model, Error> {
        Model::simulating(checkpoint, None)
    }

    /// The same, with what a simulation does besides.
    ///
    /// # Errors
    /// As [`Model::new`], and where the family does not know the simulation.
    pub fn simulating(checkpoint: Checkpoint, simulation: Option<Simulation>) -> Result<Model, Error> {
        Model::build(checkpoint, simulation, false)
    }

    /// Builds the program of what is here of a model: weights may be missing until [`Model::need`] asks for them.
    ///
    /// # Errors
    /// When the family is unknown or does not know the simulation, the configuration is invalid, or a tensor that is
    /// here has another shape.
    pub fn of_part(checkpoint: Checkpoint, simulation: Option<Simulation>) -> Result<Model, Error> {
        Model::build(checkpoint, simulation, true)
    }

    fn build(checkpoint: Checkpoint, simulation: Option<Simulation>, in_part: bool) -> Result<Model, Error> {
        let model_type = checkpoint.config().model_type()?.to_string();
        if let Some((_, why)) = REFUSED.iter().find(|(name, _)| model_type.starts_with(name)) {
            let file = checkpoint.config().file().to_path_buf();
            return Err(Error::RefusedFamily { file, model_type, why });
        }
        let family = FAMILIES.iter().find(|f| f.name == model_type).ok_or_else(|| Error::UnknownFamily {
            file: checkpoint.config().file().to_path_buf(),
            model_type: model_type.clone(),
            supported: FAMILIES.iter().map(|f| f.name).collect::<Vec<_>>().join(", "),
        })?;
        let settings = Settings::new(checkpoint.config()).simulating(simulation);
        let program = (family.build)(&settings, &checkpoint)?;
        if simulation.is_some() && !program.ops.iter().any(|op| matches!(op.kind, OpKind::FakeQuant(_))) {
            return Err(settings.wrong("model_type", "has no such simulation; deepseek_v4 has 'deepseek'"));
        }
        let settings = settings.into_seen();
        for (name, weight) in program.weights() {
            let file = || checkpoint.path().to_path_buf();
            match checkpoint.tensor(name) {
                None if in_part => {}
                None => {
                    return Err(Error::MissingTensor {
                        file: file(),
                        name: name.into(),
                        shape: weight.shape,
                    });
                }
                Some(t) if t.shape != weight.shape => {
                    let (found, expected) = (t.shape.clone(), weight.shape);
                    return Err(Error::WrongShape { file: file(), name: name.into(), found, expected });
                }
                Some(_) => {}
            }
        }
        Ok(Model { checkpoint, family, program, settings })
    }

    /// Checks that the weights of an operation are here.
    ///
    /// # Errors
    /// When one is not; the error names the file it is in, where that is known.
    pub fn need(&self, op: &Op) -> Result<(), Error> {
        let missing = op.kind.weights().into_iter().find(|(name, _)| self.checkpoint.tensor(name).is_none());
        let Some((name, shape)) = missing else { return Ok(()) };
        let (file, tap) = (self.checkpoint.path().to_path_buf(), op.tap.clone());
        Err(match self.checkpoint.absent(name) {
            Some(shard) => Error::MissingShard { file, name: name.into(), shard: shard.into(), tap },
            None => Error::MissingTensor { file, name: name.into(), shape },
        })
    }

    /// Every tensor of the checkpoint and what reads it, by name.
    pub fn tensor_uses(&self) -> Vec<TensorUse<'_>> {
        let weights = self.program.weights();
        let usage = |name: &str| match weights.get(name) {
            Some(weight) => Usage::Used(weight.used_by.clone()),
            None if name == "rope_freqs.weight" => Usage::Folded,
            None if name.ends_with("rotary_emb.inv_freq") => {
                Usage::Ignored("recomputed from the configuration")
            }
            None if ACTIVATION_SCALES.iter().any(|end| name.ends_with(end)) => {
                Usage::Ignored("how engines quantise activations; the weights alone are dequantised")
            }
            None if name.starts_with("mtp.") || name.starts_with("model.mtp.") => {
                Usage::Ignored("of the block that predicts further tokens, which is not executed")
            }
            None => Usage::Unused,
        };
        self.checkpoint.tensors().map(|tensor| TensorUse { tensor, usage: usage(&tensor.name) }).collect()
    }
}
