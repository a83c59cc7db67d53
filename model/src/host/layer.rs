//! One layer forward.

use super::{
    Activations, Angles, HostLayer, HostModel, HostNorm, LayerLora, Operand, Workspace, sized,
};
use crate::{
    error::Result,
    kernels::{
        matmul::{Add, Then, Thin, product},
        rows,
    },
    lora::LoraModule,
};

/// Where a layer's queries find their keys.
pub(crate) trait Attend {
    /// q and mixed `[rows, queries * width]`, k and v of the same rows `[rows, keys * width]`.
    fn attend(&mut self, layer: usize, activations: &mut Activations) -> Result<()>;
}

impl HostNorm {
    /// x `[rows, width]` normed into `out`.
    pub(super) fn run(&self, x: &[f32], out: &mut Vec<f32>) {
        sized(out, x.len());
        rows::rms_norm(x, &self.weight, self.eps, out, None);
    }
}

impl HostModel {
    /// Layer `index` of `a.input` into `out`, `[rows, hidden]`; the rest of `a` is filled.
    pub(crate) fn layer(
        &self,
        index: usize,
        a: &mut Activations,
        out: &mut Vec<f32>,
        angles: &Angles,
        lora: Option<&LayerLora<'_>>,
        attend: &mut dyn Attend,
        w: &mut Workspace,
    ) -> Result<()> {
        use LoraModule::{Down, Gate, K, O, Q, Up, V};
        let layer = &self.layers[index];
        let x = self.normed(&layer.input_norm, &a.input, &mut w.normed, &mut w.half);
        let [low_q, low_k, low_v, ..] = &mut a.low;
        for (module, norm, raw, out, low) in [
            (Q, &layer.q_norm, &mut a.raw_q, &mut a.q, low_q),
            (K, &layer.k_norm, &mut a.raw_k, &mut a.k, low_k),
        ] {
            match norm {
                None => self.linear(layer, module, x, lora, low, Add::Nothing, out)?,
                Some(norm) => {
                    self.linear(layer, module, x, lora, low, Add::Nothing, raw)?;
                    norm.run(raw, out);
                }
            }
            self.turn(out, angles, 1.0);
        }
        self.linear(layer, V, x, lora, low_v, Add::Nothing, &mut a.v)?;
        sized(&mut a.mixed, a.q.len());
        attend.attend(index, a)?;
        let [_, _, _, low_o, low_gate, low_up, low_down] = &mut a.low;
        let x = self.operand(&a.mixed, &mut w.half);
        self.linear(layer, O, x, lora, low_o, Add::Rows(&a.input), &mut a.middle)?;
        let x = self.normed(&layer.post_norm, &a.middle, &mut w.normed, &mut w.half);
        self.linear(layer, Gate, x, lora, low_gate, Add::Nothing, &mut a.gate)?;
        self.linear(layer, Up, x, lora, low_up, Add::Nothing, &mut a.up)?;
        sized(&mut w.inner, a.gate.len());
        let half = self.rounded(a.gate.len(), &mut w.half);
        rows::silu_mul(&a.gate, &a.up, &mut w.inner, half);
        let x = self.as_operand(&w.inner, &w.half);
        self.linear(layer, Down, x, lora, low_down, Add::Rows(&a.middle), out)
    }

    /// out = x Wᵀ + b + low Bᵀ + add, `[rows, outer]`.
    fn linear(
        &self,
        layer: &HostLayer,
        module: LoraModule,
        x: Operand<'_>,
        lora: Option<&LayerLora<'_>>,
        low: &mut Vec<f32>,
        add: Add<'_>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let linear = &layer.linears[module as usize];
        let rows = x.wide.len() / linear.forward.inner();
        sized(out, rows * linear.forward.columns());
        let pair = lora.and_then(|lora| Some((lora, lora.pair(module)?)));
        let thin = match pair {
            None => None,
            Some((lora, pair)) => {
                lora.low(module, pair, x.wide, low)?;
                let (stride, b) = (pair.rank(), &pair.packed()?.b);
                Some(Thin { low, stride, b })
            }
        };
        let then = Then {
            bias: linear.bias.as_deref(),
            lora: thin,
            add,
        };
        product(x.rows, &linear.forward, out, then);
        Ok(())
    }
}
