//! A wire between roles and their coordinator that a test can cut: it counts the bytes that go over
//! it, and at the one that is asked for it holds everything still and says so.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the role.
    Up,
    /// To the role.
    Down,
}

/// A byte at which the wire is to stop.
struct Trap {
    direction: Direction,
    left: u64,
    sprung: mpsc::Sender<()>,
}

#[derive(Default)]
struct State {
    trap: Mutex<Option<Trap>>,
    /// Bytes so far: up, down.
    bytes: [AtomicU64; 2],
    connections: Mutex<Vec<TcpStream>>,
    closed: AtomicBool,
}

/// See the module's page. Roles dial [`Wire::url`].
pub(crate) struct Wire {
    port: u16,
    state: Arc<State>,
}

impl Wire {
    /// A wire to the coordinator whose address stands in this file, whenever there is one.
    pub(crate) fn new(address_file: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let shared = state.clone();
        thread::spawn(move || {
            for role in listener.incoming().flatten() {
                if shared.closed.load(Ordering::Relaxed) {
                    return;
                }
                let address = fs::read_to_string(&address_file).unwrap_or_default();
                let address = address.trim().trim_start_matches("http://");
                // Nobody there: the role finds its connection closed, and dials again.
                if let Ok(coordinator) = TcpStream::connect(address) {
                    join(&shared, &role, &coordinator);
                }
            }
        });
        Self { port, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Bytes that went over it so far, up and down.
    pub(crate) fn bytes(&self) -> [u64; 2] {
        [0, 1].map(|way: usize| self.state.bytes[way].load(Ordering::Relaxed))
    }

    /// From now on so many bytes go this way; then nothing goes any way, and the receiver hears of it.
    pub(crate) fn stop_after(&self, direction: Direction, bytes: u64) -> mpsc::Receiver<()> {
        let (sprung, told) = mpsc::channel();
        *self.state.trap.lock().unwrap() = Some(Trap {
            direction,
            left: bytes,
            sprung,
        });
        told
    }

    /// [`Wire::cut`], if the wire holds everything still.
    pub(crate) fn cut_where_held(&self) {
        let trap = self.state.trap.lock().unwrap();
        let held = trap.as_ref().is_some_and(|trap| trap.left == 0);
        drop(trap);
        if held {
            self.cut();
        }
    }

    /// Ends all connections, and lets new ones through.
    pub(crate) fn cut(&self) {
        let mut trap = self.state.trap.lock().unwrap();
        *trap = None;
        for connection in self.state.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::Relaxed);
        self.cut();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn join(state: &Arc<State>, role: &TcpStream, coordinator: &TcpStream) {
    let clone = |stream: &TcpStream| stream.try_clone().unwrap();
    state
        .connections
        .lock()
        .unwrap()
        .extend([clone(role), clone(coordinator)]);
    for (direction, from, to) in [
        (Direction::Up, role, coordinator),
        (Direction::Down, coordinator, role),
    ] {
        let (state, mut from, mut to) = (state.clone(), clone(from), clone(to));
        let _ = from.set_nodelay(true);
        thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                if !pass(&state, direction, &buffer[..count], &mut to) {
                    break;
                }
            }
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
}

/// Sends bytes on, up to the trap's; false when the connection is over.
fn pass(state: &State, direction: Direction, bytes: &[u8], to: &mut TcpStream) -> bool {
    let mut trap = state.trap.lock().unwrap();
    let allowed = match &mut *trap {
        Some(trap) if trap.direction == direction => {
            let allowed = trap.left.min(bytes.len() as u64);
            trap.left -= allowed;
            allowed as usize
        }
        // Sprung: held still.
        Some(trap) if trap.left == 0 => 0,
        _ => bytes.len(),
    };
    state.bytes[usize::from(direction == Direction::Down)]
        .fetch_add(allowed as u64, Ordering::Relaxed);
    if to.write_all(&bytes[..allowed]).is_err() {
        return false;
    }
    if let Some(trap) = trap.as_ref().filter(|trap| trap.left == 0) {
        let _ = trap.sprung.send(());
    }
    drop(trap);
    if allowed == bytes.len() {
        return true;
    }
    // The rest never comes: whoever set the trap cuts the wire.
    while state
        .trap
        .lock()
        .unwrap()
        .as_ref()
        .is_some_and(|trap| trap.left == 0)
    {
        thread::sleep(Duration::from_millis(1));
    }
    false
}
