//! Checkpoints: all that a learner needs to go on exactly where it was.
//!
//! One folder a checkpoint, `STEP-RUN` (RUN: start of the run id's digest), with
//! `adapter.safetensors` (PEFT's names), `optimizer.safetensors` (the moments), `state.json`,
//! `step_result.pb` (the StepResult of the step that made it, when there is one) and
//! `SHA256SUMS`, which `sha256sum -c` reads as well. A checkpoint is written to a folder of
//! another name, synced and renamed, so that it is whole or not there; the newest two are kept.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use prost::Message as _;
use serde::{Deserialize, Serialize};
use tina_proto::{
    v1::{PolicyVersion, StepResult},
    version::{hex, sha256},
};
use tracing::warn;

const FORMAT: u32 = 1;
const KEPT: usize = 2;
const TEMPORARY: &str = ".writing-";
const ADAPTER: &str = "adapter.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const RESULT: &str = "step_result.pb";
const SUMS: &str = "SHA256SUMS";

/// Why a checkpoint can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The system refuses a file or folder.
    #[error("checkpoint {}: {source}{}", path.display(), remedy(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What is on disk is not what was written.
    #[error("checkpoint {}: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// What a person can do about it.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space, then go on with --resume"
        }
        _ => "",
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError + '_ {
    move |source| CheckpointError::Io {
        path: path.to_path_buf(),
        source,
    }
}

/// A learner's state between two steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The run that it belongs to.
    pub run_id: String,
    /// Digest of the base model.
    pub model_digest: String,
    /// The adapter's version.
    pub version: PolicyVersion,
    /// The version that the last step started from; none for version 0.
    pub parent: Option<PolicyVersion>,
    /// Optimiser updates so far.
    pub updates: u64,
    /// The adapter as safetensors.
    pub adapter: Vec<u8>,
    /// The optimiser's moments as safetensors.
    pub optimizer: Vec<u8>,
    /// The result of the step that made `version`.
    pub result: Option<StepResult>,
}

#[derive(Serialize, Deserialize)]
struct State {
    format: u32,
    run_id: String,
    model_digest: String,
    step: u64,
    adapter_digest: String,
    parent_step: Option<u64>,
    parent_digest: Option<String>,
    updates: u64,
    has_result: bool,
}

/// The checkpoints of one run in one folder.
#[derive(Clone, Debug)]
pub struct CheckpointStore {
    folder: PathBuf,
    run_id: String,
    suffix: String,
}

impl CheckpointStore {
    /// The checkpoints of run `run_id` in `folder`, which is made when the first one is written.
    /// Checkpoints of other runs in the same folder are neither read nor removed.
    pub fn new(folder: impl Into<PathBuf>, run_id: &str) -> Self {
        let suffix = hex(&sha256(run_id.as_bytes())[..4]);
        Self {
            folder: folder.into(),
            run_id: run_id.to_owned(),
            suffix,
        }
    }

    /// Where the checkpoints are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes `checkpoint`, then removes all of this run but the newest two up to it.
    pub fn save(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        fs::create_dir_all(&self.folder).map_err(io_error(&self.folder))?;
        self.sweep()?;
        let name = format!("{:06}-{}", checkpoint.version.step, self.suffix);
        let temporary = self.folder.join(format!("{TEMPORARY}{name}"));
        fs::create_dir(&temporary).map_err(io_error(&temporary))?;
        if let Err(error) = self.write_files(&temporary, checkpoint) {
            // Half a checkpoint is of no use to anybody, and on a full disk its room is.
            let _ = fs::remove_dir_all(&temporary);
            return Err(error);
        }

        let target = self.folder.join(&name);
        if target.exists() {
            // The same step again: a folder can't be renamed over another one.
            let old = self.folder.join(format!("{TEMPORARY}{name}.old"));
            fs::rename(&target, &old).map_err(io_error(&target))?;
        }
        fs::rename(&temporary, &target).map_err(io_error(&temporary))?;
        sync(&self.folder)?;
        self.sweep()?;
        self.prune(checkpoint.version.step)
    }

    /// The newest sound checkpoint from which a run can go on whose newest recorded version is
    /// `resume`: of that version, of the one step made from it, or of an earlier step.
    ///
    /// A damaged one is passed over with a warning.
    pub fn newest(&self, resume: &PolicyVersion) -> Result<Option<Checkpoint>, CheckpointError> {
        for (step, path) in self.list()?.into_iter().rev() {
            if step > resume.step.saturating_add(1) {
                continue;
            }
            let checkpoint = match self.read(&path, step) {
                Ok(checkpoint) => checkpoint,
                Err(error) => {
                    warn!("{error}; passing over to the checkpoint before");
                    continue;
                }
            };
            let agrees = if step > resume.step {
                checkpoint.parent.as_ref() == Some(resume)
            } else {
                step < resume.step || checkpoint.version == *resume
            };
            if agrees {
                return Ok(Some(checkpoint));
            }
            warn!(
                "checkpoint {} holds version {}, which does not lead from or to the run's {}; \
                 passing over it",
                path.display(),
                checkpoint.version.short(),
                resume.short()
            );
        }
        Ok(None)
    }

    /// This run's checkpoints by step.
    fn list(&self) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error(&self.folder)(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io_error(&self.folder))?;
            let name = entry.file_name();
            let step = name.to_str().and_then(|name| {
                let (step, suffix) = name.split_once('-')?;
                (suffix == self.suffix).then(|| step.parse::<u64>().ok())?
            });
            found.extend(step.map(|step| (step, entry.path())));
        }
        found.sort();
        Ok(found)
    }

    /// Removes what an interrupted write of this run left behind.
    fn sweep(&self) -> Result<(), CheckpointError> {
        for entry in fs::read_dir(&self.folder).map_err(io_error(&self.folder))? {
            let path = entry.map_err(io_error(&self.folder))?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let ours = name.trim_end_matches(".old").ends_with(&self.suffix);
            if name.starts_with(TEMPORARY) && ours {
                fs::remove_dir_all(&path).map_err(io_error(&path))?;
            }
        }
        Ok(())
    }

    /// Keeps the newest checkpoints up to `step`. Later ones come from a future that this run has
    /// gone back from.
    fn prune(&self, step: u64) -> Result<(), CheckpointError> {
        let all = self.list()?;
        let kept = all
            .iter()
            .filter(|(s, _)| *s <= step)
            .rev()
            .take(KEPT)
            .map(|(s, _)| *s);
        let kept: Vec<u64> = kept.collect();
        for (_, path) in all.iter().filter(|(s, _)| !kept.contains(s)) {
            fs::remove_dir_all(path).map_err(io_error(path))?;
        }
        Ok(())
    }

    fn write_files(&self, folder: &Path, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        let state = State {
            format: FORMAT,
            run_id: checkpoint.run_id.clone(),
            model_digest: checkpoint.model_digest.clone(),
            step: checkpoint.version.step,
            adapter_digest: checkpoint.version.digest_hex(),
            parent_step: checkpoint.parent.as_ref().map(|parent| parent.step),
            parent_digest: checkpoint.parent.as_ref().map(PolicyVersion::digest_hex),
            updates: checkpoint.updates,
            has_result: checkpoint.result.is_some(),
        };
        let mut state =
            serde_json::to_vec_pretty(&state).map_err(|error| CheckpointError::Damaged {
                path: folder.join(STATE),
                problem: error.to_string(),
            })?;
        state.push(b'\n');
        let result = checkpoint.result.as_ref().map(StepResult::encode_to_vec);
        let mut files: Vec<(&str, &[u8])> = vec![
            (ADAPTER, &checkpoint.adapter),
            (OPTIMIZER, &checkpoint.optimizer),
            (STATE, &state),
        ];
        files.extend(result.as_deref().map(|result| (RESULT, result)));
        let mut sums = String::new();
        for (name, bytes) in files {
            sums.push_str(&format!("{}  {name}\n", hex(&sha256(bytes))));
            write_synced(&folder.join(name), bytes)?;
        }
        write_synced(&folder.join(SUMS), sums.as_bytes())?;
        sync(folder)
    }

    fn read(&self, folder: &Path, step: u64) -> Result<Checkpoint, CheckpointError> {
        let damaged = |name: &str, problem: &str| CheckpointError::Damaged {
            path: folder.join(name),
            problem: problem.to_owned(),
        };
        let sums = read_file(&folder.join(SUMS))?;
        let sums = String::from_utf8_lossy(&sums);
        let verified = |name: &str| -> Result<Vec<u8>, CheckpointError> {
            let mut lines = sums.lines().filter_map(|line| line.split_once("  "));
            let (sum, _) = lines
                .find(|(_, listed)| *listed == name)
                .ok_or_else(|| damaged(SUMS, "a file's digest is missing"))?;
            let bytes = read_file(&folder.join(name))?;
            if hex(&sha256(&bytes)) != sum {
                return Err(damaged(
                    name,
                    "its content does not have the digest in SHA256SUMS",
                ));
            }
            Ok(bytes)
        };
        let state: State = serde_json::from_slice(&verified(STATE)?)
            .map_err(|error| damaged(STATE, &error.to_string()))?;
        if state.format != FORMAT {
            return Err(damaged(
                STATE,
                &format!("format {} is not known", state.format),
            ));
        }
        let adapter = verified(ADAPTER)?;
        let version = PolicyVersion::of_bytes(state.step, &adapter);
        if state.run_id != self.run_id || state.step != step {
            return Err(damaged(STATE, "it belongs to another run or step"));
        }
        if version.digest_hex() != state.adapter_digest {
            return Err(damaged(ADAPTER, "its digest is not the one in state.json"));
        }
        let parent = match (state.parent_step, state.parent_digest) {
            (Some(step), Some(digest)) => {
                let digest =
                    unhex(&digest).ok_or_else(|| damaged(STATE, "parent_digest is not hex"))?;
                Some(PolicyVersion { step, digest })
            }
            _ => None,
        };
        let result = match state.has_result {
            true => Some(
                StepResult::decode(verified(RESULT)?.as_slice())
                    .map_err(|error| damaged(RESULT, &error.to_string()))?,
            ),
            false => None,
        };
        Ok(Checkpoint {
            run_id: state.run_id,
            model_digest: state.model_digest,
            version,
            parent,
            updates: state.updates,
            optimizer: verified(OPTIMIZER)?,
            adapter,
            result,
        })
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::try_from(digit(pair[0])? << 4 | digit(*pair.get(1)?)?).ok())
        .collect()
}

fn read_file(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    fs::read(path).map_err(io_error(path))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    fs::write(path, bytes).map_err(io_error(path))?;
    sync(path)
}

/// Waits until a file's content, or a folder's list of names, is on disk.
fn sync(path: &Path) -> Result<(), CheckpointError> {
    fs::File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(io_error(path))
}

#[cfg(test)]
mod tests {
    use tina_proto::v1::StepMetrics;

    use super::*;

    /// Step `step`'s checkpoint of a chain in which each step's adapter follows from its number.
    fn checkpoint(step: u64) -> Checkpoint {
        let adapter = |step: u64| format!("adapter {step}").into_bytes();
        let version = PolicyVersion::of_bytes(step, &adapter(step));
        let parent = step
            .checked_sub(1)
            .map(|s| PolicyVersion::of_bytes(s, &adapter(s)));
        let metrics = StepMetrics {
            loss: 0.1 + 0.2,
            ..Default::default()
        };
        let result = StepResult {
            version: Some(version.clone()),
            metrics: Some(metrics),
            ..Default::default()
        };
        Checkpoint {
            run_id: "run".to_owned(),
            model_digest: "00ff".to_owned(),
            version,
            parent,
            updates: step * 2,
            adapter: adapter(step),
            optimizer: vec![step as u8; 100],
            result: (step > 0).then_some(result),
        }
    }

    fn store_with(steps: std::ops::RangeInclusive<u64>) -> (tempfile::TempDir, CheckpointStore) {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::new(folder.path().join("checkpoints"), "run");
        steps.for_each(|step| store.save(&checkpoint(step)).unwrap());
        (folder, store)
    }

    fn newest(store: &CheckpointStore, resume: u64) -> Option<Checkpoint> {
        store.newest(&checkpoint(resume).version).unwrap()
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        let (_folder, store) = store_with(0..=0);
        assert_eq!(newest(&store, 0), Some(checkpoint(0)));
        store.save(&checkpoint(1)).unwrap();
        assert_eq!(newest(&store, 1), Some(checkpoint(1)));
    }

    #[test]
    fn the_newest_two_are_kept() {
        let (_folder, store) = store_with(1..=5);
        let steps: Vec<u64> = store
            .list()
            .unwrap()
            .into_iter()
            .map(|(step, _)| step)
            .collect();
        assert_eq!(steps, [4, 5]);
        assert_eq!(fs::read_dir(store.folder()).unwrap().count(), 2);
    }

    #[test]
    fn the_step_made_from_the_recorded_version_is_the_one_to_go_on_from() {
        let (_folder, store) = store_with(1..=5);
        assert_eq!(newest(&store, 4), Some(checkpoint(5)));
        assert_eq!(newest(&store, 5), Some(checkpoint(5)));
        assert_eq!(newest(&store, 9), Some(checkpoint(5)));
        assert_eq!(newest(&store, 2), None);
    }

    #[test]
    fn a_checkpoint_that_does_not_agree_with_the_record_is_passed_over() {
        let (_folder, store) = store_with(4..=5);
        let other = PolicyVersion::of_bytes(5, b"another adapter");
        assert_eq!(store.newest(&other).unwrap(), Some(checkpoint(4)));
        let other = PolicyVersion::of_bytes(4, b"another adapter");
        assert_eq!(store.newest(&other).unwrap(), None);
    }

    #[test]
    fn any_damage_to_any_file_falls_back_to_the_one_before() {
        let (_folder, store) = store_with(4..=5);
        let newer = store.list().unwrap()[1].1.clone();
        for name in [ADAPTER, OPTIMIZER, STATE, RESULT, SUMS] {
            let path = newer.join(name);
            let whole = fs::read(&path).unwrap();
            let falls_back = |what: &str| {
                assert_eq!(newest(&store, 5), Some(checkpoint(4)), "{name}: {what}");
            };
            for at in 0..whole.len() {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << (at % 8);
                fs::write(&path, flipped).unwrap();
                // How the last line ends says nothing.
                if name != SUMS || at + 1 < whole.len() {
                    falls_back(&format!("a bit of byte {at} flipped"));
                }
                fs::write(&path, &whole[..at]).unwrap();
                if name != SUMS || at + 1 < whole.len() {
                    falls_back(&format!("torn at byte {at}"));
                }
            }
            if name != SUMS {
                fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
                falls_back("a byte too many");
            }
            fs::remove_file(&path).unwrap();
            falls_back("missing");
            fs::write(&path, &whole).unwrap();
            assert_eq!(newest(&store, 5), Some(checkpoint(5)));
        }
        fs::remove_dir_all(&newer).unwrap();
        assert_eq!(newest(&store, 5), Some(checkpoint(4)));
    }

    #[test]
    fn with_every_checkpoint_damaged_there_is_none() {
        let (_folder, store) = store_with(4..=5);
        for (_, path) in store.list().unwrap() {
            fs::write(path.join(ADAPTER), b"another").unwrap();
        }
        assert_eq!(newest(&store, 5), None);
    }

    #[test]
    fn a_write_that_was_cut_short_is_swept_and_the_one_before_stands() {
        let (_folder, store) = store_with(1..=1);
        let torn = store
            .folder()
            .join(format!("{TEMPORARY}000002-{}", store.suffix));
        fs::create_dir(&torn).unwrap();
        fs::write(torn.join(ADAPTER), b"half").unwrap();
        assert_eq!(newest(&store, 1), Some(checkpoint(1)));
        store.save(&checkpoint(2)).unwrap();
        assert!(!torn.exists());
        assert_eq!(newest(&store, 2), Some(checkpoint(2)));
    }

    #[test]
    fn a_step_made_again_replaces_what_came_after_it() {
        let (_folder, store) = store_with(1..=5);
        store.save(&checkpoint(4)).unwrap();
        let steps: Vec<u64> = store
            .list()
            .unwrap()
            .into_iter()
            .map(|(step, _)| step)
            .collect();
        assert_eq!(steps, [4]);
    }

    #[test]
    fn another_run_in_the_same_folder_is_left_alone() {
        let (_folder, store) = store_with(1..=2);
        let other = CheckpointStore::new(store.folder(), "other");
        assert_eq!(other.newest(&checkpoint(2).version).unwrap(), None);
        for step in 1..=3 {
            other
                .save(&Checkpoint {
                    run_id: "other".to_owned(),
                    ..checkpoint(step)
                })
                .unwrap();
        }
        assert_eq!(newest(&store, 2), Some(checkpoint(2)));
    }
}
