//! Bytes from GPU to GPU inside one machine, by an NCCL broadcast: an extra that may fail. Adapters
//! go to workers by it, and gradients from the learner's ranks.
//!
//! Who holds the bytes named them over gRPC before; NCCL decides nothing. A
//! collective blocks until all ranks are there, so it runs on a thread of its own ([`Nccl`]) under a
//! deadline. After the first failure, of whatever kind, the thread is left to itself and this
//! process uses NCCL no more: everything comes by gRPC, as it does everywhere else.

#[cfg(feature = "cuda")]
mod cuda;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant},
};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::{sync::oneshot, time::timeout};
use tracing::{info, warn};

use super::{AdapterTransport, MAX_ADAPTER_BYTES, TransportError};
use crate::{
    v1::{NcclGroup, PolicyVersion},
    version::{hex, sha256},
};

/// Bytes of an ncclUniqueId.
pub const NCCL_ID_BYTES: usize = 128;
/// Names the interface that NCCL's own sockets listen on. Tina asks for it to be set (`lo`), as
/// NCCL by itself takes one that other machines can reach, and knows no token.
pub const NCCL_INTERFACE_VARIABLE: &str = "NCCL_SOCKET_IFNAME";
/// How long one broadcast may take, waiting for the other ranks included.
const DEADLINE: Duration = Duration::from_secs(20);

/// One rank's part in broadcasts. Every call may block for ever.
pub trait Collective {
    /// A name for a group: [`NCCL_ID_BYTES`].
    ///
    /// # Errors
    /// What is wrong, for a person.
    fn new_id(&mut self) -> Result<Vec<u8>, String>;

    /// Joins the group, or comes back to it where it is lasting, and takes part in a broadcast.
    /// Rank 0 gives the bytes; the others give
    /// room of the same length, and get it back filled.
    ///
    /// # Errors
    /// What is wrong, for a person.
    fn broadcast(&mut self, group: &NcclGroup, bytes: Vec<u8>) -> Result<Vec<u8>, String>;
}

type Opened = Result<Box<dyn Collective>, String>;
type Open = Box<dyn FnOnce() -> Opened + Send>;
type Job = Box<dyn FnOnce(&mut dyn Collective) + Send>;

/// This process's part in NCCL. Nothing of it is touched before the first use.
#[derive(Clone)]
pub struct Nccl {
    state: Arc<Mutex<State>>,
    deadline: Duration,
}

enum State {
    Unused(Open),
    /// With an id that no group has been made with.
    Running(mpsc::Sender<Job>, Option<Vec<u8>>),
    Off,
}

impl Nccl {
    /// For a process that computes on `device`. Where this build has no CUDA or the device is no
    /// GPU, the first use says so, and gRPC does the work.
    pub fn on_device(device: &str) -> Self {
        let device = device.to_owned();
        Self::over(move || open(&device))
    }

    /// Over any collective; `open` is called on the thread that will use it.
    pub fn over(open: impl FnOnce() -> Opened + Send + 'static) -> Self {
        Self {
            state: Arc::new(Mutex::new(State::Unused(Box::new(open)))),
            deadline: DEADLINE,
        }
    }

    /// Gives broadcasts this long.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// An id that no group has been made with; empty where NCCL can't be used.
    pub async fn offer(&self) -> Vec<u8> {
        if let State::Running(_, Some(id)) = &*self.state() {
            return id.clone();
        }
        let Ok(id) = self.run(|nccl| nccl.new_id()).await else {
            return Vec::new();
        };
        if let State::Running(_, spare) = &mut *self.state() {
            *spare = Some(id.clone());
        }
        id
    }

    /// Whether it can be used, as far as this process knows.
    pub async fn is_usable(&self) -> bool {
        self.run(|_| Ok(())).await.is_ok()
    }

    /// An id for a group that is made now; empty where NCCL can't be used.
    pub async fn name_group(&self) -> Vec<u8> {
        self.run(|nccl| nccl.new_id()).await.unwrap_or_default()
    }

    /// So many bytes from the group's rank 0, verified against their SHA-256.
    ///
    /// # Errors
    /// What is wrong, for a person. Where NCCL itself failed, it is off from then on.
    pub async fn receive(
        &self,
        group: &NcclGroup,
        bytes: u64,
        digest: &[u8],
    ) -> Result<Vec<u8>, String> {
        check(group, bytes)?;
        if group.rank == 0 {
            return Err("rank 0 has the bytes".to_owned());
        }
        let (group, digest) = (group.clone(), digest.to_vec());
        let length = usize::try_from(bytes).map_err(|error| error.to_string())?;
        self.run(move |nccl| {
            let bytes = nccl.broadcast(&group, vec![0; length])?;
            let found = sha256(&bytes);
            if found[..] == digest[..] {
                Ok(bytes)
            } else {
                Err(format!("its bytes have SHA-256 {}", hex(&found)))
            }
        })
        .await
    }

    /// These bytes to the group, whose rank 0 this process is.
    ///
    /// # Errors
    /// What is wrong, for a person. Where NCCL itself failed, it is off from then on.
    pub async fn send(&self, group: &NcclGroup, bytes: Vec<u8>) -> Result<(), String> {
        check(group, bytes.len() as u64)?;
        if group.rank != 0 {
            return Err("only rank 0 sends".to_owned());
        }
        self.spend(&group.id);
        let group = group.clone();
        self.run(move |nccl| nccl.broadcast(&group, bytes).map(drop))
            .await
    }

    /// Bytes of one broadcast at most.
    pub const MOST_BYTES: u64 = MAX_ADAPTER_BYTES;

    /// False after a failure.
    pub fn is_on(&self) -> bool {
        !matches!(&*self.state(), State::Off)
    }

    fn spend(&self, id: &[u8]) {
        if let State::Running(_, spare) = &mut *self.state() {
            spare.take_if(|spare| spare == id);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread's inbox; the thread is started at the first call.
    fn jobs(&self) -> Result<mpsc::Sender<Job>, String> {
        let mut state = self.state();
        match std::mem::replace(&mut *state, State::Off) {
            State::Running(jobs, spare) => {
                *state = State::Running(jobs.clone(), spare);
                Ok(jobs)
            }
            State::Unused(open) => {
                let (jobs, inbox) = mpsc::channel::<Job>();
                // An `open` that fails drops the inbox, and with it every job.
                std::thread::Builder::new()
                    .name("nccl".to_owned())
                    .spawn(move || match open() {
                        Ok(mut collective) => inbox.iter().for_each(|job| job(&mut *collective)),
                        Err(why) => warn!(why, "NCCL can't be had"),
                    })
                    .map_err(|error| error.to_string())?;
                *state = State::Running(jobs.clone(), None);
                Ok(jobs)
            }
            State::Off => Err("NCCL is not used in this process any more".to_owned()),
        }
    }

    /// Runs `work` on the thread; after a failure NCCL is off.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Collective) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let jobs = self.jobs()?;
        let (answer, answered) = oneshot::channel();
        // Without an inbox the answer is dropped with the job.
        let _ = jobs.send(Box::new(move |nccl| drop(answer.send(work(nccl)))));
        // Nobody may wait for it any more: its thread may be stuck all the same.
        let abandoned = Abandoned(Some(self));
        let outcome = match timeout(self.deadline, answered).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err("its thread ended".to_owned()),
            Err(_) => Err(format!("nothing within {:?}", self.deadline)),
        };
        abandoned.answered();
        if let Err(why) = &outcome {
            warn!(why, "NCCL failed; this process uses it no more");
            *self.state() = State::Off;
        }
        outcome
    }
}

/// Turns NCCL off when it is dropped before there was an answer.
struct Abandoned<'a>(Option<&'a Nccl>);

impl Abandoned<'_> {
    fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if let Some(nccl) = self.0 {
            *nccl.state() = State::Off;
        }
    }
}

impl std::fmt::Debug for Nccl {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Nccl").finish_non_exhaustive()
    }
}

#[cfg(feature = "cuda")]
fn open(device: &str) -> Opened {
    let gpu = match device.split_once(':') {
        None if device == "cuda" => Some(0),
        Some(("cuda", ordinal)) => ordinal.parse().ok(),
        _ => None,
    };
    let gpu = gpu.ok_or_else(|| format!("{device} is no GPU"))?;
    if std::env::var_os(NCCL_INTERFACE_VARIABLE).is_none() {
        return Err(format!(
            "{NCCL_INTERFACE_VARIABLE} is not set; set it to lo, so that NCCL listens on this \
             machine alone"
        ));
    }
    Ok(Box::new(cuda::Gpu::open(gpu)?))
}

#[cfg(not(feature = "cuda"))]
fn open(_device: &str) -> Opened {
    Err("this build has no CUDA".to_owned())
}

/// One broadcast: rank 0 publishes, the others fetch, and fall back to `F` where that fails.
#[derive(Debug)]
pub struct NcclTransport<F> {
    nccl: Nccl,
    group: NcclGroup,
    bytes: u64,
    fallback: F,
}

impl<F: AdapterTransport> NcclTransport<F> {
    /// In this group, for an adapter of so many bytes.
    pub fn new(nccl: Nccl, group: NcclGroup, bytes: u64, fallback: F) -> Self {
        Self {
            nccl,
            group,
            bytes,
            fallback,
        }
    }
}

fn check(group: &NcclGroup, bytes: u64) -> Result<(), String> {
    let NcclGroup {
        id, rank, world, ..
    } = group;
    let length = id.len();
    if length != NCCL_ID_BYTES || rank >= world || *world < 2 {
        return Err(format!(
            "no group: rank {rank} of {world}, an id of {length} bytes"
        ));
    }
    if bytes == 0 || bytes > MAX_ADAPTER_BYTES {
        return Err(format!("{bytes} bytes are none that it takes"));
    }
    Ok(())
}

impl<F: AdapterTransport> AdapterTransport for NcclTransport<F> {
    fn fetch<'a>(
        &'a self,
        version: &'a PolicyVersion,
    ) -> BoxFuture<'a, Result<Vec<u8>, TransportError>> {
        async move {
            let started = Instant::now();
            let name = version.short();
            let received = self.nccl.receive(&self.group, self.bytes, &version.digest);
            match received.await {
                Ok(bytes) => {
                    let seconds = started.elapsed().as_secs_f64();
                    info!(version = %name, seconds, "adapter received by NCCL");
                    Ok(bytes)
                }
                Err(why) => {
                    warn!(version = %name, why, "no adapter by NCCL; fetching it by gRPC");
                    self.fallback.fetch(version).await
                }
            }
        }
        .boxed()
    }

    /// To the group's other ranks. They verify what arrives and fetch it where this fails, so that
    /// an error is for the log alone.
    fn publish<'a>(
        &'a self,
        version: &'a PolicyVersion,
        bytes: &'a [u8],
    ) -> BoxFuture<'a, Result<(), TransportError>> {
        async move {
            let sent = if bytes.len() as u64 == self.bytes {
                self.nccl.send(&self.group, bytes.to_vec()).await
            } else {
                Err("all of the adapter is sent, or nothing".to_owned())
            };
            sent.map_err(|problem| TransportError::Nccl {
                version: version.short().to_string(),
                problem,
            })
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests;
