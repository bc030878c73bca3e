//! Finding a GPU and what it takes to use it.

use crate::cuda::Error;

/// The GPU that is used, and the software around it.
#[derive(Clone, Debug)]
pub struct Device {
    /// The GPU's name.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// Memory in bytes.
    pub memory: usize,
    /// The newest CUDA that the driver supports, as 13000 for 13.0.
    pub driver: i32,
    /// NVRTC's version.
    pub nvrtc: (i32, i32),
}

impl Device {
    /// Looks for driver, GPU and libraries.
    ///
    /// # Errors
    /// Names the first that is missing.
    pub fn find(_number: usize) -> Result<Device, Error> {
        Err(Error::NoDriver)
    }
}
