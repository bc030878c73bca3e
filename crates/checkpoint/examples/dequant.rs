//! Reads blocks of the format named by the first argument on standard input, writes their values as
//! little-endian binary32 to standard output. With a second argument, does so that many times and reports the
//! speed on standard error. The tests in `tests/python` compare it with the `gguf` package.

use std::io::{Read, Write};
use std::time::Instant;

use firstdiff_checkpoint::Storage;
use firstdiff_checkpoint::gguf::dequant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().ok_or("usage: dequant FORMAT [TIMES] < blocks > values")?;
    let times: u32 = arguments.next().map_or(Ok(1), |times| times.parse())?;
    let storage = Storage::from_name(&name).ok_or_else(|| format!("{name}: no such format"))?;
    let dequantise = dequant::for_storage(storage).ok_or_else(|| format!("{name}: no block format"))?;

    let mut blocks = Vec::new();
    std::io::stdin().read_to_end(&mut blocks)?;
    if !blocks.len().is_multiple_of(storage.block_bytes()) {
        return Err(format!("{} bytes are no whole number of {name} blocks", blocks.len()).into());
    }
    let mut values = vec![0f32; blocks.len() / storage.block_bytes() * storage.block_len()];
    let start = Instant::now();
    for _ in 0..times {
        dequantise(std::hint::black_box(&blocks), std::hint::black_box(&mut values));
    }
    if times > 1 {
        let bytes = f64::from(times) * 4.0 * values.len() as f64;
        eprintln!("{name}: {:.2} GB/s of f32", bytes / start.elapsed().as_secs_f64() / 1e9);
    }
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    std::io::stdout().write_all(&bytes)?;
    Ok(())
}
