//! Without further arguments, lists configuration, stop ids and tensors of the model that the first argument
//! names. With a tensor's name, writes its values as little-endian binary32 to standard output.

use std::io::Write;
use std::path::Path;

use firstdiff_checkpoint::Checkpoint;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().ok_or("usage: tensors MODEL [TENSOR]")?;
    let checkpoint = Checkpoint::open(Path::new(&model))?;
    let mut out = std::io::stdout().lock();
    if let Some(name) = arguments.next() {
        let tensor = checkpoint.tensor(&name).ok_or_else(|| format!("{name}: no such tensor"))?;
        let values = checkpoint.read(tensor)?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        out.write_all(&bytes)?;
        return Ok(());
    }
    writeln!(out, "fingerprint {}", checkpoint.fingerprint())?;
    for (key, value, origin) in checkpoint.config().iter() {
        writeln!(out, "config {key} = {value}    ({origin})")?;
    }
    let generation = checkpoint.generation();
    writeln!(out, "bos {:?}, added: {}", generation.bos, generation.add_bos)?;
    for (id, origins) in &generation.stop_ids {
        writeln!(out, "stop {id}: {}", origins.join(", "))?;
    }
    for tensor in checkpoint.tensors() {
        writeln!(
            out,
            "{} {:?} {} ({})",
            tensor.name,
            tensor.shape,
            tensor.storage.name(),
            tensor.source_name
        )?;
    }
    Ok(())
}
