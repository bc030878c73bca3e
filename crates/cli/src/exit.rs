//! Exit codes: a documented interface (docs/VERDICTS.md).

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The engine agrees with its model; or the command did what it was asked.
    Agrees = 0,
    /// The engine diverges; or something suspicious was found.
    Diverges = 1,
    /// The command could not be carried out: usage, a bad file.
    Error = 2,
    /// Too little was recorded to say.
    Unmeasured = 3,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        std::process::ExitCode::from(exit as u8)
    }
}
