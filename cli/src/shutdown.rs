//! When a process is to end: a signal, or a parent that is gone.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// How often a child looks whether its parent is still there.
const PARENT_INTERVAL: Duration = Duration::from_millis(500);

/// Resolves when the process is asked to end (Ctrl-C or SIGTERM). A child of a run
/// (`parent` is the process that started it) leaves Ctrl-C to its parent, which gets it too, and
/// ends when the parent is gone.
pub(crate) async fn requested(parent: Option<u32>) {
    let terminated = next(SignalKind::terminate());
    match parent {
        None => tokio::select! {
            () = terminated => {}
            () = next(SignalKind::interrupt()) => {}
        },
        Some(parent) => {
            // Taken, so that it does not end the process.
            let _interrupts = signal(SignalKind::interrupt());
            tokio::select! {
                () = terminated => {}
                () = parent_gone(parent) => tracing::warn!("the process that started this one is gone"),
            }
        }
    }
}

/// Resolves at the next signal of this kind.
pub(crate) async fn next(kind: SignalKind) {
    match signal(kind) {
        Ok(mut stream) => wait(&mut stream).await,
        Err(error) => {
            tracing::warn!("signals can't be watched: {error}");
            std::future::pending().await
        }
    }
}

async fn wait(stream: &mut Signal) {
    if stream.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
}

async fn parent_gone(parent: u32) {
    // A process whose parent has died is given to another one.
    while std::os::unix::process::parent_id() == parent {
        tokio::time::sleep(PARENT_INTERVAL).await;
    }
}
