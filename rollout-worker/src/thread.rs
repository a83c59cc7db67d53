//! The engine's own thread: orders in over one channel, events out over another.

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
};

use tokio::sync::mpsc as events;

use crate::engine::{Engine, Event, Gauges, Work};

/// The engine as the service sees it. Dropping it ends the thread after the step under way.
#[derive(Debug)]
pub(crate) struct EngineThread {
    orders: mpsc::Sender<Work>,
    events: events::UnboundedReceiver<Event>,
    gauges: Arc<Gauges>,
}

impl EngineThread {
    /// Moves the engine to a thread of its own. Events are as many as samples were asked for, so
    /// their channel needs no bound of its own.
    pub(crate) fn start(engine: Engine) -> io::Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let (outbox, events) = events::unbounded_channel();
        let gauges = engine.gauges();
        thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || drive(engine, &inbox, &outbox))?;
        Ok(Self {
            orders,
            events,
            gauges,
        })
    }

    /// Hands over an order; false once the engine has stopped.
    pub(crate) fn send(&self, work: Work) -> bool {
        self.orders.send(work).is_ok()
    }

    /// The next event; `None` once the engine has stopped. Safe to cancel.
    pub(crate) async fn event(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The engine's load.
    pub(crate) fn gauges(&self) -> &Gauges {
        &self.gauges
    }
}

fn drive(
    mut engine: Engine,
    inbox: &mpsc::Receiver<Work>,
    outbox: &events::UnboundedSender<Event>,
) {
    let mut events = Vec::new();
    loop {
        if engine.is_idle() {
            match inbox.recv() {
                Ok(work) => engine.submit(work, &mut events),
                Err(mpsc::RecvError) => return,
            }
        }
        loop {
            match inbox.try_recv() {
                Ok(work) => engine.submit(work, &mut events),
                Err(mpsc::TryRecvError::Empty) => break,
                Err(mpsc::TryRecvError::Disconnected) => return,
            }
        }
        engine.step(&mut events);
        for event in events.drain(..) {
            if outbox.send(event).is_err() {
                return;
            }
        }
    }
}
