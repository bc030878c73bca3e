//! Reading taps piece by piece, in memory that does not grow with the trace.
//!
//! Pages of a mapped file count as the process's own memory once they are touched. Positioned reads
//! into a buffer leave them to the system's cache, and a file cut short is an error instead of a fault.

use std::fs::File;
use std::io;

use crate::{Error, Step, TapInfo};

/// An open step file, from which parts of taps are read.
#[derive(Debug)]
pub struct StepFile<'s> {
    step: &'s Step,
    file: File,
}

impl Step {
    /// Opens the step file for reading parts of its taps.
    ///
    /// # Errors
    /// When the file cannot be opened any more.
    pub fn file(&self) -> Result<StepFile<'_>, Error> {
        let file = File::open(self.path()).map_err(Error::io(self.path(), "open"))?;
        Ok(StepFile { step: self, file })
    }
}

impl StepFile<'_> {
    /// Fills `out` with the bytes of `tap`, a tap of this step, from byte `start` on.
    ///
    /// # Errors
    /// When the tap has fewer bytes, or the file does not any more.
    pub fn read(&self, tap: &TapInfo, start: usize, out: &mut [u8]) -> Result<(), Error> {
        let at = tap.range.start.checked_add(start);
        let inside = start.checked_add(out.len()).is_some_and(|end| end <= tap.range.len());
        let Some(at) = at.filter(|_| inside) else {
            let short = io::Error::new(io::ErrorKind::UnexpectedEof, "past the end of the tap");
            return Err(Error::io(self.step.path(), "read")(short));
        };
        read_exact_at(&self.file, out, at as u64).map_err(Error::io(self.step.path(), "read"))
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, at)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut out: &mut [u8], mut at: u64) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                out = &mut out[n..];
                at += n as u64;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use firstdiff_tensor::Tensor;

    use crate::{Manifest, Producer, Trace, Writer};

    #[test]
    fn a_part_of_a_tap_is_read_and_no_byte_beyond_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t");
        let mut writer = Writer::create(&path, Manifest::new(Producer::default())).unwrap();
        let mut step = writer.step(&[1, 2], &[0, 1]);
        step.tap("embed", &Tensor::new([2, 2], vec![1.0f32, 2.0, 3.0, 4.0]).unwrap(), false);
        step.tap("logits", &Tensor::new([2, 1], vec![5.0f32, 6.0]).unwrap(), false);
        step.finish().unwrap();
        writer.finish().unwrap();

        let trace = Trace::open(&path).unwrap();
        let step = &trace.steps[0];
        let file = step.file().unwrap();
        let mut bytes = [0; 8];
        file.read(&step.taps()["embed"], 4, &mut bytes).unwrap();
        assert_eq!(bytes[..4], 2.0f32.to_le_bytes());
        assert_eq!(bytes[4..], 3.0f32.to_le_bytes());
        assert!(file.read(&step.taps()["embed"], 12, &mut bytes).is_err());
        assert!(file.read(&step.taps()["embed"], usize::MAX, &mut bytes).is_err());
    }
}
