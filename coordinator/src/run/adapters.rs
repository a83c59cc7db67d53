//! Adapters on disk: `adapters/000010/` in PEFT's format for each kept step, `latest` and `best`
//! beside them. Everything appears whole or not at all.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use tina_proto::platform::Clerk;
use tokio::sync::mpsc::UnboundedSender;

/// Which steps' adapters stay.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keep {
    /// Of every so-manieth step; 0: of none.
    pub(super) every: u64,
    /// So many of the newest.
    pub(super) last: u64,
}

impl Keep {
    /// The steps to remove of those there are.
    fn stale(&self, there: &BTreeSet<u64>, best: Option<u64>) -> Vec<u64> {
        let newest: BTreeSet<u64> = there
            .iter()
            .rev()
            .take(self.last.max(1) as usize)
            .copied()
            .collect();
        there
            .iter()
            .filter(|&&step| {
                let milestone = self.every > 0 && step.is_multiple_of(self.every);
                !milestone && !newest.contains(&step) && best != Some(step)
            })
            .copied()
            .collect()
    }
}

enum Job {
    Save(u64, Arc<[u8]>),
    Best(u64),
    RollBack(u64, Option<u64>),
}

/// Writes adapters on a thread of its own.
#[derive(Debug)]
pub(super) struct Shelf {
    jobs: UnboundedSender<Job>,
    clerk: Clerk,
}

impl Shelf {
    /// In `folder`; `config` is adapter_config.json; `best` the step with the highest accuracy so
    /// far; `failed` hears why nothing can be written any more.
    pub(super) fn new(
        folder: PathBuf,
        config: String,
        keep: Keep,
        best: Option<u64>,
        failed: impl Fn(String) + Send + 'static,
    ) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        put_back(&folder)?;
        let mut writer = Writer {
            folder,
            config,
            keep,
            best,
        };
        let (jobs, clerk) = Clerk::start("adapters", 1, move |jobs| {
            match jobs.into_iter().try_for_each(|job| writer.work(job)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    let folder = writer.folder.display();
                    let remedy = match error.kind() {
                        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                            "; free some space, then go on with --resume"
                        }
                        _ => "",
                    };
                    failed(format!(
                        "{folder}: the adapter can't be written: {error}{remedy}"
                    ));
                    ControlFlow::Break(())
                }
            }
        })?;
        Ok(Self { jobs, clerk })
    }

    pub(super) fn save(&self, step: u64, bytes: Arc<[u8]>) {
        let _ = self.jobs.send(Job::Save(step, bytes));
    }

    pub(super) fn best(&self, step: u64) {
        let _ = self.jobs.send(Job::Best(step));
    }

    /// Removes adapters of later steps; `best` is the best step of those that stay.
    pub(super) fn roll_back(&self, step: u64, best: Option<u64>) {
        let _ = self.jobs.send(Job::RollBack(step, best));
    }

    /// Waits until all is written.
    pub(super) async fn close(self) {
        drop(self.jobs);
        self.clerk.done().await;
    }
}

struct Writer {
    folder: PathBuf,
    config: String,
    keep: Keep,
    best: Option<u64>,
}

fn name(step: u64) -> String {
    format!("{step:06}")
}

impl Writer {
    fn work(&mut self, job: Job) -> io::Result<()> {
        match job {
            Job::Save(step, bytes) => {
                self.save(step, &bytes)?;
                point(&self.folder, "latest", step)?;
                if self.best.is_none() {
                    point(&self.folder, "best", step)?;
                }
            }
            Job::Best(step) => {
                if self.folder.join(name(step)).is_dir() {
                    self.best = Some(step);
                    point(&self.folder, "best", step)?;
                }
            }
            Job::RollBack(step, best) => {
                for void in self.there()?.into_iter().filter(|&there| there > step) {
                    fs::remove_dir_all(self.folder.join(name(void)))?;
                }
                let there = self.there()?;
                self.best = best.filter(|best| there.contains(best));
                // Where nothing is left, the next adapter that is saved sets the links.
                if let Some(&latest) = there.last() {
                    point(&self.folder, "latest", latest)?;
                    point(&self.folder, "best", self.best.unwrap_or(latest))?;
                }
            }
        }
        for stale in self.keep.stale(&self.there()?, self.best) {
            fs::remove_dir_all(self.folder.join(name(stale)))?;
        }
        Ok(())
    }

    fn save(&self, step: u64, bytes: &[u8]) -> io::Result<()> {
        let place = self.folder.join(name(step));
        let fresh = self.folder.join(format!(".{}.new", name(step)));
        remove(&fresh)?;
        fs::create_dir(&fresh)?;
        let parts = [
            ("adapter_model.safetensors", bytes),
            ("adapter_config.json", self.config.as_bytes()),
        ];
        for (part, bytes) in parts {
            let path = fresh.join(part);
            fs::write(&path, bytes)?;
            sync(&path)?;
        }
        sync(&fresh)?;
        // A folder can't be replaced in one go: the old one stands aside until the new is there.
        let old = self.folder.join(format!(".{}{OLD}", name(step)));
        remove(&old)?;
        if place.exists() {
            fs::rename(&place, &old)?;
        }
        fs::rename(&fresh, &place)?;
        sync(&self.folder)?;
        remove(&old)
    }

    /// Steps whose adapters are on disk.
    fn there(&self) -> io::Result<BTreeSet<u64>> {
        let mut steps = BTreeSet::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir()
                && let Some(step) = entry
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse().ok())
            {
                steps.insert(step);
            }
        }
        Ok(steps)
    }
}

/// How the name of an adapter ends that stands aside for a new one of its step.
const OLD: &str = ".old";

/// Makes good what a death in the middle of [`Writer::save`] left.
fn put_back(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let old = entry?.path();
        let name = old.file_name().and_then(|name| name.to_str());
        let Some(step) = name.and_then(|name| name.strip_prefix('.')?.strip_suffix(OLD)) else {
            continue;
        };
        let place = folder.join(step);
        if place.exists() {
            remove(&old)?;
        } else {
            fs::rename(&old, &place)?;
        }
    }
    Ok(())
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes the link `link` point to the adapter of `step`, whatever it pointed to before.
fn point(folder: &Path, link: &str, step: u64) -> io::Result<()> {
    let fresh = folder.join(format!(".{link}.new"));
    if fresh.symlink_metadata().is_ok() {
        fs::remove_file(&fresh)?;
    }
    std::os::unix::fs::symlink(name(step), &fresh)?;
    fs::rename(&fresh, folder.join(link))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_type().unwrap().is_dir())
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn milestones_the_newest_and_the_best_stay() {
        let folder = tempfile::tempdir().unwrap();
        let keep = Keep { every: 4, last: 2 };
        let shelf = Shelf::new(folder.path().into(), "{}".into(), keep, None, |e| {
            panic!("{e}")
        })
        .unwrap();
        for step in 1..=7u64 {
            shelf.save(step, vec![step as u8; 3].into());
            if step == 2 {
                shelf.best(2);
            }
        }
        shelf.close().await;
        assert_eq!(
            steps(folder.path()),
            ["000002", "000004", "000006", "000007"]
        );
        let read = |link: &str| {
            fs::read(folder.path().join(link).join("adapter_model.safetensors")).unwrap()
        };
        assert_eq!((read("latest"), read("best")), (vec![7; 3], vec![2; 3]));
    }

    #[tokio::test]
    async fn without_an_evaluation_the_best_is_the_latest() {
        let folder = tempfile::tempdir().unwrap();
        let keep = Keep { every: 0, last: 1 };
        let shelf = Shelf::new(folder.path().into(), "{}".into(), keep, None, |e| {
            panic!("{e}")
        })
        .unwrap();
        shelf.save(1, vec![1].into());
        shelf.save(2, vec![2].into());
        shelf.close().await;
        assert_eq!(steps(folder.path()), ["000002"]);
        assert_eq!(
            fs::read_link(folder.path().join("best")).unwrap(),
            Path::new("000002")
        );
    }

    #[tokio::test]
    async fn a_rollback_keeps_the_best_of_what_stays() {
        let folder = tempfile::tempdir().unwrap();
        let keep = Keep { every: 0, last: 5 };
        let shelf = Shelf::new(folder.path().into(), "{}".into(), keep, None, |e| {
            panic!("{e}")
        })
        .unwrap();
        (1..=4).for_each(|step| shelf.save(step, vec![step as u8].into()));
        shelf.best(4);
        shelf.roll_back(3, Some(2));
        shelf.save(3, vec![33].into());
        shelf.close().await;
        assert_eq!(steps(folder.path()), ["000001", "000002", "000003"]);
        let read = |link: &str| {
            fs::read(folder.path().join(link).join("adapter_model.safetensors")).unwrap()
        };
        assert_eq!((read("latest"), read("best")), (vec![33], vec![2]));
    }

    #[tokio::test]
    async fn an_adapter_that_stood_aside_at_a_death_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let open = || {
            let keep = Keep { every: 0, last: 5 };
            Shelf::new(folder.path().into(), "{}".into(), keep, None, |e| {
                panic!("{e}")
            })
            .unwrap()
        };
        let shelf = open();
        shelf.save(1, vec![1].into());
        shelf.close().await;
        fs::rename(
            folder.path().join("000001"),
            folder.path().join(".000001.old"),
        )
        .unwrap();
        open().close().await;
        assert_eq!(steps(folder.path()), ["000001"]);
    }
}
