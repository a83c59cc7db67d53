//! What a role's shell stands on: connections, and threads for work that blocks.
//!
//! They are the system's, unless the thread has been given a simulated [`World`] ([`simulate`]): then
//! connections are that world's, and all work is done on the one thread and takes as long as the
//! world says. The same shells run in both; in a world what happens depends on its seed alone.

use std::{cell::RefCell, fmt, io, net::SocketAddr, ops::ControlFlow, sync::Arc, time::Duration};

use futures::{future::BoxFuture, stream::BoxStream};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tonic::transport::{Channel, Endpoint, Error};

mod connection;

pub use self::connection::{Connection, Duplex};

/// A simulated network, and how long things take in it.
pub trait World: Send + Sync {
    /// A connection from the host that asks to a port of another.
    fn dial(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Connection>>;

    /// Connections to a port of the host that asks.
    fn listen(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<Simulated>>;

    /// How long the next piece of work takes.
    fn duration(&self) -> Duration;

    /// What all processes say they are.
    fn process_id(&self) -> u32;
}

/// A simulated listener.
pub struct Simulated {
    /// Its address, with the port that was chosen.
    pub address: SocketAddr,
    /// Who dials in.
    pub incoming: BoxStream<'static, io::Result<Connection>>,
}

thread_local! {
    static WORLD: RefCell<Option<Arc<dyn World>>> = const { RefCell::new(None) };
}

/// Has this thread's shells live in `world` until what is returned is dropped.
pub fn simulate(world: Arc<dyn World>) -> Simulation {
    WORLD.with_borrow_mut(|place| *place = Some(world));
    Simulation(())
}

/// Ends the simulation of this thread when it is dropped.
#[derive(Debug)]
pub struct Simulation(());

impl Drop for Simulation {
    fn drop(&mut self) {
        WORLD.with_borrow_mut(|place| *place = None);
    }
}

/// The simulated world that this thread is in.
pub fn world() -> Option<Arc<dyn World>> {
    WORLD.with_borrow(Clone::clone)
}

/// What sets this process apart from others of this machine.
pub fn process_id() -> u32 {
    world().map_or_else(std::process::id, |world| world.process_id())
}

/// Who listens on an address.
pub enum Listener {
    /// A socket of the system.
    System(TcpListener),
    /// A simulated one.
    Simulated(Simulated),
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listener({:?})", self.address().ok())
    }
}

impl Listener {
    /// Listens on `address`.
    ///
    /// # Errors
    /// The address is taken, not of this machine, or not allowed.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        match world() {
            None => TcpListener::bind(address).await.map(Self::System),
            Some(world) => world.listen(address).await.map(Self::Simulated),
        }
    }

    /// The address, with the port that was chosen.
    ///
    /// # Errors
    /// The system can't say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::System(listener) => listener.local_addr(),
            Self::Simulated(simulated) => Ok(simulated.address),
        }
    }
}

/// Connects as the endpoint says.
pub(crate) async fn connect(endpoint: Endpoint) -> Result<Channel, Error> {
    match world() {
        None => endpoint.connect().await,
        Some(world) => {
            endpoint
                .connect_with_connector(connection::Dial(world))
                .await
        }
    }
}

/// Has work that blocks done aside from what everything else waits on.
pub fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    match world() {
        None => tokio::task::spawn_blocking(work),
        Some(world) => {
            let (done, takes) = (work(), world.duration());
            tokio::spawn(async move {
                tokio::time::sleep(takes).await;
                done
            })
        }
    }
}

/// Someone who does jobs that block, one after the other.
#[derive(Debug)]
pub enum Clerk {
    /// On a thread of its own.
    Thread(std::thread::JoinHandle<()>),
    /// In a simulated world.
    Task(JoinHandle<()>),
}

impl Clerk {
    /// Has `work` done with jobs as they come, all that wait but `most` at a time, until it breaks
    /// off or nobody is left to send any.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start<J: Send + 'static>(
        name: &str,
        most: usize,
        mut work: impl FnMut(Vec<J>) -> ControlFlow<()> + Send + 'static,
    ) -> io::Result<(mpsc::UnboundedSender<J>, Self)> {
        let (sender, mut jobs) = mpsc::unbounded_channel();
        let Some(world) = world() else {
            let thread = std::thread::Builder::new().name(name.to_owned());
            let thread = thread.spawn(move || {
                let mut some = Vec::new();
                while jobs.blocking_recv_many(&mut some, most) > 0 {
                    if work(std::mem::take(&mut some)).is_break() {
                        return;
                    }
                }
            })?;
            return Ok((sender, Self::Thread(thread)));
        };
        let task = tokio::spawn(async move {
            let mut some = Vec::new();
            while jobs.recv_many(&mut some, most).await > 0 {
                tokio::time::sleep(world.duration()).await;
                if work(std::mem::take(&mut some)).is_break() {
                    return;
                }
            }
        });
        Ok((sender, Self::Task(task)))
    }

    /// Returns when the last job is done; nobody may be left to send any.
    pub async fn done(self) {
        let _ = match self {
            Self::Thread(thread) => tokio::task::spawn_blocking(move || drop(thread.join())).await,
            Self::Task(task) => task.await,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_clerk_does_every_job_in_order_and_then_ends() {
        let (tell, mut heard) = mpsc::unbounded_channel();
        let (jobs, clerk) = Clerk::start("clerk", 3, move |some: Vec<u32>| {
            assert!(some.len() <= 3);
            some.into_iter().for_each(|job| tell.send(job).unwrap());
            ControlFlow::Continue(())
        })
        .unwrap();
        (0..10).for_each(|job| jobs.send(job).unwrap());
        drop(jobs);
        clerk.done().await;
        let mut done = Vec::new();
        heard.recv_many(&mut done, 100).await;
        assert_eq!(done, (0..10).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_clerk_that_breaks_off_takes_no_more_jobs() {
        let (jobs, clerk) = Clerk::start("clerk", 1, |_: Vec<u32>| ControlFlow::Break(())).unwrap();
        jobs.send(1).unwrap();
        clerk.done().await;
        assert!(jobs.send(2).is_err());
    }
}
