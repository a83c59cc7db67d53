//! The least that this machine needs to bring an adapter to all workers, whoever does it: every byte goes
//! over loopback once a worker, and is hashed once a worker.

use std::{
    fmt,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
    time::Instant,
};

use serde::Serialize;
use tina_proto::version::sha256;

use crate::error::{BenchError, Result};

/// Bytes of one write.
const WRITE: usize = 512 << 10;

/// Seconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Floor {
    workers: u32,
    megabytes: f64,
    /// Plain TCP connections to all workers at the same time, nothing done with what arrives.
    loopback: f64,
    /// SHA-256 of all copies, on all processors.
    sha256: f64,
}

impl Floor {
    /// Measures both; the best of three.
    pub(super) fn measure(bytes: usize, workers: u32) -> Result<Self> {
        let adapter = vec![7; bytes];
        let (mut loopback, mut hashing) = (f64::MAX, f64::MAX);
        for _ in 0..3 {
            let copied = copy(&adapter, workers)
                .map_err(|error| BenchError::Other(format!("loopback: {error}")))?;
            loopback = loopback.min(copied);
            hashing = hashing.min(hash(&adapter, workers));
        }
        Ok(Self {
            workers,
            megabytes: bytes as f64 / 1e6,
            loopback,
            sha256: hashing,
        })
    }
}

impl fmt::Display for Floor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "floor: {} x {:.1} MB over plain TCP on loopback {:.3} s, their SHA-256 on all processors \
             {:.3} s: {:.3} s",
            self.workers,
            self.megabytes,
            self.loopback,
            self.sha256,
            self.loopback + self.sha256
        )
    }
}

fn copy(adapter: &[u8], workers: u32) -> std::io::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let pairs: Vec<(TcpStream, TcpStream)> = (0..workers)
        .map(|_| Ok((TcpStream::connect(address)?, listener.accept()?.0)))
        .collect::<std::io::Result<_>>()?;
    let began = Instant::now();
    thread::scope(|scope| {
        for (mut to, mut from) in pairs {
            scope.spawn(move || {
                let sent = adapter
                    .chunks(WRITE)
                    .try_for_each(|part| to.write_all(part));
                drop(sent);
            });
            scope.spawn(move || {
                let mut buffer = vec![0; WRITE];
                while matches!(from.read(&mut buffer), Ok(1..)) {}
            });
        }
    });
    Ok(began.elapsed().as_secs_f64())
}

fn hash(adapter: &[u8], workers: u32) -> f64 {
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| std::hint::black_box(sha256(adapter)));
        }
    });
    began.elapsed().as_secs_f64()
}
