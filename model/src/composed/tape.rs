//! Learning passes by candle's autograd.
//!
//! Layers are taped one by one: each is its own small graph from its input to its output, run
//! backward in turn. Where memory is short, the first layers' graphs are not kept but built again in
//! the backward pass (activation recomputation).

use std::sync::Arc;

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Layout, Shape, Tensor, Var,
    backend::{BackendDevice as _, BackendStorage as _},
};

use super::{ComposedModel, LayerLora, PairTensors, Pass, constants};
use crate::{
    adapter::{Adapter, LayerPairs},
    dropout::Dropout,
    error::Result,
    packed_rows::PackedRows,
    tape::{KeptLast, Scored},
};

/// A forward pass, and what its backward pass needs.
#[derive(Debug)]
pub(crate) struct ComposedTape {
    /// The final-normed rows, `[rows, hidden]`, without a graph.
    pub(crate) hidden: Tensor,
    pass: Pass,
    keys: Arc<Vec<u64>>,
    dropout: Option<Dropout>,
    layers: Vec<LayerTape>,
    last: Option<Var>,
    pub(crate) scored: Option<Scored>,
}

type Vars = [Option<(Var, Var)>; 7];

#[derive(Debug)]
struct LayerTape {
    input: Var,
    vars: Vars,
    /// Not there when it is to be computed again.
    output: Option<Tensor>,
}

impl ComposedTape {
    /// Whether there can be a backward pass.
    pub(crate) fn kept(&self) -> bool {
        self.last.is_some()
    }

    fn lora(&self, adapter: &Adapter, layer: usize, tensors: PairTensors) -> LayerLora {
        LayerLora {
            tensors,
            scale: adapter.config.scale(),
            dropout: self.dropout.map(|d| (d, self.keys.clone())),
            layer,
        }
    }
}

impl ComposedModel {
    /// Runs the layers over packed rows.
    pub(crate) fn forward(
        &self,
        rows: &PackedRows,
        pass: Pass,
        adapter: Option<&Adapter>,
        dropout: Option<Dropout>,
        keep: Option<KeptLast>,
    ) -> Result<ComposedTape> {
        let mut x = self.embed(&rows.tokens)?;
        let mut tape = ComposedTape {
            hidden: x.clone(),
            pass,
            keys: rows.shared_keys(),
            dropout: dropout.filter(|d| d.p > 0.0),
            layers: Vec::new(),
            last: None,
            scored: None,
        };
        for i in 0..self.layers.len() {
            let constant =
                |tape: &ComposedTape| adapter.map(|a| tape.lora(a, i, constants(&a.layers[i])));
            let Some(KeptLast { layers: whole, .. }) = keep else {
                x = self.layer(i, &x, &tape.pass, constant(&tape).as_ref())?.0;
                continue;
            };
            let input = Var::from_tensor(&x)?;
            let vars = adapter
                .map(|a| variables(&a.layers[i]))
                .transpose()?
                .unwrap_or_default();
            let output = if i + whole >= self.layers.len() {
                let lora = adapter.map(|a| tape.lora(a, i, as_tensors(&vars)));
                let y = self
                    .layer(i, input.as_tensor(), &tape.pass, lora.as_ref())?
                    .0;
                x = y.detach();
                Some(y)
            } else {
                x = self.layer(i, &x, &tape.pass, constant(&tape).as_ref())?.0;
                None
            };
            tape.layers.push(LayerTape {
                input,
                vars,
                output,
            });
        }
        tape.last = keep.map(|_| Var::from_tensor(&x)).transpose()?;
        tape.hidden = self.norm.forward(&x)?.detach();
        Ok(tape)
    }

    /// Gradients of a scalar with respect to the adapter's parameters, in the order of
    /// [`Adapter::parameters`], f32, given its gradient with respect to the hidden rows.
    pub(crate) fn backward(
        &self,
        mut tape: ComposedTape,
        d_hidden: &Tensor,
        adapter: &Adapter,
    ) -> Result<Vec<Tensor>> {
        let Some(last) = tape.last.take() else {
            return Ok(Vec::new());
        };
        let mut d = {
            let normed = self.norm.forward(last.as_tensor())?;
            let grads = pull(&normed, &d_hidden.to_dtype(normed.dtype())?)?;
            gradient(&grads, last.as_tensor())?
        };
        let mut by_layer = Vec::with_capacity(tape.layers.len());
        while let Some(LayerTape {
            input,
            vars,
            output,
        }) = tape.layers.pop()
        {
            let output = match output {
                Some(output) => output,
                None => {
                    let index = tape.layers.len();
                    let lora = tape.lora(adapter, index, as_tensors(&vars));
                    self.layer(index, input.as_tensor(), &tape.pass, Some(&lora))?
                        .0
                }
            };
            let grads = pull(&output, &d)?;
            drop(output);
            d = gradient(&grads, input.as_tensor())?;
            let mut found = Vec::new();
            for (a, b) in vars.iter().flatten() {
                found.push(gradient(&grads, a.as_tensor())?);
                found.push(gradient(&grads, b.as_tensor())?);
            }
            by_layer.push(found);
        }
        by_layer.reverse();
        Ok(by_layer.into_iter().flatten().collect())
    }
}

/// Gradients of Σ output · d.
fn pull(output: &Tensor, d: &Tensor) -> Result<candle_core::backprop::GradStore> {
    Ok(output.apply_op1(Pull { d: d.clone() })?.backward()?)
}

/// A scalar whose gradient with respect to its argument is `d`; its own value is of no use and is
/// not computed.
struct Pull {
    d: Tensor,
}

impl CustomOp1 for Pull {
    fn name(&self) -> &'static str {
        "pull"
    }

    fn cpu_fwd(&self, x: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((x.device().zeros_impl(&().into(), x.dtype())?, ().into()))
    }

    fn cuda_fwd(&self, x: &CudaStorage, _: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        Ok((x.device().zeros_impl(&().into(), x.dtype())?, ().into()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.d.clone()))
    }
}

fn gradient(grads: &candle_core::backprop::GradStore, of: &Tensor) -> Result<Tensor> {
    match grads.get(of) {
        Some(gradient) => Ok(gradient.detach()),
        None => Ok(of.zeros_like()?),
    }
}

fn variables(pairs: &LayerPairs) -> Result<Vars> {
    let mut vars = Vars::default();
    for (var, pair) in vars.iter_mut().zip(pairs) {
        if let Some(pair) = pair {
            *var = Some((Var::from_tensor(&pair.a)?, Var::from_tensor(&pair.b)?));
        }
    }
    Ok(vars)
}

fn as_tensors(vars: &Vars) -> PairTensors {
    std::array::from_fn(|i| {
        vars[i]
            .as_ref()
            .map(|(a, b)| (a.as_tensor().clone(), b.as_tensor().clone()))
    })
}
