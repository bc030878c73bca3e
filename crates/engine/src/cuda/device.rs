//! The GPU: finding it, its memory, and starting kernels on it.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaFunction, CudaStream, result, sys};

use crate::cuda::Error;

/// The GPU that is used.
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
    /// Shared memory that one block may use, in bytes.
    pub shared_memory: usize,
    /// The newest CUDA that the driver supports, as 13000 for 13.0.
    pub driver: i32,
}

impl Device {
    /// Looks for driver and GPU.
    ///
    /// # Errors
    /// Names what is missing.
    pub fn find(number: usize) -> Result<Device, Error> {
        Ok(Gpu::open(number)?.device)
    }
}

/// Turns a failure of the driver into an error that says what was being done.
pub(super) fn doing<E: std::fmt::Debug>(doing: &'static str) -> impl Fn(E) -> Error {
    move |e| Error::Device { doing, reason: format!("{e:?}") }
}

/// An open GPU with the one stream everything runs in.
#[derive(Clone, Debug)]
pub(super) struct Gpu {
    pub device: Device,
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
}

impl Gpu {
    pub fn open(number: usize) -> Result<Gpu, Error> {
        // SAFETY: only loads the library to see whether it is there.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::NoDriver);
        }
        result::init().map_err(|e| Error::NoDevice { reason: format!("{e:?}") })?;
        let count = CudaContext::device_count().map_err(|e| Error::NoDevice { reason: format!("{e:?}") })?;
        let count = usize::try_from(count).unwrap_or(0);
        if count == 0 {
            return Err(Error::NoDevice { reason: "it counts none".into() });
        }
        if number >= count {
            return Err(Error::DeviceNumber { wanted: number, count });
        }
        let context = CudaContext::new(number).map_err(doing("opening the GPU"))?;
        let fact = |attribute| context.attribute(attribute).map_err(doing("asking the GPU what it is"));
        use sys::CUdevice_attribute_enum as A;
        let mut driver = 0;
        // SAFETY: writes one integer.
        unsafe { sys::cuDriverGetVersion(&mut driver) }.result().map_err(doing("asking for the version"))?;
        let device = Device {
            name: context.name().map_err(doing("asking for the GPU's name"))?,
            capability: context.compute_capability().map_err(doing("asking the GPU what it is"))?,
            multiprocessors: fact(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
            memory: context.total_mem().map_err(doing("asking for the GPU's memory"))?,
            shared_memory: fact(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
            driver,
        };
        let (major, minor) = device.capability;
        if major < 9 {
            return Err(Error::TooOld { name: device.name, major, minor });
        }
        let stream = context.new_stream().map_err(doing("making a stream"))?;
        Ok(Gpu { device, context, stream })
    }

    fn bind(&self) -> Result<(), Error> {
        self.context.bind_to_thread().map_err(doing("using the GPU"))
    }

    /// Memory whose bytes are all ones: NaN in every float format, so that a read of what nobody wrote shows.
    pub fn poisoned(&self, bytes: usize) -> Result<Buffer, Error> {
        self.filled(bytes, 0xff)
    }

    pub fn zeros(&self, bytes: usize) -> Result<Buffer, Error> {
        self.filled(bytes, 0)
    }

    fn filled(&self, bytes: usize, byte: u8) -> Result<Buffer, Error> {
        let buffer = self.reserve(bytes)?;
        // SAFETY: the buffer has so many bytes; the stream outlives the call and orders what follows.
        unsafe { result::memset_d8_async(buffer.at, byte, bytes.max(1), self.stream.cu_stream()) }
            .map_err(doing("filling memory"))?;
        Ok(buffer)
    }

    fn reserve(&self, bytes: usize) -> Result<Buffer, Error> {
        self.bind()?;
        // SAFETY: freed once, by Buffer's drop.
        let at = unsafe { result::malloc_sync(bytes.max(1)) }.map_err(doing("reserving memory"))?;
        Ok(Buffer { at, bytes, context: self.context.clone() })
    }

    pub fn upload<T: Copy>(&self, values: &[T]) -> Result<Buffer, Error> {
        let buffer = self.reserve(std::mem::size_of_val(values))?;
        self.write(&buffer, values)?;
        Ok(buffer)
    }

    /// Overwrites the start of a buffer.
    pub fn write<T: Copy>(&self, to: &Buffer, values: &[T]) -> Result<(), Error> {
        assert!(std::mem::size_of_val(values) <= to.bytes, "a buffer is written within its bounds");
        if values.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the bounds were checked; memory that is not pinned is staged before the call returns.
        unsafe { result::memcpy_htod_async(to.at, values, self.stream.cu_stream()) }
            .map_err(doing("copying to the GPU"))
    }

    /// Waits for all work, then reads `out.len()` values from an address within a live buffer.
    pub fn read<T: Copy>(&self, from: u64, out: &mut [T]) -> Result<(), Error> {
        self.wait()?;
        if out.is_empty() {
            return Ok(());
        }
        // SAFETY: callers pass addresses within their buffers; every bit pattern is a valid number.
        unsafe { result::memcpy_dtoh_sync(out, from) }.map_err(doing("copying from the GPU"))
    }

    pub fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), Error> {
        // SAFETY: callers pass addresses within their buffers.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }
            .map_err(doing("copying on the GPU"))
    }

    /// Sets `count` 32-bit words.
    pub fn fill(&self, at: u64, word: u32, count: usize) -> Result<(), Error> {
        // SAFETY: callers pass addresses within their buffers.
        unsafe { sys::cuMemsetD32Async(at, word, count, self.stream.cu_stream()) }
            .result()
            .map_err(doing("filling memory"))
    }

    pub fn wait(&self) -> Result<(), Error> {
        self.bind()?;
        self.stream.synchronize().map_err(doing("running the kernels"))
    }

    /// A mark in the stream whose time can be asked for.
    pub fn mark(&self) -> Result<CudaEvent, Error> {
        let event = self
            .context
            .new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT))
            .map_err(doing("making an event"))?;
        event.record(&self.stream).map_err(doing("recording an event"))?;
        Ok(event)
    }

    pub fn launch(&self, f: &CudaFunction, shape: Shape, args: &[&dyn Argument]) -> Result<(), Error> {
        self.bind()?;
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID_enum::CU_LAUNCH_ATTRIBUTE_IGNORE,
            pad: [0; 4],
            // SAFETY: a union of plain numbers.
            value: unsafe { std::mem::zeroed() },
        };
        match shape.kind {
            Kind::Plain => {}
            Kind::Cooperative => {
                attribute.id = sys::CUlaunchAttributeID_enum::CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
                attribute.value.cooperative = 1;
            }
        }
        let config = sys::CUlaunchConfig {
            gridDimX: shape.grid.0,
            gridDimY: shape.grid.1,
            gridDimZ: 1,
            blockDimX: shape.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shape.shared,
            hStream: self.stream.cu_stream(),
            attrs: &mut attribute,
            numAttrs: 1,
        };
        let mut addresses: Vec<*mut c_void> = args.iter().map(|a| a.address().cast_mut()).collect();
        // SAFETY: the arguments are of the types the kernel declares and live until the call has copied them.
        unsafe {
            sys::cuLaunchKernelEx(&config, f.cu_function(), addresses.as_mut_ptr(), std::ptr::null_mut())
        }
        .result()
        .map_err(doing("starting a kernel"))
    }
}

/// How a kernel is started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub grid: (u32, u32),
    pub block: u32,
    pub shared: u32,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    /// All blocks run at once: they may wait for each other.
    Cooperative,
}

impl Shape {
    pub fn new(grid: u32, block: u32) -> Shape {
        Shape { grid: (grid, 1), block, shared: 0, kind: Kind::Plain }
    }

    /// Enough blocks of 256 threads for `n` elements; kernels of this kind loop.
    pub fn elements(n: usize) -> Shape {
        Shape::new((n.div_ceil(256).clamp(1, 4096)) as u32, 256)
    }
}

/// A value that a kernel takes.
pub(super) trait Argument {
    fn address(&self) -> *const c_void;
}

macro_rules! arguments {
    ($($t:ty),*) => {
        $(impl $crate::cuda::device::Argument for $t {
            fn address(&self) -> *const std::ffi::c_void {
                std::ptr::from_ref(self).cast()
            }
        })*
    };
}
arguments!(u64, i32, i64);
pub(super) use arguments;

/// Memory of the GPU.
#[derive(Debug)]
pub(super) struct Buffer {
    pub at: u64,
    pub bytes: usize,
    context: Arc<CudaContext>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: reserved once, freed once; the driver waits for work that uses it. A failure at this
            // point can only mean that the context is gone, and the memory with it.
            let _ = unsafe { result::free_sync(self.at) };
        }
    }
}
