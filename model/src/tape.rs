//! Learning passes: a forward over packed rows that keeps what the backward needs, the log-probs of
//! its targets, and the gradients of an adapter.

use candle_core::Tensor;

use crate::{
    adapter::Adapter,
    composed::ComposedTape,
    decoder::{Body, Decoder},
    distribution::{Distribution, TokenLogProb},
    dropout::Dropout,
    error::{ModelError, Result},
    host::{HostTape, LayerGradients},
    memory::PassShape,
    packed_rows::{PackedRows, Target},
    tensors::cpu_tensor,
};

/// What a forward pass keeps for the backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: there will be no backward pass.
    #[default]
    Nothing,
    /// Activations, of as many layers as have room; of the others their input, and the rest is
    /// computed again. The gradient's bits are the same.
    ///
    /// It is the last layers that keep theirs: the backward pass begins with them, so that their
    /// memory is done with before the first layer is computed again.
    Activations {
        /// Room for the activations of all layers.
        bytes: usize,
    },
}

impl Keep {
    /// Every layer's activations.
    pub const ALL: Self = Self::Activations { bytes: usize::MAX };
    /// Every layer's input alone.
    pub const INPUTS: Self = Self::Activations { bytes: 0 };
}

/// [`Keep::Activations`] as it comes out for a pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeptLast {
    /// Layers, from the last, that keep their activations.
    pub(crate) layers: usize,
    /// Bytes of one of them, its input apart.
    pub(crate) bytes: usize,
}

/// How a learning pass runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct ForwardOptions {
    /// What is kept.
    pub keep: Keep,
    /// LoRA dropout; `None` when sampling's log-probs are to be met exactly.
    pub dropout: Option<Dropout>,
}

/// A forward pass, and what its backward pass needs.
#[derive(Debug)]
pub struct Tape {
    rows: usize,
    body: TapeBody,
}

#[derive(Debug)]
enum TapeBody {
    Host(HostTape),
    Composed(ComposedTape),
}

/// Targets whose log-probs were computed, and under which distribution.
#[derive(Debug)]
pub(crate) struct Scored {
    pub(crate) targets: Vec<Target>,
    pub(crate) dist: Distribution,
}

/// Gradients of an adapter's parameters, f32, summed over passes.
///
/// Sums of floats depend on their order. [`Decoder::backward`] adds passes in the order that they
/// come; whoever wants another order gives each pass [`Gradients`] of its own and joins them by
/// [`Gradients::add`].
#[derive(Debug)]
pub struct Gradients(Sums);

#[derive(Debug)]
enum Sums {
    Host(Vec<LayerGradients>),
    Composed(Option<Vec<Tensor>>),
}

impl Gradients {
    /// Adds `other`, element by element, each sum rounded once: `a.add(b)` and `b.add(a)` are the
    /// same bits.
    ///
    /// # Errors
    /// When `other` is not of the same adapter and kind of decoder.
    pub fn add(&mut self, other: Self) -> Result<()> {
        match (&mut self.0, other.0) {
            (Sums::Host(own), Sums::Host(other)) => {
                if own.is_empty() {
                    *own = other;
                    return Ok(());
                }
                LayerGradients::add(own, &other)
            }
            (Sums::Composed(own), Sums::Composed(other)) => {
                *own = match (own.take(), other) {
                    (Some(own), Some(other)) => Some(added(&own, &other)?),
                    (own, other) => own.or(other),
                };
                Ok(())
            }
            _ => Err(another()),
        }
    }

    /// All values in one row, in the order in which this kind of decoder keeps them: the same for
    /// all decoders of one [`Decoder::numerics`]. Empty when no pass has added to them.
    ///
    /// # Errors
    /// When the device can't be read.
    pub fn to_values(&self) -> Result<Vec<f32>> {
        match &self.0 {
            Sums::Host(layers) => Ok(LayerGradients::to_values(layers)),
            Sums::Composed(tensors) => {
                let mut values = Vec::new();
                for tensor in tensors.iter().flatten() {
                    values.extend(tensor.flatten_all()?.to_vec1::<f32>()?);
                }
                Ok(values)
            }
        }
    }

    /// The sums, in the order of [`Adapter::parameters`]; `None` when no pass has added to them.
    ///
    /// # Errors
    /// When they are not `adapter`'s.
    pub fn into_tensors(self, adapter: &Adapter) -> Result<Option<Vec<Tensor>>> {
        let layers = match self.0 {
            Sums::Composed(tensors) => return Ok(tensors),
            Sums::Host(layers) if layers.is_empty() => return Ok(None),
            Sums::Host(layers) => layers,
        };
        let parameters = adapter.parameters();
        let mut shapes = parameters.iter().map(Tensor::dims);
        let mut next = || {
            let strange = || ModelError::Adapter("gradients of another adapter".into());
            shapes.next().ok_or_else(strange)
        };
        let mut tensors = Vec::new();
        for pair in layers.into_iter().flat_map(|layer| layer.pairs).flatten() {
            tensors.push(cpu_tensor(pair.a, next()?)?);
            let shape = next()?;
            let (outer, rank) = (shape[0], shape[1]);
            let transposed = cpu_tensor(pair.b, (rank, outer))?.t()?.contiguous()?;
            tensors.push(transposed);
        }
        Ok(Some(tensors))
    }
}

impl Decoder {
    /// Runs the layers over packed rows.
    ///
    /// # Errors
    /// When there are no rows, an id is unknown, or a sequence is longer than the model's context.
    pub fn forward(
        &self,
        rows: &PackedRows,
        adapter: Option<&Adapter>,
        options: &ForwardOptions,
    ) -> Result<Tape> {
        if rows.is_empty() {
            return Err(ModelError::OutOfRange("a pass of no rows".into()));
        }
        self.check_tokens(&rows.tokens, &rows.positions)?;
        let keep = match options.keep {
            Keep::Nothing => None,
            Keep::Activations { bytes } => {
                let lora = adapter.map(Adapter::config);
                let memory = self.pass_memory(&PassShape::of(rows, 0), lora);
                Some(KeptLast {
                    layers: memory.layers_kept(bytes),
                    bytes: memory.layer - memory.input,
                })
            }
        };
        let dropout = options.dropout;
        let body = match &self.body {
            Body::Host(model) => {
                let angles = self.angles(&rows.positions);
                TapeBody::Host(model.forward(rows, angles, adapter, dropout, keep)?)
            }
            Body::Composed(model) => {
                let pass = self.composed_pass(rows)?;
                TapeBody::Composed(model.forward(rows, pass, adapter, dropout, keep)?)
            }
        };
        Ok(Tape {
            rows: rows.len(),
            body,
        })
    }

    /// The log-prob of each target and the entropy at its row. Where the tape keeps anything, its
    /// backward pass is about the targets of the last call.
    ///
    /// # Errors
    /// When a target's row or token does not exist.
    pub fn log_probs(
        &self,
        tape: &mut Tape,
        targets: &[Target],
        dist: &Distribution,
    ) -> Result<Vec<TokenLogProb>> {
        if let Some(target) = targets.iter().find(|t| t.row as usize >= tape.rows) {
            return Err(ModelError::OutOfRange(format!(
                "row {} of a pass of {} rows",
                target.row, tape.rows
            )));
        }
        let tokens: Vec<u32> = targets.iter().map(|t| t.token).collect();
        self.check_tokens(&tokens, &[])?;
        match (&self.body, &mut tape.body) {
            (Body::Host(model), TapeBody::Host(tape)) => model.log_probs(tape, targets, dist),
            (Body::Composed(model), TapeBody::Composed(tape)) => {
                model.log_probs(tape, targets, dist)
            }
            _ => Err(another()),
        }
    }

    /// Room for the gradients of one step.
    pub fn gradients(&self) -> Gradients {
        Gradients(match &self.body {
            Body::Host(_) => Sums::Host(Vec::new()),
            Body::Composed(_) => Sums::Composed(None),
        })
    }

    /// What [`Gradients::to_values`] gave on a decoder of the same numerics.
    ///
    /// # Errors
    /// When there is not one value a parameter of `adapter`.
    pub fn gradients_of(&self, adapter: &Adapter, values: &[f32]) -> Result<Gradients> {
        let parameters = adapter.parameter_count();
        if values.len() as u64 != parameters {
            return Err(ModelError::OutOfRange(format!(
                "a gradient of {} values, for {parameters} parameters",
                values.len()
            )));
        }
        Ok(Gradients(match &self.body {
            Body::Host(_) => {
                let mut layers = LayerGradients::zeros(adapter);
                LayerGradients::fill(&mut layers, values);
                Sums::Host(layers)
            }
            Body::Composed(_) => {
                let mut rest = values;
                let mut tensors = Vec::new();
                for parameter in adapter.parameters() {
                    let (own, after) = rest.split_at(parameter.elem_count());
                    rest = after;
                    let (shape, device) = (parameter.shape(), self.device());
                    tensors.push(Tensor::from_slice(own, shape, device)?);
                }
                Sums::Composed(Some(tensors))
            }
        }))
    }

    /// Adds the gradient of Σ slopes\[i\] · log_prob(targets\[i\]) with respect to the adapter's
    /// parameters to `gradients`; the targets are those of the tape's last [`Decoder::log_probs`].
    /// Frozen weights get none.
    ///
    /// # Errors
    /// When the tape was made with [`Keep::Nothing`], its log-probs were never asked for, or there
    /// is not one slope a target.
    pub fn backward(
        &self,
        tape: Tape,
        slopes: &[f32],
        adapter: &Adapter,
        gradients: &mut Gradients,
    ) -> Result<()> {
        match (&self.body, tape.body, &mut gradients.0) {
            (Body::Host(model), TapeBody::Host(mut tape), Sums::Host(sums)) => {
                let scored = check_scored(tape.kept, tape.scored.take(), |s| &s.targets, slopes)?;
                let d = model.log_probs_backward(&tape.hidden, scored, slopes)?;
                if sums.is_empty() {
                    *sums = LayerGradients::zeros(adapter);
                }
                model.backward(tape, &d, adapter, sums)
            }
            (Body::Composed(model), TapeBody::Composed(mut tape), Sums::Composed(sums)) => {
                let scored = check_scored(tape.kept(), tape.scored.take(), |s| &s.targets, slopes)?;
                let d = model.log_probs_backward(&tape.hidden, &scored, slopes)?;
                let found = model.backward(tape, &d, adapter)?;
                *sums = Some(match sums.take() {
                    None => found,
                    Some(own) => added(&own, &found)?,
                });
                Ok(())
            }
            _ => Err(another()),
        }
    }

    /// Log-probs of tokens 1.. of one sequence, `tokens.len() - 1` of them.
    ///
    /// # Errors
    /// When the sequence is longer than the context or holds an unknown id.
    pub fn sequence_log_probs(
        &self,
        tokens: &[u32],
        adapter: Option<&Adapter>,
        dist: &Distribution,
    ) -> Result<Vec<f32>> {
        if tokens.len() < 2 {
            return Ok(Vec::new());
        }
        let mut rows = PackedRows::new();
        rows.push_sequence(0, &tokens[..tokens.len() - 1]);
        let mut tape = self.forward(&rows, adapter, &ForwardOptions::default())?;
        let targets: Vec<Target> = tokens[1..]
            .iter()
            .enumerate()
            .map(|(row, token)| Target {
                row: row as u32,
                token: *token,
            })
            .collect();
        let found = self.log_probs(&mut tape, &targets, dist)?;
        Ok(found.into_iter().map(|t| t.logprob).collect())
    }
}

fn check_scored<S>(
    kept: bool,
    scored: Option<S>,
    targets: fn(&S) -> &Vec<Target>,
    slopes: &[f32],
) -> Result<S> {
    if !kept {
        return Err(ModelError::OutOfRange(
            "a backward pass of a tape that kept nothing".into(),
        ));
    }
    let scored = scored.ok_or_else(|| {
        ModelError::OutOfRange(
            "a backward pass of a tape whose log-probs were not asked for".into(),
        )
    })?;
    let count = targets(&scored).len();
    if count != slopes.len() {
        return Err(ModelError::OutOfRange(format!(
            "{} slopes for {count} targets",
            slopes.len()
        )));
    }
    Ok(scored)
}

fn added(a: &[Tensor], b: &[Tensor]) -> Result<Vec<Tensor>> {
    if a.len() != b.len() {
        return Err(another());
    }
    let pairs = a.iter().zip(b);
    Ok(pairs
        .map(|(a, b)| a + b)
        .collect::<candle_core::Result<_>>()?)
}

fn another() -> ModelError {
    ModelError::OutOfRange("a tape or gradients of another decoder".into())
}

#[cfg(test)]
mod tests;
