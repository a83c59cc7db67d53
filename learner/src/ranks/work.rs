//! What a rank beside rank 0 computes, and how that goes back.

use std::{collections::BTreeMap, sync::Arc};

use tina_model::{Adapter, Dropout};
use tina_proto::{
    adapters::Nccl,
    v1::{GradientByNccl, GradientChunk, RankMessage, rank_message::Message},
    version::sha256,
};
use tokio::{runtime::Handle, sync::mpsc};
use tracing::{info, warn};

use super::wire::{Order, done_message, range};
use crate::{
    engine::{EngineError, Loaded},
    pass::{Computer, Pass},
    share::compute,
    step::Progress,
    trainer::TrainError,
};

/// Values of a gradient in one message: 512 KiB.
const CHUNK_VALUES: usize = 128 << 10;

fn little_endian(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// Computes a job and sends what it comes to; blocking. Returns the adapter, to be held.
pub(super) fn work(
    model: &Loaded,
    order: Order,
    held: Option<Arc<Adapter>>,
    progress: &Progress,
    outgoing: &mpsc::Sender<RankMessage>,
    nccl: Option<Nccl>,
) -> Result<Arc<Adapter>, EngineError> {
    let started = std::time::Instant::now();
    let (train, decoder) = (&model.settings.train, &model.decoder);
    let adapter = match held {
        Some(adapter) if order.file.is_empty() => adapter,
        _ => {
            let (config, device) = (decoder.config(), decoder.device());
            let read = Adapter::from_safetensors(&order.file, &train.lora, config, device);
            Arc::new(read.map_err(EngineError::from)?)
        }
    };
    let send = |message: Message| {
        let message = RankMessage {
            message: Some(message),
        };
        // Whoever doesn't listen any more has no use for the rest.
        outgoing
            .blocking_send(message)
            .map_err(|_| TrainError::Cancelled)
    };
    let passes: &BTreeMap<usize, Pass<'static>> = &order.received;
    let computer = Computer {
        decoder,
        settings: train,
        adapter: &adapter,
        dropout: order.dropout_seed.map(|seed| Dropout {
            p: train.lora.dropout,
            seed,
        }),
        most_rows: passes.values().map(Pass::rows).max().unwrap_or(0),
        passes: order.passes,
    };
    let job = order.job;
    let mut bytes = 0;
    for node in &order.nodes {
        let done = |pass, outcome| send(Message::PassDone(done_message(job, pass, outcome)));
        let sum = compute(&computer, |index| passes.get(&index), *node, progress, done)?;
        let values = sum.to_values().map_err(EngineError::from)?;
        bytes += size_of_val(&values[..]) as u64;
        let node = Some(range(*node));
        match (&order.nccl, &nccl) {
            (Some(group), Some(nccl)) if nccl.is_on() => {
                let data = little_endian(&values);
                let digest = sha256(&data).to_vec();
                send(Message::ByNccl(GradientByNccl { job, node, digest }))?;
                if let Err(why) = Handle::current().block_on(nccl.send(group, data)) {
                    // Rank 0 waits for what was announced: it is better off without this rank, which
                    // comes back and sends by gRPC.
                    warn!(why, "a gradient didn't go by NCCL");
                    return Err(TrainError::Cancelled.into());
                }
            }
            _ => {
                for values in values.chunks(CHUNK_VALUES) {
                    let data = little_endian(values);
                    send(Message::Gradient(GradientChunk { job, node, data }))?;
                }
            }
        }
    }
    info!(
        step = order.adapter.step + 1,
        passes = passes.len(),
        gradient_bytes = bytes,
        seconds = started.elapsed().as_secs_f64(),
        "this rank's share of a gradient is done"
    );
    Ok(adapter)
}

/// The most bytes that the run's adapter can have: its weights in f32, and a header.
pub(super) fn adapter_limit(model: &Loaded) -> u64 {
    let config = model.decoder.config();
    let lora = &model.settings.train.lora;
    let widths = lora
        .target_modules
        .iter()
        .map(|module| module.widths(config));
    let layer: usize = widths.map(|(inner, outer)| inner + outer).sum();
    let weights = 4 * lora.rank * layer * config.layers;
    let headers = 1024 * lora.target_modules.len() * config.layers;
    (weights + headers) as u64 + (1 << 20)
}
