//! CPU tensors as slices, and which type goes beside which.

use candle_core::{CpuStorage, DType, Device, Error, Layout, Result, Shape, Storage, Tensor};

/// The f32 values of a contiguous CPU tensor.
fn f32_slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        (CpuStorage::F32(_), None) => Err(Error::Msg("a tensor that is not contiguous".into())),
        _ => Err(Error::Msg("a tensor of f32 was expected".into())),
    }
}

/// Runs `f` on the f32 values of CPU tensors, without copying contiguous ones.
pub(crate) fn with_slices<R>(tensors: &[&Tensor], f: impl FnOnce(&[&[f32]]) -> R) -> Result<R> {
    let tensors = tensors
        .iter()
        .map(|t| t.contiguous())
        .collect::<Result<Vec<_>>>()?;
    let guards: Vec<_> = tensors.iter().map(|t| t.storage_and_layout()).collect();
    let mut slices = Vec::with_capacity(guards.len());
    for (storage, layout) in &guards {
        match &**storage {
            Storage::Cpu(storage) => slices.push(f32_slice(storage, layout)?),
            _ => {
                return Err(Error::Msg("a tensor on the CPU was expected".into()));
            }
        }
    }
    Ok(f(&slices))
}

/// A CPU tensor from values.
pub(crate) fn cpu_tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}

/// The type that norms, rotations, softmax and LoRA are computed in beside weights of `dtype`.
pub(crate) fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 {
        DType::F64
    } else {
        DType::F32
    }
}
