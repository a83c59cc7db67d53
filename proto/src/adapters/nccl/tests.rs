//! Groups of ranks in one process, over a collective of the test's own.

use std::sync::{Condvar, atomic::AtomicU32, atomic::Ordering};

use super::*;

/// What rank 0 broadcasts, by group; ranks that come first wait.
#[derive(Default)]
struct Wire {
    sent: Mutex<Vec<(Vec<u8>, Vec<u8>)>>,
    arrived: Condvar,
    ids: AtomicU32,
}

struct Rank {
    wire: Arc<Wire>,
    /// Another byte arrives than was sent.
    noisy: bool,
}

impl Collective for Rank {
    fn new_id(&mut self) -> Result<Vec<u8>, String> {
        Ok(vec![
            self.wire.ids.fetch_add(1, Ordering::SeqCst) as u8;
            NCCL_ID_BYTES
        ])
    }

    fn broadcast(&mut self, group: &NcclGroup, mut bytes: Vec<u8>) -> Result<Vec<u8>, String> {
        let mut sent = self.wire.sent.lock().unwrap();
        if group.rank == 0 {
            sent.push((group.id.clone(), bytes.clone()));
            self.wire.arrived.notify_all();
            return Ok(bytes);
        }
        loop {
            if let Some((_, content)) = sent.iter().find(|(id, _)| *id == group.id) {
                bytes.copy_from_slice(content);
                bytes[0] ^= u8::from(self.noisy);
                return Ok(bytes);
            }
            sent = self.wire.arrived.wait(sent).unwrap();
        }
    }
}

fn rank(wire: &Arc<Wire>, noisy: bool) -> Nccl {
    let wire = wire.clone();
    Nccl::over(move || Ok(Box::new(Rank { wire, noisy }))).with_deadline(Duration::from_millis(300))
}

/// The way that always works; counts how often it is gone.
#[derive(Clone, Default)]
struct Sure(Arc<AtomicU32>);

impl AdapterTransport for Sure {
    fn fetch<'a>(&'a self, _: &'a PolicyVersion) -> BoxFuture<'a, Result<Vec<u8>, TransportError>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        async { Ok(CONTENT.to_vec()) }.boxed()
    }

    fn publish<'a>(
        &'a self,
        _: &'a PolicyVersion,
        _: &'a [u8],
    ) -> BoxFuture<'a, Result<(), TransportError>> {
        async { Ok(()) }.boxed()
    }
}

impl Sure {
    fn fetches(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

const CONTENT: &[u8] = b"an adapter";

fn version() -> PolicyVersion {
    PolicyVersion::of_bytes(3, CONTENT)
}

fn place(nccl: &Nccl, id: &[u8], rank: u32, sure: &Sure) -> NcclTransport<Sure> {
    let group = NcclGroup {
        id: id.to_vec(),
        rank,
        world: 3,
        lasting: false,
    };
    NcclTransport::new(nccl.clone(), group, CONTENT.len() as u64, sure.clone())
}

#[tokio::test]
async fn every_rank_gets_what_rank_0_publishes() {
    let (wire, sure) = (Arc::default(), Sure::default());
    let [learner, one, two] = [(); 3].map(|()| rank(&wire, false));
    let id = learner.offer().await;
    assert_eq!(id.len(), NCCL_ID_BYTES);
    let version = version();
    let (one, two) = (place(&one, &id, 1, &sure), place(&two, &id, 2, &sure));
    let sending = place(&learner, &id, 0, &sure);
    let (one, two, sent) = tokio::join!(
        one.fetch(&version),
        two.fetch(&version),
        sending.publish(&version, CONTENT)
    );
    assert_eq!(
        (one.unwrap(), two.unwrap()),
        (CONTENT.into(), CONTENT.into())
    );
    sent.unwrap();
    assert_eq!(sure.fetches(), 0);
}

#[tokio::test]
async fn an_id_is_offered_until_a_group_is_made_with_it() {
    let learner = rank(&Arc::default(), false);
    let first = learner.offer().await;
    assert_eq!(learner.offer().await, first);
    let sending = place(&learner, &first, 0, &Sure::default());
    sending.publish(&version(), CONTENT).await.unwrap();
    let second = learner.offer().await;
    assert!(second != first && second.len() == NCCL_ID_BYTES);
}

#[tokio::test]
async fn a_rank_that_waits_in_vain_falls_back_and_tries_no_more() {
    let (wire, sure) = (Arc::default(), Sure::default());
    let worker = rank(&wire, false);
    let id = vec![7; NCCL_ID_BYTES];
    let fetched = place(&worker, &id, 1, &sure).fetch(&version()).await;
    assert_eq!((fetched.unwrap(), sure.fetches()), (CONTENT.into(), 1));
    // Even where the broadcast would work now.
    let learner = rank(&wire, false);
    let sending = place(&learner, &id, 0, &sure);
    sending.publish(&version(), CONTENT).await.unwrap();
    let again = place(&worker, &id, 1, &sure).fetch(&version()).await;
    assert_eq!((again.unwrap(), sure.fetches()), (CONTENT.into(), 2));
    assert!(worker.offer().await.is_empty());
}

#[tokio::test]
async fn other_bytes_than_the_version_names_are_not_believed() {
    let (wire, sure) = (Arc::default(), Sure::default());
    let (learner, worker) = (rank(&wire, false), rank(&wire, true));
    let id = learner.offer().await;
    let sending = place(&learner, &id, 0, &sure);
    sending.publish(&version(), CONTENT).await.unwrap();
    let fetched = place(&worker, &id, 1, &sure).fetch(&version()).await;
    assert_eq!((fetched.unwrap(), sure.fetches()), (CONTENT.into(), 1));
}

#[tokio::test]
async fn what_is_no_group_is_fetched_at_once() {
    let (nccl, sure) = (rank(&Arc::default(), false), Sure::default());
    let good = vec![1; NCCL_ID_BYTES];
    for (id, rank) in [(&good[..5], 1), (&good[..], 3), (&good[..], 0)] {
        let fetched = place(&nccl, id, rank, &sure).fetch(&version()).await;
        assert_eq!(fetched.unwrap(), CONTENT);
    }
    assert_eq!(sure.fetches(), 3);
    let refused = place(&nccl, &good, 1, &sure)
        .publish(&version(), CONTENT)
        .await;
    assert!(matches!(refused, Err(TransportError::Nccl { .. })));
}

#[tokio::test]
async fn a_device_that_is_no_gpu_offers_nothing() {
    assert!(Nccl::on_device("cpu").offer().await.is_empty());
}

#[tokio::test]
async fn a_broadcast_that_nobody_waits_for_any_more_turns_nccl_off() {
    let nccl = rank(&Arc::default(), false);
    assert!(nccl.is_usable().await && nccl.is_on());
    let group = NcclGroup {
        id: vec![9; NCCL_ID_BYTES],
        rank: 1,
        world: 2,
        lasting: true,
    };
    let waiting = nccl.receive(&group, 10, &[0; 32]);
    assert!(timeout(Duration::from_millis(20), waiting).await.is_err());
    assert!(!nccl.is_on());
}
