//! Repositories on the Hugging Face Hub, fetched into its usual cache.
//!
//! `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean to
//! Hugging Face's own tools, and the cache is shared with them. A revision is resolved to its commit
//! first and every file taken from that commit, so that a push under way cannot mix two models.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use hf_hub::repository::{RepoTypeDataset, RepoTypeModel};
use hf_hub::{HFClient, HFClientSync, HFError, HFRepositorySync, HFResult};
use tracing::{info, warn};

use crate::error::{ModelError, Result};
use crate::weights::safetensors::shards;

/// A fetch that hears nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(60);

/// What is wanted of a repository.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    /// A model's configuration and tokenizer, and with `weights` those, too: gives their folder.
    Model { weights: bool },
    /// One file of a dataset, by its path in the repository: gives the file.
    DatasetFile { path: String },
}

/// Gives what is wanted of a repository, all of one commit. What is not in the cache is fetched.
pub(super) fn fetch(repo: &str, revision: Option<&str>, wanted: Wanted) -> Result<PathBuf> {
    let (heard, hears) = channel();
    let heard = Arc::new(heard);
    let fetch = Fetch {
        repo: repo.to_owned(),
        revision: revision.unwrap_or("main").to_owned(),
        wanted,
        offline: offline(),
        heard: Arc::clone(&heard),
    };
    let place = fetch.place();
    // The client has no deadlines of its own. On a thread of its own it can be left behind.
    let work = std::thread::Builder::new()
        .name("hub".to_owned())
        .spawn(move || {
            let result = fetch.run();
            let _ = heard.send(Heard::Done(Box::new(result)));
        });
    work.map_err(ModelError::io(Path::new("a thread for the Hub")))?;
    let mut said = Instant::now();
    loop {
        match hears.recv_timeout(SILENCE) {
            Ok(Heard::Done(result)) => return *result,
            Ok(Heard::Progress { file, done, total }) => {
                if said.elapsed() > Duration::from_secs(10) {
                    said = Instant::now();
                    info!(file, megabytes = done >> 20, of = total >> 20, "fetching");
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                let message = format!(
                    "nothing heard from the Hub for {} s; check the network and try again, what \
                     has been fetched is kept",
                    SILENCE.as_secs()
                );
                return Err(ModelError::Source { place, message });
            }
            Err(RecvTimeoutError::Disconnected) => {
                let message = "the fetch ended without a result".to_owned();
                return Err(ModelError::Source { place, message });
            }
        }
    }
}

/// Whether the user has told Hugging Face's tools to stay off the network.
fn offline() -> bool {
    std::env::var("HF_HUB_OFFLINE")
        .is_ok_and(|value| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str()))
}

enum Heard {
    Progress { file: String, done: u64, total: u64 },
    Done(Box<Result<PathBuf>>),
}

struct Ear(Arc<std::sync::mpsc::Sender<Heard>>);

impl ProgressHandler for Ear {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else {
            return;
        };
        let (file, done, total) = match event {
            DownloadEvent::Progress { files } => match files.last() {
                Some(file) => (
                    file.filename.clone(),
                    file.bytes_completed,
                    file.total_bytes,
                ),
                None => return,
            },
            DownloadEvent::AggregateProgress {
                bytes_completed,
                total_bytes,
                ..
            } => (String::new(), *bytes_completed, *total_bytes),
            _ => (String::new(), 0, 0),
        };
        let _ = self.0.send(Heard::Progress { file, done, total });
    }
}

struct Fetch {
    repo: String,
    revision: String,
    wanted: Wanted,
    offline: bool,
    heard: Arc<std::sync::mpsc::Sender<Heard>>,
}

/// The files beside the weights; the first two must be there.
const TEXT_FILES: [&str; 5] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

impl Fetch {
    fn place(&self) -> String {
        let file = match &self.wanted {
            Wanted::Model { .. } => String::new(),
            Wanted::DatasetFile { path } => format!(":{path}"),
        };
        format!("hf:{}@{}{file}", self.repo, self.revision)
    }

    fn failed(&self, message: String) -> ModelError {
        ModelError::Source {
            place: self.place(),
            message,
        }
    }

    fn run(&self) -> Result<PathBuf> {
        let client = HFClient::builder()
            .retry_max_attempts(2)
            .build()
            .map_err(|error| self.failed(format!("HF_ENDPOINT or HF_TOKEN: {error}")))?;
        let (owner, name) = hf_hub::split_id(&self.repo);
        let (endpoint, cache) = (
            client.endpoint().to_owned(),
            client.cache_dir().to_path_buf(),
        );
        let client =
            HFClientSync::from_inner(client).map_err(|error| self.failed(error.to_string()))?;
        let repo = match self.wanted {
            Wanted::Model { .. } => Repo::Model(client.model(owner, name)),
            Wanted::DatasetFile { .. } => Repo::Dataset(client.dataset(owner, name)),
        };
        let at = Hub {
            endpoint,
            cache,
            repo,
        };
        let commit = self.commit(&at)?;
        match &self.wanted {
            Wanted::Model { weights } => self.model(&at, &commit, *weights),
            Wanted::DatasetFile { path } => self
                .file(&at, &commit, path)?
                .ok_or_else(|| self.lacks(path)),
        }
    }

    fn model(&self, at: &Hub, commit: &str, weights: bool) -> Result<PathBuf> {
        let config = self
            .file(at, commit, TEXT_FILES[0])?
            .ok_or_else(|| self.lacks(TEXT_FILES[0]))?;
        let folder = config.parent().map(Path::to_path_buf).unwrap_or_default();
        for name in &TEXT_FILES[1..] {
            if self.file(at, commit, name)?.is_none() && *name == "tokenizer.json" {
                return Err(self.lacks(name));
            }
        }
        if weights && self.file(at, commit, SINGLE)?.is_none() {
            let index = self.file(at, commit, INDEX)?.ok_or_else(|| {
                self.failed(format!(
                    "it has neither {SINGLE} nor {INDEX}; only models saved as safetensors are read"
                ))
            })?;
            for shard in shards(&index)?.keys() {
                self.file(at, commit, shard)?
                    .ok_or_else(|| self.lacks(shard))?;
            }
        }
        Ok(folder)
    }

    /// The commit that the revision stands for, from the Hub, or from the cache when the Hub is out
    /// of reach.
    fn commit(&self, at: &Hub) -> Result<String> {
        if is_commit(&self.revision) {
            return Ok(self.revision.clone());
        }
        let folder = format!("{}s--{}", at.repo.kind(), self.repo.replace('/', "--"));
        let reference = at.cache.join(folder).join("refs").join(&self.revision);
        let cached = || {
            let text = std::fs::read_to_string(&reference).ok()?;
            Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
        };
        if self.offline {
            return cached().ok_or_else(|| {
                self.failed(format!(
                    "HF_HUB_OFFLINE is set and the cache ({}) has no such revision",
                    at.cache.display()
                ))
            });
        }
        let error = match at.repo.sha(&self.revision) {
            Ok(sha) => match sha.filter(|sha| is_commit(sha)) {
                Some(commit) => {
                    // As Hugging Face's tools do, so that the revision is found offline.
                    let kept = reference.parent().map_or(Ok(()), std::fs::create_dir_all);
                    if let Err(error) = kept.and_then(|()| std::fs::write(&reference, &commit)) {
                        warn!(path = %reference.display(), %error, "revision not kept in the cache");
                    }
                    return Ok(commit);
                }
                None => return Err(self.failed("the Hub names no commit for it".to_owned())),
            },
            Err(error) => error,
        };
        match cached().filter(|_| out_of_reach(&error)) {
            Some(commit) => {
                warn!(source = self.place(), %error, "the Hub is out of reach, using the cache");
                Ok(commit)
            }
            None => Err(self.explain(at, &error)),
        }
    }

    /// One file at one commit, or `None` where the commit has no such file.
    fn file(&self, at: &Hub, commit: &str, name: &str) -> Result<Option<PathBuf>> {
        let get = |local: bool| {
            at.repo
                .get(name, commit, local, Ear(Arc::clone(&self.heard)))
        };
        match get(true) {
            Ok(path) => return Ok(Some(path)),
            // The cache remembers what is not there.
            Err(HFError::EntryNotFound { .. }) => return Ok(None),
            Err(_) if self.offline => return Ok(None),
            Err(_) => {}
        }
        info!(file = name, source = self.place(), "fetching");
        match get(false) {
            Ok(path) => Ok(Some(path)),
            Err(HFError::EntryNotFound { .. }) => Ok(None),
            Err(error) => Err(self.explain(at, &error)),
        }
    }

    fn lacks(&self, name: &str) -> ModelError {
        self.failed(match self.offline {
            true => format!("HF_HUB_OFFLINE is set and {name} is not in the cache"),
            false => format!("the repository has no {name}"),
        })
    }

    /// What happened, and what to do about it.
    fn explain(&self, at: &Hub, error: &HFError) -> ModelError {
        let advice = match error {
            HFError::AuthRequired { .. } => {
                "the Hub wants to know who asks (401): there is no such repository, or it is private \
                 or gated. Check the name, or set HF_TOKEN to a token that may read it"
            }
            HFError::Forbidden { .. } => {
                "the token may not read it (403): accept the terms on the repository's page, or set \
                 HF_TOKEN to another token"
            }
            HFError::RepoNotFound { .. } | HFError::RevisionNotFound { .. } => {
                "there is no such repository or revision (404): check both names"
            }
            HFError::RateLimited { .. } => "too many requests (429): wait a while, or set HF_TOKEN",
            _ if out_of_reach(error) => {
                "the Hub is out of reach, and the cache does not have it: check the network, or \
                 HF_ENDPOINT"
            }
            _ => "the Hub's answer is not what was expected",
        };
        let (endpoint, cache) = (&at.endpoint, at.cache.display());
        self.failed(format!(
            "{advice}. Endpoint {endpoint}, cache {cache}: {error}"
        ))
    }
}

/// A repository, and what to say of where it was looked for.
struct Hub {
    endpoint: String,
    cache: PathBuf,
    repo: Repo,
}

/// Repositories of models and of datasets differ in type, not in what is asked of them here.
enum Repo {
    Model(HFRepositorySync<RepoTypeModel>),
    Dataset(HFRepositorySync<RepoTypeDataset>),
}

impl Repo {
    /// As in the cache's names of folders.
    fn kind(&self) -> &'static str {
        match self {
            Self::Model(_) => "model",
            Self::Dataset(_) => "dataset",
        }
    }

    /// The commit that a revision stands for, by the Hub.
    fn sha(&self, revision: &str) -> HFResult<Option<String>> {
        Ok(match self {
            Self::Model(repo) => repo.info().revision(revision).send()?.sha,
            Self::Dataset(repo) => repo.info().revision(revision).send()?.sha,
        })
    }

    /// A file's path in the cache; fetched first unless `local`.
    fn get(&self, name: &str, commit: &str, local: bool, ear: Ear) -> HFResult<PathBuf> {
        match self {
            Self::Model(repo) => repo
                .download_file()
                .filename(name)
                .revision(commit)
                .local_files_only(local)
                .progress(ear)
                .send(),
            Self::Dataset(repo) => repo
                .download_file()
                .filename(name)
                .revision(commit)
                .local_files_only(local)
                .progress(ear)
                .send(),
        }
    }
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn out_of_reach(error: &HFError) -> bool {
    match error {
        HFError::Request { .. } => true,
        HFError::Http { context } => context.status.is_server_error(),
        _ => false,
    }
}
