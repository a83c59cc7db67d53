//! The bytes of one adapter while they arrive and after, for as many readers as there are.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::watch;

use crate::v1::PolicyVersion;

/// How far an adapter has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Its size; 0: not known yet.
    pub(super) total: u64,
    /// Its first bytes that are known to be right.
    pub(super) good: u64,
    pub(super) stage: Stage,
}

/// Where it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// More is to come.
    #[default]
    Coming,
    /// All is there.
    Whole,
    /// No more will come.
    Broken,
}

#[derive(Debug)]
enum Bytes {
    Growing(Vec<u8>),
    Whole(Arc<Vec<u8>>),
}

impl Bytes {
    fn all(&self) -> &[u8] {
        match self {
            Self::Growing(bytes) => bytes,
            Self::Whole(bytes) => bytes,
        }
    }
}

/// One writer ([`super::Assembly`]); readers see what it has found to be right.
#[derive(Debug)]
pub(super) struct Transfer {
    version: PolicyVersion,
    bytes: RwLock<Bytes>,
    progress: watch::Sender<Progress>,
}

impl Transfer {
    pub(super) fn new(version: PolicyVersion) -> Self {
        Self {
            version,
            bytes: RwLock::new(Bytes::Growing(Vec::new())),
            progress: watch::Sender::new(Progress::default()),
        }
    }

    /// Of an adapter that is all there, and right.
    pub(super) fn whole(version: PolicyVersion, bytes: Arc<Vec<u8>>) -> Self {
        let total = bytes.len() as u64;
        Self {
            version,
            bytes: RwLock::new(Bytes::Whole(bytes)),
            progress: watch::Sender::new(Progress {
                total,
                good: total,
                stage: Stage::Whole,
            }),
        }
    }

    pub(super) fn version(&self) -> &PolicyVersion {
        &self.version
    }

    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    fn read_lock(&self) -> RwLockReadGuard<'_, Bytes> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_lock(&self) -> RwLockWriteGuard<'_, Bytes> {
        self.bytes.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn append(&self, data: &[u8]) {
        if let Bytes::Growing(bytes) = &mut *self.write_lock() {
            bytes.extend_from_slice(data);
        }
    }

    /// Forgets what came after the first `held` bytes.
    pub(super) fn truncate(&self, held: u64) {
        if let Bytes::Growing(bytes) = &mut *self.write_lock() {
            bytes.truncate(usize::try_from(held).unwrap_or(usize::MAX));
        }
    }

    /// The first `good` bytes, of `total`, are right.
    pub(super) fn good(&self, good: u64, total: u64) {
        self.progress.send_modify(|progress| {
            (progress.good, progress.total) = (good, total);
        });
    }

    /// All is there, and right.
    pub(super) fn complete(&self) -> Arc<Vec<u8>> {
        let whole = {
            let mut bytes = self.write_lock();
            let whole = match &mut *bytes {
                Bytes::Growing(bytes) => Arc::new(std::mem::take(bytes)),
                Bytes::Whole(bytes) => bytes.clone(),
            };
            *bytes = Bytes::Whole(whole.clone());
            whole
        };
        let total = whole.len() as u64;
        self.progress.send_replace(Progress {
            total,
            good: total,
            stage: Stage::Whole,
        });
        whole
    }

    /// No more will come; without effect on what is whole.
    pub(super) fn break_off(&self) {
        self.progress.send_if_modified(|progress| {
            let coming = progress.stage == Stage::Coming;
            if coming {
                progress.stage = Stage::Broken;
            }
            coming
        });
    }

    /// Right bytes from `offset` on, `most` of them at most; none where no more have come.
    pub(super) fn read(&self, offset: u64, most: usize) -> Vec<u8> {
        let good = self.progress.borrow().good;
        let bytes = self.read_lock();
        let all = bytes.all();
        let end = usize::try_from(good).map_or(all.len(), |good| good.min(all.len()));
        let start = usize::try_from(offset).map_or(end, |offset| offset.min(end));
        all[start..end.min(start.saturating_add(most))].to_vec()
    }
}
