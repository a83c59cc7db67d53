//! An adapter on its way to the engine. It is read, checked, packed and probed beside the engine,
//! which samples on meanwhile; all that is left for the engine is to take it.

use std::{sync::Arc, time::Instant};

use tina_model::{Adapter, Decoder, Distribution, LoraConfig, ModelError};
use tina_proto::{
    v1::PolicyVersion,
    version::{Digest, sha256},
};

use crate::check::RunPlan;

/// Makes adapters ready for a run's engine; may be used on any thread, while the engine samples.
#[derive(Clone, Debug)]
pub struct AdapterLoader {
    decoder: Arc<Decoder>,
    lora: LoraConfig,
    probe: Vec<u32>,
}

/// An adapter that can be sampled with at once.
#[derive(Debug)]
pub struct ReadyAdapter {
    pub(crate) version: PolicyVersion,
    pub(crate) digest: Digest,
    pub(crate) adapter: Adapter,
    pub(crate) probe_logprobs: Vec<f32>,
    /// What it took to make it ready.
    pub(crate) seconds: f64,
}

impl AdapterLoader {
    /// For the model and the run of an engine.
    pub fn new(decoder: Arc<Decoder>, plan: &RunPlan) -> Self {
        Self {
            decoder,
            lora: plan.lora.clone(),
            probe: plan.probe.clone(),
        }
    }

    /// Makes an adapter ready of its safetensors file.
    ///
    /// # Errors
    /// Says what is wrong, where the bytes have another SHA-256 than the version names, are no
    /// adapter of this run, or give no finite log-probs of the probe.
    pub fn load(&self, version: PolicyVersion, bytes: &[u8]) -> Result<ReadyAdapter, String> {
        let digest = version
            .checked_digest()
            .map_err(|error| error.to_string())?;
        if sha256(bytes) != digest {
            return Err(format!(
                "adapter {}: the bytes have another SHA-256",
                version.short()
            ));
        }
        self.load_verified(version, bytes)
    }

    /// [`AdapterLoader::load`] of bytes that came by a
    /// [transport](tina_proto::adapters::AdapterTransport::fetch), which hashes them as they arrive.
    ///
    /// # Errors
    /// As there.
    pub fn load_verified(
        &self,
        version: PolicyVersion,
        bytes: &[u8],
    ) -> Result<ReadyAdapter, String> {
        let start = Instant::now();
        let digest = version
            .checked_digest()
            .map_err(|error| error.to_string())?;
        let decoder = &self.decoder;
        let explain = |error: ModelError| format!("adapter {}: {error}", version.short());
        let adapter =
            Adapter::from_safetensors(bytes, &self.lora, decoder.config(), decoder.device())
                .map_err(explain)?;
        let read = start.elapsed();
        let probe_logprobs = decoder
            .sequence_log_probs(&self.probe, Some(&adapter), &Distribution::FULL)
            .map_err(explain)?;
        if let Some(bad) = probe_logprobs.iter().find(|logprob| !logprob.is_finite()) {
            return Err(format!(
                "adapter {}: a log-prob of the probe is {bad}",
                version.short()
            ));
        }
        let seconds = start.elapsed();
        tracing::debug!(
            version = %version.short(),
            read_ms = read.as_secs_f64() * 1e3,
            probe_ms = (seconds - read).as_secs_f64() * 1e3,
            "adapter ready"
        );
        Ok(ReadyAdapter {
            version,
            digest,
            adapter,
            probe_logprobs,
            seconds: seconds.as_secs_f64(),
        })
    }
}

impl ReadyAdapter {
    /// Its name.
    pub fn version(&self) -> &PolicyVersion {
        &self.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{adapter, decoder, plan};

    #[test]
    fn bytes_that_are_not_the_version_or_no_adapter_are_refused() {
        let loader = AdapterLoader::new(decoder(), &plan());
        let (version, bytes) = adapter(0.1);
        for other in [b"nonsense".to_vec(), adapter(0.2).1] {
            let error = loader.load(version.clone(), &other).unwrap_err();
            assert!(error.contains("SHA-256"), "{error}");
            assert!(error.contains(&version.short().to_string()), "{error}");
        }
        let named = PolicyVersion::of_bytes(1, b"nonsense");
        let error = loader.load(named, b"nonsense").unwrap_err();
        assert!(error.contains("safetensors"), "{error}");
        let (named, infinite) = adapter(f64::INFINITY);
        let error = loader.load(named, &infinite).unwrap_err();
        assert!(error.contains("not finite"), "{error}");
        let ready = loader.load(version.clone(), &bytes).unwrap();
        assert_eq!((ready.version(), ready.probe_logprobs.len()), (&version, 3));
    }
}
