//! The ranks that are connected to rank 0: their streams on one side, a [`Crew`] on the other.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tina_proto::{
    adapters::{CHUNK_BYTES, Nccl},
    v1::{
        AdapterChunk, GradientByNccl, GradientChunk, NcclGroup, RankCommand, RankHello, RankJob,
        RankMessage, RankPass, RankReady, RankStop, RankWelcome, RunSpec, rank_command::Command,
        rank_message::Message, ranks_server::Ranks,
    },
};
use tokio::{runtime::Handle, sync::mpsc, task::AbortHandle, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::wire::{Awaited, Sum, job_message, pass_messages};
use crate::share::{AdapterFile, Crew, Job, News, Seat};

/// How long a rank may take to say Hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// How long a command may wait for room on a rank's stream.
const SEND_DEADLINE: Duration = Duration::from_secs(30);
/// Commands on their way to the transport.
const OUTGOING: usize = 4;

type Outgoing = mpsc::Sender<Result<RankCommand, Status>>;

/// What ranks must have in common, or their sums would be other bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) model_digest: String,
    pub(crate) numerics: String,
}

/// All connected ranks; a clone shares them.
#[derive(Clone)]
pub(super) struct Hub {
    shared: Arc<Shared>,
}

struct Shared {
    spec: RunSpec,
    /// Ranks beside this one.
    most: usize,
    /// By which gradients may come, and the GPU that this rank computes on.
    nccl: Option<(Nccl, String)>,
    members: Mutex<Members>,
    news: mpsc::UnboundedSender<News>,
}

#[derive(Default)]
struct Members {
    seats: u64,
    /// Set once nobody may come in any more, with the reason.
    closed: Option<String>,
    by_seat: BTreeMap<Seat, Member>,
}

struct Member {
    name: String,
    commands: Outgoing,
    /// On another GPU of this machine.
    is_near: bool,
    /// The id of its NCCL group; empty: none.
    group: Vec<u8>,
    ready: Option<Identity>,
    /// Digest of the adapter that was sent last.
    adapter: Vec<u8>,
    awaited: Option<Awaited>,
    /// Reads its messages; sends a job's commands.
    tasks: Vec<AbortHandle>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Hub {
    /// For `most` ranks beside this one, and the end at which a step hears of them.
    pub(super) fn new(
        spec: RunSpec,
        most: usize,
        nccl: Option<(Nccl, String)>,
    ) -> (Self, mpsc::UnboundedReceiver<News>) {
        let (news, heard) = mpsc::unbounded_channel();
        let shared = Shared {
            spec,
            most,
            nccl,
            members: Mutex::default(),
            news,
        };
        let shared = Arc::new(shared);
        (Self { shared }, heard)
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        let members = self.shared.members.lock();
        members.unwrap_or_else(PoisonError::into_inner)
    }

    fn news(&self, news: News) {
        // Without a listener nobody waits for it.
        let _ = self.shared.news.send(news);
    }

    /// Tells all to end, and lets nobody in any more. They close their streams when they have heard.
    pub(super) fn close(&self, reason: &str) {
        let mut members = self.members();
        members.closed = Some(reason.to_owned());
        for member in members.by_seat.values() {
            let stop = Command::Stop(RankStop {
                reason: reason.to_owned(),
            });
            // A full stream is of one that gets a job; it will hear that the stream ends.
            let _ = member.commands.try_send(Ok(command(stop)));
        }
    }

    /// Lets nobody in any more, and ends the streams of those who are there: they dial again.
    pub(super) fn disband(&self) {
        let mut members = self.members();
        members.closed.get_or_insert("the learner ended".to_owned());
        members.by_seat.clear();
    }

    /// Ranks that are connected.
    pub(super) fn count(&self) -> usize {
        self.members().by_seat.len()
    }

    /// Takes a seat; a rank of the same name loses its own. `here`: it dials from this machine.
    fn admit(&self, hello: &RankHello, here: bool, commands: Outgoing) -> Result<Seat, Status> {
        let version = env!("CARGO_PKG_VERSION");
        if hello.version != version {
            let theirs = &hello.version;
            let text = format!("rank 0 is Tina {version}, this is {theirs}: use the same on both");
            return Err(Status::failed_precondition(text));
        }
        let name = match hello.rank_id.as_str() {
            "" => return Err(Status::invalid_argument("a rank without a name")),
            long if long.len() > 256 => {
                return Err(Status::invalid_argument("a name of more than 256 bytes"));
            }
            name => name.to_owned(),
        };
        let mut members = self.members();
        if let Some(reason) = &members.closed {
            return Err(Status::unavailable(reason.clone()));
        }
        let mut seats = members.by_seat.iter();
        let older = seats.find_map(|(seat, member)| (member.name == name).then_some(*seat));
        if older.is_none() && members.by_seat.len() >= self.shared.most {
            return Err(Status::resource_exhausted(format!(
                "all {} ranks beside rank 0 are there (learner.ranks)",
                self.shared.most
            )));
        }
        if let Some(older) = older {
            members.by_seat.remove(&older);
            self.news(News::Lost(older, format!("{name} came back")));
        }
        members.seats += 1;
        let seat = Seat(members.seats);
        info!(rank = name, address = hello.address, "a rank has joined");
        let welcome = RankWelcome {
            spec: Some(self.shared.spec.clone()),
        };
        // The channel is new and has room.
        let _ = commands.try_send(Ok(command(Command::Welcome(welcome))));
        let member = Member {
            name,
            commands,
            is_near: here && self.is_beside(hello),
            group: Vec::new(),
            ready: None,
            adapter: Vec::new(),
            awaited: None,
            tasks: Vec::new(),
        };
        members.by_seat.insert(seat, member);
        Ok(seat)
    }

    /// Reads a rank's messages to their end.
    async fn listen(self, seat: Seat, mut messages: Streaming<RankMessage>) {
        let why = loop {
            let message = match messages.message().await {
                Ok(Some(RankMessage {
                    message: Some(message),
                })) => message,
                Ok(Some(_)) => break "a message of an unknown kind came".to_owned(),
                Ok(None) => break "it closed its stream".to_owned(),
                Err(status) => break tina_proto::client::reason(&status),
            };
            if matches!(&message, Message::Ready(ready) if ready.nccl) {
                self.name_group(seat).await;
            }
            let taken = match message {
                Message::ByNccl(announced) => self.receive(seat, &announced).await,
                message => self.take(seat, message),
            };
            if let Err(problem) = taken {
                break problem;
            }
        };
        self.lose(seat, &why);
    }

    /// Gives a rank a group of NCCL's with this one, where gradients may come by it.
    async fn name_group(&self, seat: Seat) {
        let due = |member: &Member| member.is_near && member.ready.is_none();
        let due = self.members().by_seat.get(&seat).is_some_and(due);
        let (Some((nccl, _)), true) = (&self.shared.nccl, due) else {
            return;
        };
        let group = nccl.name_group().await;
        if let Some(member) = self.members().by_seat.get_mut(&seat) {
            member.group = group;
        }
    }

    /// Whether a rank computes on another GPU than this one.
    fn is_beside(&self, hello: &RankHello) -> bool {
        let whole = |device: &str| match device {
            "cuda" => "cuda:0".to_owned(),
            device => device.to_owned(),
        };
        let theirs = hello.device.as_ref().map(|device| whole(&device.device));
        let own = self.shared.nccl.as_ref().map(|(_, device)| whole(device));
        theirs.is_some() && own.is_some() && theirs != own
    }

    /// This rank's place in a seat's group; the other is the sender's.
    fn group(&self, member: &Member) -> Option<NcclGroup> {
        let (nccl, _) = self.shared.nccl.as_ref()?;
        (!member.group.is_empty() && nccl.is_on()).then(|| NcclGroup {
            id: member.group.clone(),
            rank: 1,
            world: 2,
            lasting: true,
        })
    }

    /// Receives a gradient that is announced. A rank whose gradient doesn't come is lost: what it had
    /// is computed again.
    async fn receive(&self, seat: Seat, announced: &GradientByNccl) -> Result<(), String> {
        let (group, bytes) = {
            let members = self.members();
            let member = members.by_seat.get(&seat).ok_or("it was sent away")?;
            let awaited = member.awaited.as_ref().ok_or("nobody asked for it")?;
            let group = self.group(member).ok_or("no group was made with it")?;
            (group, awaited.announced(announced)?)
        };
        let (nccl, _) = self.shared.nccl.as_ref().ok_or("NCCL isn't used")?;
        let data = nccl.receive(&group, bytes, &announced.digest).await?;
        let chunk = GradientChunk {
            job: announced.job,
            node: announced.node,
            data,
        };
        self.take(seat, Message::Gradient(chunk))
    }

    fn take(&self, seat: Seat, message: Message) -> Result<(), String> {
        let mut members = self.members();
        let Some(member) = members.by_seat.get_mut(&seat) else {
            return Err("it was sent away".to_owned());
        };
        let awaited = member.awaited.as_mut();
        let idle = || "an answer that nobody asked for".to_owned();
        let news = match message {
            Message::Hello(_) => return Err("a second Hello".to_owned()),
            // Its bytes are waited for elsewhere.
            Message::ByNccl(_) => return Err(idle()),
            Message::Failed(failed) => return Err(failed.error),
            Message::Ready(_) if member.ready.is_some() => {
                return Err("a second Ready".to_owned());
            }
            Message::Ready(ready) => {
                let identity = identity(ready);
                info!(
                    rank = member.name,
                    numerics = identity.numerics,
                    "a rank is ready"
                );
                member.ready = Some(identity);
                return Ok(());
            }
            Message::PassDone(done) => {
                News::Passed(seat, awaited.ok_or_else(idle)?.pass_done(done)?)
            }
            Message::Gradient(chunk) => {
                let awaited = awaited.ok_or_else(idle)?;
                let Some(sum) = awaited.chunk(&chunk)? else {
                    return Ok(());
                };
                if awaited.is_over() {
                    member.awaited = None;
                }
                let Sum {
                    node,
                    values,
                    outcomes,
                } = sum;
                News::Done {
                    seat,
                    node,
                    values,
                    outcomes,
                }
            }
        };
        self.news(news);
        Ok(())
    }

    fn lose(&self, seat: Seat, why: &str) {
        if let Some(member) = self.members().by_seat.remove(&seat) {
            warn!(rank = member.name, why, "a rank has gone");
            // Where it still listens, it is told.
            let _ = member.commands.try_send(Err(Status::aborted(why)));
            self.news(News::Lost(seat, why.to_owned()));
        }
    }

    /// Refuses ranks of another model or arithmetic.
    fn sort_out(&self, own: &Identity) {
        let mut members = self.members();
        let differs = |member: &Member| member.ready.as_ref().is_some_and(|ready| ready != own);
        let strange: Vec<Seat> = members
            .by_seat
            .iter()
            .filter_map(|(seat, member)| differs(member).then_some(*seat))
            .collect();
        for seat in strange {
            let Some(member) = members.by_seat.remove(&seat) else {
                continue;
            };
            let theirs = member.ready.clone().unwrap_or_else(|| own.clone());
            let text = if theirs.model_digest == own.model_digest {
                format!(
                    "rank 0 computes as {}, this rank as {}: their sums differ in the last bits; \
                     use processors or GPUs of one kind",
                    own.numerics, theirs.numerics
                )
            } else {
                format!(
                    "rank 0 has model {}, this rank {}",
                    own.model_digest, theirs.model_digest
                )
            };
            warn!(rank = member.name, text, "a rank is refused");
            let _ = member
                .commands
                .try_send(Err(Status::failed_precondition(text)));
        }
    }
}

fn identity(ready: RankReady) -> Identity {
    Identity {
        model_digest: ready.model_digest,
        numerics: ready.device.unwrap_or_default().numerics,
    }
}

fn command(command: Command) -> RankCommand {
    RankCommand {
        command: Some(command),
    }
}

#[tonic::async_trait]
impl Ranks for Hub {
    type JoinStream = ReceiverStream<Result<RankCommand, Status>>;

    async fn join(
        &self,
        request: Request<Streaming<RankMessage>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let ends = (request.local_addr(), request.remote_addr());
        let here = matches!(ends, (Some(own), Some(peer)) if own.ip() == peer.ip());
        let mut messages = request.into_inner();
        let first = timeout(HELLO_DEADLINE, messages.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no Hello came"))?;
        let Some(Message::Hello(hello)) = first?.and_then(|message| message.message) else {
            return Err(Status::invalid_argument("the first message must be Hello"));
        };
        let (commands, outgoing) = mpsc::channel(OUTGOING);
        let seat = self.admit(&hello, here, commands)?;
        let task = tokio::spawn(self.clone().listen(seat, messages));
        match self.members().by_seat.get_mut(&seat) {
            Some(member) => member.tasks.push(task.abort_handle()),
            None => task.abort(),
        }
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

/// The connected ranks as a step sees them. Called from outside of the runtime's own threads.
pub(crate) struct HubCrew {
    hub: Hub,
    heard: mpsc::UnboundedReceiver<News>,
    runtime: Handle,
    patience: Duration,
    own: Option<Identity>,
    jobs: u64,
}

impl HubCrew {
    pub(super) fn new(
        hub: Hub,
        heard: mpsc::UnboundedReceiver<News>,
        runtime: Handle,
        patience: Duration,
    ) -> Self {
        Self {
            hub,
            heard,
            runtime,
            patience,
            own: None,
            jobs: 0,
        }
    }

    /// What this rank computes with; nobody has a seat before it is known.
    pub(crate) fn identify(&mut self, own: Identity) {
        self.own = Some(own);
    }
}

impl fmt::Debug for HubCrew {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = out.debug_struct("HubCrew");
        out.field("jobs", &self.jobs).finish_non_exhaustive()
    }
}

impl Crew for HubCrew {
    fn seats(&mut self) -> Vec<Seat> {
        // Nobody is at work: what is still heard is of ranks that were lost or dismissed.
        while self.heard.try_recv().is_ok() {}
        let Some(own) = &self.own else {
            return Vec::new();
        };
        self.hub.sort_out(own);
        let members = self.hub.members();
        let free = members
            .by_seat
            .iter()
            .filter(|(_, member)| member.ready.is_some() && member.awaited.is_none());
        free.map(|(seat, _)| *seat).collect()
    }

    fn give(&mut self, seat: Seat, job: &Job<'_>) {
        self.jobs += 1;
        let id = self.jobs;
        let mut members = self.hub.members();
        let Some(member) = members.by_seat.get_mut(&seat) else {
            self.hub.news(News::Lost(seat, "it had gone".to_owned()));
            return;
        };
        let digest = &job.adapter.version.digest;
        let file = (member.adapter != *digest).then(|| job.adapter.clone());
        member.adapter.clone_from(digest);
        let bytes = file.as_ref().map_or(0, |file| file.bytes.len() as u64);
        let group = self.hub.group(member);
        let group = group.filter(|_| 4 * job.parameters as u64 <= Nccl::MOST_BYTES);
        let theirs = group.map(|group| NcclGroup { rank: 0, ..group });
        let (head, passes) = (job_message(id, job, bytes, theirs), pass_messages(id, job));
        member.awaited = Some(Awaited::new(id, job));
        let sending = send_job(
            self.hub.clone(),
            seat,
            member.commands.clone(),
            head,
            file,
            passes,
        );
        let task = self.runtime.spawn(sending);
        // The task that sent the job before has ended: its answer is here.
        member.tasks.truncate(1);
        member.tasks.push(task.abort_handle());
    }

    fn hear(&mut self, wait: Duration) -> Option<News> {
        let next = self.runtime.block_on(timeout(wait, self.heard.recv()));
        next.ok().flatten()
    }

    fn dismiss(&mut self, seat: Seat, why: &str) {
        self.hub.lose(seat, why);
    }

    fn patience(&self) -> Duration {
        self.patience
    }
}

async fn send_job(
    hub: Hub,
    seat: Seat,
    commands: Outgoing,
    head: RankJob,
    file: Option<AdapterFile>,
    passes: Vec<RankPass>,
) {
    let send =
        async |message: Command| match timeout(SEND_DEADLINE, commands.send(Ok(command(message))))
            .await
        {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err("its stream closed"),
            Err(_) => Err("it reads no commands"),
        };
    let all = async {
        send(Command::Job(head)).await?;
        if let Some(file) = file {
            let total = file.bytes.len() as u64;
            for (index, data) in file.bytes.chunks(CHUNK_BYTES).enumerate() {
                let chunk = AdapterChunk {
                    version: None,
                    offset: (index * CHUNK_BYTES) as u64,
                    total,
                    data: data.to_vec(),
                };
                send(Command::Adapter(chunk)).await?;
            }
        }
        for pass in passes {
            send(Command::Pass(pass)).await?;
        }
        Ok::<_, &str>(())
    };
    if let Err(why) = all.await {
        hub.lose(seat, why);
    }
}
