//! The engine's own thread: orders in over one channel, events out over another. In a simulated
//! world a task, whose decoding steps take as long as the world says.

use std::{io, sync::Arc, thread};

use tina_proto::platform;
use tokio::sync::mpsc;

use crate::engine::{Engine, Event, Gauges, Work};

/// The engine as the service sees it. Dropping it ends the thread after the step under way.
#[derive(Debug)]
pub(crate) struct EngineThread {
    orders: mpsc::UnboundedSender<Work>,
    events: mpsc::UnboundedReceiver<Event>,
    gauges: Arc<Gauges>,
}

impl EngineThread {
    /// Moves the engine to a thread of its own. Events are as many as samples were asked for, so
    /// their channel needs no bound of its own.
    pub(crate) fn start(engine: Engine) -> io::Result<Self> {
        let (orders, mut inbox) = mpsc::unbounded_channel();
        let (outbox, events) = mpsc::unbounded_channel();
        let gauges = engine.gauges();
        let mut driver = Driver { engine, outbox };
        match platform::world() {
            None => {
                let thread = thread::Builder::new().name("engine".to_owned());
                thread.spawn(move || {
                    while driver.take(&mut inbox, mpsc::UnboundedReceiver::blocking_recv) {
                        driver.step();
                    }
                })?;
            }
            Some(world) => {
                tokio::spawn(async move {
                    loop {
                        let first = if driver.engine.is_idle() {
                            inbox.recv().await
                        } else {
                            None
                        };
                        if !driver.take(&mut inbox, |_| first) {
                            return;
                        }
                        tokio::time::sleep(world.duration()).await;
                        driver.step();
                    }
                });
            }
        }
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

type Inbox = mpsc::UnboundedReceiver<Work>;

struct Driver {
    engine: Engine,
    outbox: mpsc::UnboundedSender<Event>,
}

impl Driver {
    /// Takes all orders that there are; an idle engine waits for one by `wait`. False when nobody is
    /// left to give any.
    fn take(&mut self, inbox: &mut Inbox, wait: impl FnOnce(&mut Inbox) -> Option<Work>) -> bool {
        let mut events = Vec::new();
        if self.engine.is_idle() {
            match wait(inbox) {
                Some(work) => self.engine.submit(work, &mut events),
                None => return false,
            }
        }
        loop {
            match inbox.try_recv() {
                Ok(work) => self.engine.submit(work, &mut events),
                Err(mpsc::error::TryRecvError::Empty) => {
                    self.tell(events);
                    return true;
                }
                Err(mpsc::error::TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn step(&mut self) {
        let mut events = Vec::new();
        self.engine.step(&mut events);
        self.tell(events);
    }

    /// Who hears of events gives the orders: when it is gone, the next order won't come.
    fn tell(&self, events: Vec<Event>) {
        for event in events {
            let _ = self.outbox.send(event);
        }
    }
}
