//! Which stored tensors make one weight.

use std::collections::{BTreeMap, BTreeSet};

use super::declared::{Declared, Layout};
use super::{Global, Scales, Stored};
use crate::{FolderFault, Storage, TensorInfo};

/// A folder's tensors, each quantised weight as one.
#[derive(Debug, Default)]
pub(crate) struct Joined {
    pub(crate) tensors: Vec<TensorInfo>,
    /// What the index promises in files that are not here, with those files.
    pub(crate) absent: BTreeMap<String, String>,
}

/// Tensors that change what a quantised weight means, by the end of their name. They are not supported.
const REFUSED: &[&str] = &[".pre_quant_scale", ".weight_zero_point"];

/// Joins quantised weights of `stored` with their scales. `missing` gives tensors whose file is not here, with the
/// file's name.
pub(crate) fn join(
    stored: BTreeMap<String, TensorInfo>,
    declared: &Declared,
    missing: &BTreeMap<String, String>,
) -> Result<Joined, FolderFault> {
    if let Some(name) = stored.keys().find(|name| REFUSED.iter().any(|end| name.ends_with(end))) {
        return Err(FolderFault::QuantisedWith { tensor: name.clone() });
    }
    let folder = Folder { stored: &stored, declared, missing };
    let (mut joined, mut used, mut whole) = (Joined::default(), BTreeSet::new(), BTreeMap::new());
    // Packed bytes first: their scales may be floats of 8 bits, which a weight may be too.
    let bytes = |tensor: &TensorInfo| matches!(tensor.storage, Storage::I8 | Storage::U8);
    let (packed, others): (Vec<_>, Vec<_>) = stored.iter().partition(|(_, tensor)| bytes(tensor));
    for (name, tensor) in packed.into_iter().chain(others) {
        if used.contains(name) {
            continue;
        }
        match folder.weight(name, tensor)? {
            Found::Plain => {}
            Found::Elsewhere(shard) => {
                used.insert(name.clone());
                joined.absent.insert(logical(name), shard);
            }
            Found::Quantised(weight) => {
                used.insert(weight.scales.name.clone());
                used.extend(weight.scales.global.as_ref().map(|global| global.name.clone()));
                whole.insert(name.clone(), weight);
            }
        }
    }
    for (name, tensor) in stored {
        if let Some(weight) = whole.remove(&name) {
            joined.tensors.push(weight.of(&name, tensor));
        } else if !used.contains(&name) {
            joined.tensors.push(tensor);
        }
    }
    joined.absent.extend(missing.iter().map(|(name, shard)| (logical(name), shard.clone())));
    Ok(joined)
}

/// The name of the weight that a stored tensor is the packed part of.
fn logical(name: &str) -> String {
    match (name.strip_suffix(".weight_packed"), name.strip_suffix("_blocks")) {
        (Some(module), _) => format!("{module}.weight"),
        (None, Some(weight)) => weight.to_owned(),
        (None, None) => name.to_owned(),
    }
}

/// A quantised weight.
struct Weight {
    storage: Storage,
    shape: Vec<usize>,
    scales: Scales,
}

impl Weight {
    fn of(self, name: &str, packed: TensorInfo) -> TensorInfo {
        let mut place = packed.place;
        place.scales = Some(self.scales.into());
        TensorInfo {
            name: logical(name),
            source_name: packed.source_name,
            shape: self.shape,
            storage: self.storage,
            place,
        }
    }
}

enum Found {
    Plain,
    Quantised(Weight),
    /// Part of it is in a file that is not here.
    Elsewhere(String),
}

struct Folder<'a> {
    stored: &'a BTreeMap<String, TensorInfo>,
    declared: &'a Declared,
    missing: &'a BTreeMap<String, String>,
}

/// The scales of a weight, or where they are.
enum Companion<'a> {
    Here(&'a str, &'a TensorInfo),
    Elsewhere(String),
}

impl<'a> Folder<'a> {
    fn companion(&self, name: &str) -> Option<Companion<'a>> {
        match self.stored.get_key_value(name) {
            Some((name, tensor)) => Some(Companion::Here(name, tensor)),
            None => self.missing.get(name).map(|shard| Companion::Elsewhere(shard.clone())),
        }
    }

    fn weight(&self, name: &str, tensor: &TensorInfo) -> Result<Found, FolderFault> {
        let names = match tensor.storage {
            Storage::F8E4M3 | Storage::F8E5M2 | Storage::I8 | Storage::U8 => scale_names(name),
            _ => return Ok(Found::Plain),
        };
        let (scale_name, scale) = match names.iter().find_map(|name| self.companion(name)) {
            Some(Companion::Here(name, scale)) => (name, scale),
            Some(Companion::Elsewhere(shard)) => return Ok(Found::Elsewhere(shard)),
            // Without scales a float of 8 bits is its value, unless the file says that there are some.
            None if logical(name) != name || self.declared.quantised && tensor.storage == Storage::F8E4M3 => {
                return Err(FolderFault::NoScales {
                    tensor: name.to_owned(),
                    storage: tensor.storage.name(),
                    names: names.join(" or "),
                });
            }
            None => return Ok(Found::Plain),
        };
        let four_bits = matches!(tensor.storage, Storage::I8 | Storage::U8);
        let format = match scale.storage {
            Storage::F8E8M0 | Storage::U8 if four_bits => Storage::ScaledMxfp4,
            Storage::F8E4M3 if four_bits => Storage::ScaledNvfp4,
            Storage::F32 | Storage::BF16 | Storage::F16 | Storage::F8E8M0 | Storage::U8
                if tensor.storage == Storage::F8E4M3 =>
            {
                Storage::ScaledFp8
            }
            _ => {
                return Err(FolderFault::ScaleType {
                    tensor: name.to_owned(),
                    storage: tensor.storage.name(),
                    scale: scale_name.to_owned(),
                    found: scale.storage.name(),
                });
            }
        };
        let ragged = || FolderFault::PackedShape {
            tensor: name.to_owned(),
            shape: tensor.shape.clone(),
            format: format.name(),
        };
        let shape = logical_shape(name, tensor, format).ok_or_else(ragged)?;
        let wrong = |expected: String| FolderFault::ScaleShape {
            tensor: name.to_owned(),
            shape: shape.clone(),
            scale: scale_name.to_owned(),
            found: scale.shape.clone(),
            expected,
        };
        let layouts = match format {
            Storage::ScaledMxfp4 => vec![Layout::Blocks(1, 32)],
            Storage::ScaledNvfp4 => vec![Layout::Blocks(1, 16)],
            _ if self.declared.layouts.is_empty() => vec![Layout::Whole, Layout::Rows],
            _ => self.declared.layouts.clone(),
        };
        let fitting = layouts.iter().find_map(|layout| grid(*layout, &shape, &scale.shape));
        let (block, grid) = fitting.ok_or_else(|| wrong(expected(&layouts, &shape)))?;
        let global = match format {
            Storage::ScaledNvfp4 => match self.global(name, &shape)? {
                Ok(global) => Some(global),
                Err(shard) => return Ok(Found::Elsewhere(shard)),
            },
            _ => None,
        };
        let scales = Scales {
            name: scale_name.to_owned(),
            shape: scale.shape.clone(),
            at: stored_at(scale),
            block,
            rows: shape.iter().rev().nth(1).copied().unwrap_or(1),
            grid,
            global,
        };
        Ok(Found::Quantised(Weight { storage: format, shape, scales }))
    }

    /// The factor on top of NVFP4's scales, or the file that it is in. The two packages that write one tell which by
    /// its name: modelopt's multiplies, compressed-tensors' divides.
    fn global(&self, name: &str, shape: &[usize]) -> Result<Result<Global, String>, FolderFault> {
        let (wanted, divides) = match name.strip_suffix(".weight_packed") {
            Some(module) => (format!("{module}.weight_global_scale"), true),
            None => (format!("{name}_scale_2"), false),
        };
        let (found, tensor) = match self.companion(&wanted) {
            Some(Companion::Here(name, tensor)) => (name, tensor),
            Some(Companion::Elsewhere(shard)) => return Ok(Err(shard)),
            None => {
                return Err(FolderFault::NoScales {
                    tensor: name.to_owned(),
                    storage: Storage::ScaledNvfp4.name(),
                    names: wanted,
                });
            }
        };
        if !matches!(tensor.storage, Storage::F32 | Storage::BF16 | Storage::F16) {
            return Err(FolderFault::ScaleType {
                tensor: name.to_owned(),
                storage: Storage::ScaledNvfp4.name(),
                scale: wanted,
                found: tensor.storage.name(),
            });
        }
        let matrices: usize = shape.iter().rev().skip(2).product();
        let each = matrices > 1 && tensor.len() == matrices;
        if tensor.len() != 1 && !each {
            let expected = if matrices > 1 { format!("[1] or [{matrices}]") } else { "[1]".into() };
            return Err(FolderFault::ScaleShape {
                tensor: name.to_owned(),
                shape: shape.to_vec(),
                scale: wanted,
                found: tensor.shape.clone(),
                expected,
            });
        }
        Ok(Ok(Global { name: found.to_owned(), at: stored_at(tensor), each, divides }))
    }
}

fn stored_at(tensor: &TensorInfo) -> Stored {
    Stored { part: tensor.place.part, bytes: tensor.place.bytes.clone(), storage: tensor.storage }
}

/// The names that the scales of a stored weight may have.
fn scale_names(name: &str) -> Vec<String> {
    if let Some(module) = name.strip_suffix(".weight_packed") {
        return vec![format!("{module}.weight_scale")];
    }
    if let Some(weight) = name.strip_suffix("_blocks") {
        return vec![format!("{weight}_scales")];
    }
    let mut names = vec![format!("{name}_scale_inv"), format!("{name}_scale")];
    names.extend(name.strip_suffix(".weight").map(|module| format!("{module}.scale")));
    names
}

/// The weight's shape, of its packed part's. None where that holds no whole blocks.
fn logical_shape(name: &str, packed: &TensorInfo, format: Storage) -> Option<Vec<usize>> {
    let mut shape = packed.shape.clone();
    if name.ends_with("_blocks") {
        // Blocks have an axis of their own.
        shape.pop().filter(|&bytes| bytes == format.block_bytes())?;
        *shape.last_mut()? *= format.block_bytes();
    }
    if format != Storage::ScaledFp8 {
        let bytes = shape.last_mut()?;
        if !bytes.is_multiple_of(format.block_bytes()) {
            return None;
        }
        *bytes = bytes.checked_mul(2)?;
    }
    (shape.len() >= 2).then_some(shape)
}

/// The elements that share a scale, and how many scales there are down and along, if `found` is the shape of the scales
/// of a weight of this shape.
fn grid(layout: Layout, shape: &[usize], found: &[usize]) -> Option<((usize, usize), (usize, usize))> {
    let [lead @ .., rows, columns] = shape else { return None };
    let with = |end: &[usize]| [lead, end].concat();
    match layout {
        Layout::Whole => {
            let plain = lead.is_empty() && found.iter().product::<usize>() == 1;
            let each = !lead.is_empty() && (found == lead || found == with(&[1]) || found == with(&[1, 1]));
            (plain || each).then_some(((*rows, *columns), (1, 1)))
        }
        Layout::Rows => {
            let fits = found == with(&[*rows]) || found == with(&[*rows, 1]);
            fits.then_some(((1, *columns), (*rows, 1)))
        }
        Layout::Blocks(down, along) => {
            let grid = (rows.div_ceil(down), columns.div_ceil(along));
            (found == with(&[grid.0, grid.1])).then_some(((down, along), grid))
        }
    }
}

/// The shapes that scales may have, for a message.
fn expected(layouts: &[Layout], shape: &[usize]) -> String {
    let (lead, rows, columns) = match shape {
        [lead @ .., rows, columns] => (lead, *rows, *columns),
        _ => (&[][..], 1, 1),
    };
    let one = |layout: &Layout| match *layout {
        Layout::Whole => format!("{:?} (one scale)", [lead, &[1]].concat()),
        Layout::Rows => format!("{:?} (one a row)", [lead, &[rows, 1]].concat()),
        Layout::Blocks(down, along) => {
            let grid = [lead, &[rows.div_ceil(down), columns.div_ceil(along)]].concat();
            format!("{grid:?} (blocks of {down} x {along})")
        }
    };
    layouts.iter().map(one).collect::<Vec<_>>().join(" or ")
}
