//! The blocking side of a learner: model, trainer and checkpoints of one run.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use tina_model::{Decoder, LoadOptions, ModelError, parse_device};
use tina_proto::v1::{LearnerReady, PolicyVersion, RunSpec, StepResult};
use tracing::info;

use crate::{
    batch::{Batch, Limits},
    checkpoint::{CheckpointError, CheckpointStore},
    host,
    memory::default_limit,
    ranks::{HubCrew, Identity},
    settings::{Settings, SpecError},
    share::Crew,
    step::Progress,
    trainer::{TrainError, Trainer},
};

/// Why the learner can't go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The run's specification is no use.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The specification doesn't fit the model.
    #[error("the run's specification does not fit the model: {0}")]
    Misfit(String),
    /// The model or the device can't be had.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A step can't be made.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// A checkpoint can't be written or read.
    #[error("{0}; give the learner a folder of its own with --state-dir")]
    Checkpoint(#[from] CheckpointError),
    /// The run is further than anything the learner has.
    #[error(
        "the run stands at version {resume}, and {} holds no checkpoint that leads there; put the \
         run's checkpoints back (--state-dir says where they are), or start a new run",
        folder.display()
    )]
    NoCheckpoint {
        /// The newest version that the coordinator has recorded.
        resume: String,
        /// Where checkpoints were looked for.
        folder: PathBuf,
    },
}

/// All of a run that lives in this process; kept over reconnects.
#[derive(Debug)]
pub(crate) struct Engine {
    spec: RunSpec,
    settings: Settings,
    store: CheckpointStore,
    decoder: Arc<Decoder>,
    model_digest: String,
    device: String,
    trainer: Option<Trainer>,
    /// The newest version that is on disk.
    saved: Option<PolicyVersion>,
    /// The probe's log-probs under the version that the run goes on from.
    probe: Vec<f32>,
    /// Other ranks, where the run has them.
    crew: Option<HubCrew>,
}

/// The model of a run, as every rank of its learner needs it.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// With a limit of memory, whoever said it.
    pub(crate) settings: Settings,
    pub(crate) decoder: Arc<Decoder>,
    pub(crate) model_digest: String,
}

impl Loaded {
    /// Opens and loads the run's model. Takes seconds.
    pub(crate) fn open(spec: &RunSpec, device: &str) -> Result<Self, EngineError> {
        let mut settings = Settings::from_spec(spec)?;
        let device_handle = parse_device(device)?;
        info!(source = %settings.source, device, "loading the model");
        let started = Instant::now();
        let model = tina_model::open(&settings.source)?;
        let config = &model.text.config;
        if settings.max_sequence_tokens > config.max_positions {
            return Err(EngineError::Misfit(format!(
                "sequences of {} tokens, and the model reaches {}; lower sampling.max_tokens",
                settings.max_sequence_tokens, config.max_positions
            )));
        }
        let options = LoadOptions {
            dtype: settings.dtype,
            ..LoadOptions::new(device_handle, true)
        };
        let decoder = Arc::new(Decoder::load(config, &*model.weights, &options)?);
        info!(
            seconds = started.elapsed().as_secs_f64(),
            digest = model.digest,
            "model loaded"
        );
        if settings.train.memory.is_none() {
            settings.train.memory = default_limit(&decoder);
        }
        Ok(Self {
            settings,
            decoder,
            model_digest: model.digest,
        })
    }

    /// What a batch, or a pass of one, is checked against.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            vocab_size: self.decoder.config().vocab_size,
            max_sequence_tokens: self.settings.max_sequence_tokens,
        }
    }
}

impl Engine {
    /// Opens and loads the run's model. Takes seconds.
    pub(crate) fn load(
        spec: RunSpec,
        device: &str,
        state_dir: Option<&Path>,
    ) -> Result<Self, EngineError> {
        let Loaded {
            settings,
            decoder,
            model_digest,
        } = Loaded::open(&spec, device)?;
        let folder = match state_dir {
            Some(folder) => folder.to_path_buf(),
            None => Path::new(&settings.run_dir).join("checkpoints"),
        };
        Ok(Self {
            store: CheckpointStore::new(folder, &settings.run_id),
            spec,
            settings,
            decoder,
            model_digest,
            device: device.to_owned(),
            trainer: None,
            saved: None,
            probe: Vec::new(),
            crew: None,
        })
    }

    /// Shares its gradients out among these ranks from now on.
    pub(crate) fn share_with(&mut self, mut crew: HubCrew) {
        crew.identify(Identity {
            model_digest: self.model_digest.clone(),
            numerics: self.decoder.numerics(),
        });
        self.crew = Some(crew);
    }

    /// Whether this is the run that `spec` tells of.
    pub(crate) fn serves(&self, spec: &RunSpec) -> bool {
        self.spec == *spec
    }

    /// Brings the trainer to where the run goes on: what it holds, if that is `resume` or the one
    /// step made from it; else the newest checkpoint that agrees; for a new run the first adapter.
    pub(crate) fn resume(&mut self, resume: Option<&PolicyVersion>) -> Result<(), EngineError> {
        self.go_to(resume)?;
        self.probe = self.trainer()?.probe()?;
        let (peak, layers_kept) = self.trainer()?.memory(self.settings.max_sequence_tokens);
        info!(
            layers_kept,
            layers = self.decoder.config().layers,
            peak_mb = peak / 1_000_000,
            limit_mb = self.settings.train.memory.map(|bytes| bytes / 1_000_000),
            "memory of a step; activations of the other layers are computed again"
        );
        Ok(())
    }

    fn go_to(&mut self, resume: Option<&PolicyVersion>) -> Result<(), EngineError> {
        let held = self.trainer.as_ref();
        let (decoder, train) = (self.decoder.clone(), self.settings.train.clone());
        let Some(resume) = resume else {
            if held.is_none_or(|trainer| trainer.version().step > 0) {
                self.trainer = Some(Trainer::init(decoder, train)?);
                self.saved = None;
            }
            return Ok(());
        };
        if held.is_some_and(|t| t.version() == resume || t.parent() == Some(resume)) {
            return Ok(());
        }
        if let Some(checkpoint) = self.store.newest(resume)? {
            if checkpoint.model_digest != self.model_digest {
                return Err(EngineError::Misfit(format!(
                    "the checkpoint of step {} was made with model {}, this is {}",
                    checkpoint.version.step, checkpoint.model_digest, self.model_digest
                )));
            }
            info!(version = %checkpoint.version.short(), "restored from a checkpoint");
            self.saved = Some(checkpoint.version.clone());
            self.trainer = Some(Trainer::restore(decoder, train, checkpoint)?);
            return Ok(());
        }
        // Before the first checkpoint is due, the seed gives the state just as well.
        let fresh = Trainer::init(decoder, train)?;
        let due = self.settings.checkpoint_every;
        if resume.step >= due || (resume.step == 0 && fresh.version() != resume) {
            return Err(EngineError::NoCheckpoint {
                resume: resume.short().to_string(),
                folder: self.store.folder().to_path_buf(),
            });
        }
        self.trainer = Some(fresh);
        self.saved = None;
        Ok(())
    }

    /// The trainer, once [`Engine::resume`] has been called.
    pub(crate) fn trainer(&self) -> Result<&Trainer, EngineError> {
        self.trainer.as_ref().ok_or_else(|| {
            EngineError::Misfit("the learner was asked to train before it was ready".to_owned())
        })
    }

    /// What a batch is checked against.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            vocab_size: self.decoder.config().vocab_size,
            max_sequence_tokens: self.settings.max_sequence_tokens,
        }
    }

    /// What the coordinator is told once the adapter is published.
    pub(crate) fn ready(&self) -> Result<LearnerReady, EngineError> {
        let trainer = self.trainer()?;
        Ok(LearnerReady {
            model_digest: self.model_digest.clone(),
            version: Some(trainer.version().clone()),
            adapter_bytes: trainer.adapter_bytes().len() as u64,
            trainable_parameters: trainer.adapter().parameter_count(),
            model_parameters: self.decoder.config().parameter_count(),
            probe_logprobs: self.probe.clone(),
            last_result: trainer.result().cloned(),
            device: Some(host::device_info(&self.device, self.decoder.numerics())),
            nccl_id: Vec::new(),
        })
    }

    /// One step; its checkpoint, where one is due, is on disk when this returns.
    pub(crate) fn step(&mut self, batch: &Batch, progress: &Progress) -> Result<(), EngineError> {
        self.trainer()?;
        let Some(trainer) = &mut self.trainer else {
            return Ok(());
        };
        let crew = self.crew.as_mut().map(|crew| crew as &mut dyn Crew);
        trainer.step_with(batch, progress, crew)?;
        if trainer
            .version()
            .step
            .is_multiple_of(self.settings.checkpoint_every)
        {
            let started = Instant::now();
            self.save()?;
            self.note_seconds(started.elapsed().as_secs_f64(), 0.0);
        }
        Ok(())
    }

    /// Sets the times that only the step's end tells.
    pub(crate) fn note_seconds(&mut self, checkpoint: f64, publish: f64) {
        if let Some(trainer) = &mut self.trainer {
            trainer.note_seconds(checkpoint, publish);
        }
    }

    /// The result of the last step.
    pub(crate) fn result(&self) -> Option<StepResult> {
        self.trainer.as_ref()?.result().cloned()
    }

    /// Writes a checkpoint of what is not on disk yet; version 0 needs none.
    pub(crate) fn save(&mut self) -> Result<(), EngineError> {
        let Some(trainer) = &self.trainer else {
            return Ok(());
        };
        let version = trainer.version();
        if version.step > 0 && self.saved.as_ref() != Some(version) {
            let checkpoint = trainer.checkpoint(&self.settings.run_id, &self.model_digest)?;
            self.store.save(&checkpoint)?;
            self.saved = Some(checkpoint.version);
        }
        Ok(())
    }
}
