//! One layer backward, from the activations that its forward pass left.

use half::bf16;

use super::{Activations, Angles, HostLayer, HostModel, HostNorm, LayerLora, buffers::Back, sized};
use crate::{
    adapter::{Adapter, LayerPairs, LoraPair},
    error::{ModelError, Result},
    kernels::{
        attention::{self, Segment},
        elementwise,
        matmul::{Add, Frozen, Store, Then, Thin, matmul, product, thin_gradient},
        rows,
    },
    lora::LoraModule,
};

/// Gradients of one layer's pairs, summed over passes.
#[derive(Debug, Default)]
pub(crate) struct LayerGradients {
    /// In the order of [`LoraModule::ALL`].
    pub(crate) pairs: [Option<PairGradient>; 7],
}

/// Gradient of a pair.
#[derive(Debug)]
pub(crate) struct PairGradient {
    /// Of A, `[rank, inner]`.
    pub(crate) a: Vec<f32>,
    /// Of Bᵀ, `[rank, outer]`.
    pub(crate) b: Vec<f32>,
}

impl LayerGradients {
    /// Zeros for every pair of an adapter, a layer each.
    pub(crate) fn zeros(adapter: &Adapter) -> Vec<Self> {
        let zero = |pair: &LoraPair| PairGradient {
            a: vec![0.0; pair.a.elem_count()],
            b: vec![0.0; pair.b.elem_count()],
        };
        let layer = |pairs: &LayerPairs| Self {
            pairs: std::array::from_fn(|i| pairs[i].as_ref().map(zero)),
        };
        adapter.layers.iter().map(layer).collect()
    }

    /// Every matrix of `layers`, in order.
    fn matrices(layers: &[Self]) -> impl Iterator<Item = &[f32]> {
        let pairs = layers.iter().flat_map(|layer| layer.pairs.iter().flatten());
        pairs.flat_map(|pair| [&pair.a[..], &pair.b[..]])
    }

    fn matrices_mut(layers: &mut [Self]) -> impl Iterator<Item = &mut [f32]> {
        let layers = layers.iter_mut();
        let pairs = layers.flat_map(|layer| layer.pairs.iter_mut().flatten());
        pairs.flat_map(|pair| [&mut pair.a[..], &mut pair.b[..]])
    }

    /// Adds `other` to `own`, element by element.
    pub(crate) fn add(own: &mut [Self], other: &[Self]) -> Result<()> {
        let shapes = |layers: &[Self]| Self::matrices(layers).map(<[f32]>::len).collect::<Vec<_>>();
        if shapes(own) != shapes(other) {
            return Err(ModelError::Adapter("gradients of another adapter".into()));
        }
        for (own, other) in Self::matrices_mut(own).zip(Self::matrices(other)) {
            elementwise::add(own, other);
        }
        Ok(())
    }

    /// All values in one row.
    pub(crate) fn to_values(layers: &[Self]) -> Vec<f32> {
        let count = Self::matrices(layers).map(<[f32]>::len).sum();
        let mut values = Vec::with_capacity(count);
        Self::matrices(layers).for_each(|matrix| values.extend_from_slice(matrix));
        values
    }

    /// Sets all values; as many as there are.
    pub(crate) fn fill(layers: &mut [Self], values: &[f32]) {
        let mut rest = values;
        for matrix in Self::matrices_mut(layers) {
            let (own, after) = rest.split_at(matrix.len());
            matrix.copy_from_slice(own);
            rest = after;
        }
    }
}

/// What the layers of a backward pass share.
pub(super) struct Backward<'a> {
    pub(super) angles: &'a Angles,
    pub(super) segments: &'a [Segment],
    pub(super) half: &'a mut Vec<bf16>,
    pub(super) normed: &'a mut Vec<f32>,
    pub(super) inner: &'a mut Vec<f32>,
    pub(super) back: &'a mut Back,
}

impl HostNorm {
    /// d of the normed rows to d of x, into `d_x`.
    pub(super) fn run_backward(&self, x: &[f32], d: &[f32], d_x: &mut Vec<f32>) {
        sized(d_x, x.len());
        rows::rms_norm_backward(x, &self.weight, self.eps, d, d_x);
    }
}

impl HostModel {
    /// Layer `index`: `d`, the gradient of its result `[rows, hidden]`, becomes that of its input.
    pub(super) fn layer_backward(
        &self,
        index: usize,
        a: &Activations,
        d: &mut Vec<f32>,
        lora: &LayerLora<'_>,
        gradients: &mut LayerGradients,
        pass: &mut Backward<'_>,
    ) -> Result<()> {
        use LoraModule::{Down, Gate, K, O, Q, Up, V};
        let layer = &self.layers[index];
        let Backward {
            angles,
            segments,
            half,
            normed,
            inner,
            back,
        } = pass;
        let mut linear =
            |module, x: &[f32], d: &[f32], low: &mut Vec<f32>, add, d_x: &mut Vec<f32>| {
                let through = Through {
                    layer,
                    module,
                    lora,
                    x,
                    forward_low: &a.low[module as usize],
                };
                self.linear_backward(&through, d, half, low, gradients, add, d_x)
            };

        sized(inner, a.gate.len());
        rows::silu_mul(&a.gate, &a.up, inner, None);
        linear(Down, inner, d, &mut back.low, Add::Nothing, &mut back.inner)?;
        sized(&mut back.gate, a.gate.len());
        sized(&mut back.up, a.up.len());
        rows::silu_mul_backward(&a.gate, &a.up, &back.inner, &mut back.gate, &mut back.up);
        layer.post_norm.run(&a.middle, normed);
        linear(
            Gate,
            normed,
            &back.gate,
            &mut back.low,
            Add::Nothing,
            &mut back.normed,
        )?;
        linear(
            Up,
            normed,
            &back.up,
            &mut back.low,
            Add::Out,
            &mut back.normed,
        )?;
        layer
            .post_norm
            .run_backward(&a.middle, &back.normed, &mut back.middle);
        elementwise::add(&mut back.middle, d);

        linear(
            O,
            &a.mixed,
            &back.middle,
            &mut back.low,
            Add::Nothing,
            &mut back.mixed,
        )?;
        sized(&mut back.q, a.q.len());
        sized(&mut back.k, a.k.len());
        sized(&mut back.v, a.v.len());
        attention::backward(
            &a.q,
            &a.k,
            &a.v,
            &a.mixed,
            &back.mixed,
            &a.stats,
            segments,
            self.heads,
            &mut back.q,
            &mut back.k,
            &mut back.v,
        );
        layer.input_norm.run(&a.input, normed);
        let mut add = Add::Nothing;
        for (module, norm, raw, turned) in [
            (Q, &layer.q_norm, &a.raw_q, &mut back.q),
            (K, &layer.k_norm, &a.raw_k, &mut back.k),
        ] {
            self.turn(turned, angles, -1.0);
            let d_out = match norm {
                None => turned,
                Some(norm) => {
                    norm.run_backward(raw, turned, &mut back.turned);
                    &mut back.turned
                }
            };
            linear(module, normed, d_out, &mut back.low, add, &mut back.normed)?;
            add = Add::Out;
        }
        linear(
            V,
            normed,
            &back.v,
            &mut back.low,
            Add::Out,
            &mut back.normed,
        )?;
        layer.input_norm.run_backward(&a.input, &back.normed, d);
        elementwise::add(d, &back.middle);
        Ok(())
    }

    /// Gradients of a linear layer: of x into `d_x` (`[rows, inner]`, as `add` says), of A and B
    /// onto `gradients`.
    ///
    /// With u = s dY B and t = s dropout(x) Aᵀ: dB = dYᵀ t, dA = uᵀ dropout(x),
    /// dx = dY W + dropout(u A).
    fn linear_backward(
        &self,
        through: &Through<'_>,
        d: &[f32],
        half: &mut Vec<bf16>,
        low: &mut Vec<f32>,
        gradients: &mut LayerGradients,
        add: Add<'_>,
        d_x: &mut Vec<f32>,
    ) -> Result<()> {
        let Through {
            layer,
            module,
            lora,
            x,
            forward_low,
        } = *through;
        let index = module as usize;
        let linear = &layer.linears[index];
        sized(d_x, x.len());
        let w = trainable(linear.backward.as_ref())?;
        let operand = self.operand(d, half);
        let pair = lora.pair(module).zip(gradients.pairs[index].as_mut());
        let Some((pair, sums)) = pair else {
            let then = Then {
                add,
                ..Then::default()
            };
            product(operand.rows, w, d_x, then);
            return Ok(());
        };
        let (rank, packed) = (pair.rank(), pair.packed_backward()?);
        sized(low, x.len() / linear.forward.inner() * rank);
        matmul(d, &packed.b, low, Store::Scaled(lora.scale));
        thin_gradient(forward_low, rank, d, 1.0, &mut sums.b);
        match lora.mask(module) {
            None => {
                thin_gradient(low, rank, x, 1.0, &mut sums.a);
                let thin = Thin {
                    low,
                    stride: rank,
                    b: &packed.a,
                };
                product(
                    operand.rows,
                    w,
                    d_x,
                    Then {
                        bias: None,
                        lora: Some(thin),
                        add,
                    },
                );
            }
            Some(mask) => {
                let inner = linear.forward.inner();
                thin_gradient(low, rank, &mask.apply(x, inner), 1.0, &mut sums.a);
                let then = Then {
                    add,
                    ..Then::default()
                };
                product(operand.rows, w, d_x, then);
                let mut through = vec![0f32; d_x.len()];
                matmul(low, &packed.a, &mut through, Store::Set);
                elementwise::add(d_x, &mask.apply(&through, inner));
            }
        }
        Ok(())
    }
}

/// A linear layer on its way back.
struct Through<'a> {
    layer: &'a HostLayer,
    module: LoraModule,
    lora: &'a LayerLora<'a>,
    /// Its input, `[rows, inner]`.
    x: &'a [f32],
    /// t, as the forward pass left it.
    forward_low: &'a [f32],
}

pub(super) fn trainable(backward: Option<&Frozen>) -> Result<&Frozen> {
    backward.ok_or_else(|| {
        ModelError::OutOfRange("a gradient of a model that was loaded without `train`".into())
    })
}
