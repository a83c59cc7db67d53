//! The optimiser's moments as safetensors: `first.NAME` and `second.NAME` for every parameter.

use candle_core::{DType, Device, Tensor};

type Pair = (Vec<Tensor>, Vec<Tensor>);

/// The file's bytes: the same moments give the same bytes.
pub(crate) fn to_safetensors(
    names: &[String],
    first: &[Tensor],
    second: &[Tensor],
) -> Result<Vec<u8>, String> {
    let mut named = Vec::with_capacity(2 * names.len());
    for (prefix, tensors) in [("first", first), ("second", second)] {
        for (name, tensor) in names.iter().zip(tensors) {
            let tensor = tensor
                .to_device(&Device::Cpu)
                .map_err(|error| error.to_string())?;
            named.push((format!("{prefix}.{name}"), tensor));
        }
    }
    safetensors::serialize(named, None).map_err(|error| error.to_string())
}

/// First and second moments in the order of `names`, shaped as `parameters`.
pub(crate) fn from_safetensors(
    bytes: &[u8],
    names: &[String],
    parameters: &[Tensor],
    device: &Device,
) -> Result<Pair, String> {
    let mut found = candle_core::safetensors::load_buffer(bytes, device)
        .map_err(|error| format!("the moments can't be read: {error}"))?;
    let mut take = |prefix: &str| -> Result<Vec<Tensor>, String> {
        let mut tensors = Vec::with_capacity(names.len());
        for (name, parameter) in names.iter().zip(parameters) {
            let name = format!("{prefix}.{name}");
            let tensor = found
                .remove(&name)
                .ok_or_else(|| format!("{name} is missing"))?;
            if tensor.dims() != parameter.dims() || tensor.dtype() != DType::F32 {
                return Err(format!(
                    "{name} is {:?} {:?}, expected F32 {:?}",
                    tensor.dtype(),
                    tensor.dims(),
                    parameter.dims()
                ));
            }
            tensors.push(tensor);
        }
        Ok(tensors)
    };
    Ok((take("first")?, take("second")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_come_back_bit_by_bit_and_misfits_are_named() {
        let tensor =
            |values: &[f32]| Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap();
        let names = vec!["b".to_owned(), "a".to_owned()];
        let first = [tensor(&[1.0, f32::MIN_POSITIVE]), tensor(&[0.1])];
        let second = [tensor(&[3.0, -0.0]), tensor(&[0.7])];
        let bytes = to_safetensors(&names, &first, &second).unwrap();
        assert_eq!(bytes, to_safetensors(&names, &first, &second).unwrap());
        let (f, s) = from_safetensors(&bytes, &names, &first, &Device::Cpu).unwrap();
        let bits = |t: &Tensor| -> Vec<u32> {
            t.to_vec1::<f32>()
                .unwrap()
                .into_iter()
                .map(f32::to_bits)
                .collect()
        };
        for (read, written) in f.iter().chain(&s).zip(first.iter().chain(&second)) {
            assert_eq!(bits(read), bits(written));
        }
        let misfit = [tensor(&[1.0]), tensor(&[0.1])];
        let error = from_safetensors(&bytes, &names, &misfit, &Device::Cpu).unwrap_err();
        assert!(
            error.contains("first.b") && error.contains("[2]"),
            "{error}"
        );
        let other = vec!["b".to_owned(), "c".to_owned()];
        let error = from_safetensors(&bytes, &other, &first, &Device::Cpu).unwrap_err();
        assert!(error.contains("first.c is missing"), "{error}");
    }
}
