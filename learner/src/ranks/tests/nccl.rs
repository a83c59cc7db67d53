//! Gradients over a collective of the test's own.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Condvar,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use tina_proto::{
    adapters::{Collective, NCCL_ID_BYTES},
    v1::NcclGroup,
};

use super::{client::run_with, *};

/// What was sent and not received yet, by group.
#[derive(Default)]
struct Wire {
    sent: Mutex<BTreeMap<Vec<u8>, VecDeque<Vec<u8>>>>,
    arrived: Condvar,
    ids: AtomicU32,
    received: AtomicUsize,
    /// Of the broadcast of this number another byte arrives than was sent.
    noisy: Option<usize>,
}

struct Rank(Arc<Wire>);

impl Collective for Rank {
    fn new_id(&mut self) -> Result<Vec<u8>, String> {
        let id = self.0.ids.fetch_add(1, Ordering::SeqCst) as u8;
        Ok(vec![id; NCCL_ID_BYTES])
    }

    fn broadcast(&mut self, group: &NcclGroup, mut bytes: Vec<u8>) -> Result<Vec<u8>, String> {
        assert!(group.lasting && group.world == 2, "{group:?}");
        let mut sent = self.0.sent.lock().unwrap();
        if group.rank == 0 {
            sent.entry(group.id.clone())
                .or_default()
                .push_back(bytes.clone());
            self.0.arrived.notify_all();
            return Ok(bytes);
        }
        loop {
            if let Some(content) = sent.get_mut(&group.id).and_then(VecDeque::pop_front) {
                bytes.copy_from_slice(&content);
                let number = self.0.received.fetch_add(1, Ordering::SeqCst);
                bytes[5] ^= u8::from(self.0.noisy == Some(number));
                return Ok(bytes);
            }
            sent = self.0.arrived.wait(sent).unwrap();
        }
    }
}

impl Wire {
    fn end(self: &Arc<Self>) -> Nccl {
        let wire = self.clone();
        Nccl::over(move || Ok(Box::new(Rank(wire)))).with_deadline(Duration::from_secs(5))
    }
}

/// Steps with two ranks that may send by `wire`; how many gradients were received by it.
async fn train_over(wire: Wire) -> (Made, usize) {
    let wire = Arc::new(wire);
    let mut stage = Stage::new(2);
    stage.spec.learner.as_mut().unwrap().ranks_by_nccl = true;
    // Ranks say that they compute on "cpu", which is another device.
    let own = (wire.end(), "cuda:0".to_owned());
    let mut crew = stage.open_with(patience(), Some(own)).await;
    for name in ["a", "b"] {
        let (options, nccl) = (stage.options(name), Some(wire.end()));
        tokio::spawn(run_with(options, nccl, std::future::pending()));
    }
    ready(&mut crew, 2).await;
    let made = train_with(&stage, crew, &Watch::default()).await;
    (made, wire.received.load(Ordering::SeqCst))
}

#[tokio::test(flavor = "multi_thread")]
async fn gradients_by_nccl_make_the_same_adapters_and_metrics() {
    let alone = train(Stage::new(0).trainer(), None);
    let (made, received) = train_over(Wire::default()).await;
    assert_eq!(made, alone);
    // Two iterations a step, each with a sum of either rank at least.
    assert!(received >= 2 * 2 * (STEPS - 1), "{received} came by NCCL");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gradient_that_arrives_damaged_is_computed_again_and_the_rest_goes_by_grpc() {
    let alone = train(Stage::new(0).trainer(), None);
    let wire = Wire {
        noisy: Some(3),
        ..Wire::default()
    };
    let (made, received) = train_over(wire).await;
    assert_eq!(made, alone);
    // That of the other rank may have been on its way.
    assert!((4..=5).contains(&received), "{received} came by NCCL");
}
