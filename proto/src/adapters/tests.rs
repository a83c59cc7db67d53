//! Transfers against an in-process server that breaks, lies and forgets.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use futures::StreamExt as _;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Response, Streaming, transport::Server};

use super::*;
use crate::{
    client::{ClientOptions, connect},
    v1::{
        PublishReply,
        adapters_server::{Adapters, AdaptersServer},
    },
};

type Stored = (PolicyVersion, Arc<[u8]>);

#[derive(Default)]
struct Shelf {
    stored: Mutex<HashMap<Vec<u8>, Stored>>,
    inbox: Inbox,
    /// Offsets asked for by Fetch.
    offsets: Mutex<Vec<u64>>,
    /// Streams, in either direction, that break after two chunks.
    breaks_left: AtomicU32,
    chunks_received: AtomicU32,
}

impl Shelf {
    fn breaks(&self) -> bool {
        let take = |left: u32| left.checked_sub(1);
        self.breaks_left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take)
            .is_ok()
    }
}

#[derive(Clone)]
struct Service(Arc<Shelf>);

#[tonic::async_trait]
impl Adapters for Service {
    type FetchStream = Pin<Box<dyn Stream<Item = Result<AdapterChunk, Status>> + Send>>;

    async fn fetch(
        &self,
        request: Request<AdapterRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let AdapterRequest { digest, offset } = request.into_inner();
        self.0.offsets.lock().unwrap().push(offset);
        let (version, bytes) = self
            .0
            .stored
            .lock()
            .unwrap()
            .get(&digest)
            .cloned()
            .ok_or_else(|| Status::not_found("no such adapter"))?;
        let chunks = chunks(version, bytes, offset)?;
        Ok(Response::new(if self.0.breaks() {
            let cut = stream::iter([Err(Status::unavailable("cut"))]);
            chunks.take(2).chain(cut).boxed()
        } else {
            chunks.boxed()
        }))
    }

    async fn publish(
        &self,
        request: Request<Streaming<AdapterChunk>>,
    ) -> Result<Response<PublishReply>, Status> {
        let counted = request.into_inner().inspect(|chunk| {
            if chunk.as_ref().is_ok_and(|chunk| !chunk.data.is_empty()) {
                self.0.chunks_received.fetch_add(1, Ordering::SeqCst);
            }
        });
        let mut peeked = Box::pin(counted.peekable());
        let question = match peeked.as_mut().peek().await {
            Some(Ok(chunk)) => chunk.data.is_empty(),
            _ => false,
        };
        let stream = if !question && self.0.breaks() {
            peeked
                .take(2)
                .chain(stream::iter([Err(Status::unavailable("cut"))]))
                .boxed()
        } else {
            peeked.boxed()
        };
        let stored = |version: &PolicyVersion| {
            let stored = self.0.stored.lock().unwrap();
            stored
                .get(&version.digest)
                .map(|(_, bytes)| bytes.len() as u64)
        };
        let (version, held) = match self.0.inbox.receive(stream, stored).await? {
            Publication::Held { version, held } => (version, held),
            Publication::Complete { version, bytes, .. } => {
                let held = bytes.len() as u64;
                let entry = (version.clone(), bytes.into());
                self.0
                    .stored
                    .lock()
                    .unwrap()
                    .insert(version.digest.clone(), entry);
                (version, held)
            }
        };
        Ok(Response::new(PublishReply {
            version: Some(version),
            held,
        }))
    }
}

async fn serve() -> (Arc<Shelf>, GrpcTransport) {
    let shelf = Arc::new(Shelf::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = AdaptersServer::new(Service(Arc::clone(&shelf)));
    tokio::spawn(
        Server::builder()
            .add_service(server)
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let options = ClientOptions {
        url,
        ..ClientOptions::default()
    };
    let channel = connect(&options).await.unwrap();
    let short = Duration::from_millis(1);
    let transport =
        GrpcTransport::new(channel, options.interceptor().unwrap()).with_backoff(BackoffOptions {
            initial: short,
            max: short,
            factor: 1.0,
        });
    (shelf, transport)
}

fn adapter(bytes: usize) -> (PolicyVersion, Vec<u8>) {
    let bytes: Vec<u8> = (0..bytes).map(|i| ((i * 31) >> 3) as u8).collect();
    (PolicyVersion::of_bytes(4, &bytes), bytes)
}

#[tokio::test]
async fn what_is_published_is_fetched_byte_for_byte() {
    let (shelf, transport) = serve().await;
    for size in [1, CHUNK_BYTES, 3 * CHUNK_BYTES + 17] {
        let (version, bytes) = adapter(size);
        transport.publish(&version, &bytes).await.unwrap();
        assert_eq!(transport.fetch(&version).await.unwrap(), bytes);
        // A second time costs one question and no bytes.
        let before = shelf.chunks_received.load(Ordering::SeqCst);
        transport.publish(&version, &bytes).await.unwrap();
        assert_eq!(shelf.chunks_received.load(Ordering::SeqCst), before);
    }
}

#[tokio::test]
async fn a_fetch_that_breaks_goes_on_from_the_bytes_that_arrived() {
    let (shelf, transport) = serve().await;
    let (version, bytes) = adapter(5 * CHUNK_BYTES + 1);
    transport.publish(&version, &bytes).await.unwrap();
    shelf.breaks_left.store(2, Ordering::SeqCst);
    assert_eq!(transport.fetch(&version).await.unwrap(), bytes);
    let step = 2 * CHUNK_BYTES as u64;
    assert_eq!(*shelf.offsets.lock().unwrap(), [0, step, 2 * step]);
}

#[tokio::test]
async fn a_publication_that_breaks_goes_on_from_the_bytes_that_arrived() {
    let (shelf, transport) = serve().await;
    let (version, bytes) = adapter(5 * CHUNK_BYTES + 1);
    shelf.breaks_left.store(2, Ordering::SeqCst);
    transport.publish(&version, &bytes).await.unwrap();
    assert_eq!(transport.fetch(&version).await.unwrap(), bytes);
    // Six chunks make the whole; two more at most were in flight when a stream broke.
    assert!(shelf.chunks_received.load(Ordering::SeqCst) <= 8);
}

#[tokio::test]
async fn streams_that_never_bring_a_byte_are_given_up() {
    let (shelf, transport) = serve().await;
    let (version, bytes) = adapter(10);
    // A server that knows the name and has nothing for it.
    let entry = (version.clone(), Arc::from(Vec::new()));
    shelf
        .stored
        .lock()
        .unwrap()
        .insert(version.digest.clone(), entry);
    let error = transport.fetch(&version).await.unwrap_err();
    let TransportError::GaveUp { attempts, held, .. } = error else {
        panic!("{error}")
    };
    assert_eq!((attempts, held), (FRUITLESS_ATTEMPTS, 0));
    drop(bytes);
}

#[tokio::test]
async fn other_bytes_under_the_name_are_refused() {
    let (shelf, transport) = serve().await;
    let (version, mut bytes) = adapter(1000);
    bytes[500] ^= 1;
    let entry = (version.clone(), Arc::from(bytes.clone()));
    shelf
        .stored
        .lock()
        .unwrap()
        .insert(version.digest.clone(), entry);
    let error = transport.fetch(&version).await.unwrap_err();
    assert!(
        matches!(error, TransportError::WrongContent { .. }),
        "{error}"
    );
    let error = transport.publish(&version, &bytes).await.unwrap_err();
    assert!(
        matches!(error, TransportError::WrongContent { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn an_unknown_version_is_refused_at_once() {
    let (shelf, transport) = serve().await;
    let error = transport.fetch(&adapter(10).0).await.unwrap_err();
    assert!(matches!(error, TransportError::Refused { .. }), "{error}");
    assert_eq!(shelf.offsets.lock().unwrap().len(), 1);
    let nameless = PolicyVersion {
        step: 1,
        digest: vec![1, 2],
    };
    let error = transport.fetch(&nameless).await.unwrap_err();
    assert!(matches!(error, TransportError::BadDigest(_)), "{error}");
}

#[tokio::test]
async fn an_adapter_above_the_limit_is_refused_before_its_bytes_are_kept() {
    let (_, transport) = serve().await;
    let (version, bytes) = adapter(1000);
    transport.publish(&version, &bytes).await.unwrap();
    let error = transport.with_limit(999).fetch(&version).await.unwrap_err();
    assert!(error.to_string().contains("1 to 999"), "{error}");
}

fn chunk(version: &PolicyVersion, offset: u64, total: u64, data: &[u8]) -> AdapterChunk {
    AdapterChunk {
        version: Some(version.clone()),
        offset,
        total,
        data: data.to_vec(),
    }
}

#[test]
fn chunks_that_do_not_fit_are_refused() {
    let (version, bytes) = adapter(100);
    let other = PolicyVersion::of_bytes(4, b"other");
    let cases = [
        (chunk(&version, 0, 0, b""), "size"),
        (chunk(&version, 0, u64::MAX, &bytes[..10]), "size"),
        (chunk(&version, 5, 100, &bytes[5..]), "offset 5"),
        (chunk(&version, 0, 50, &bytes), "more than"),
        (chunk(&other, 0, 100, &bytes), "another version"),
    ];
    for (chunk, words) in cases {
        let mut assembly = Assembly::new(version.clone(), 1000).unwrap();
        let error = assembly.push(chunk).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert_eq!(assembly.held(), 0);
    }
    let mut assembly = Assembly::new(version.clone(), 1000).unwrap();
    assembly
        .push(chunk(&version, 0, 100, &bytes[..50]))
        .unwrap();
    assert!(
        assembly
            .push(chunk(&version, 50, 90, &bytes[50..]))
            .is_err()
    );
    assembly
        .push(chunk(&version, 50, 100, &bytes[50..]))
        .unwrap();
    assert!(assembly.is_complete());
    assert_eq!(*assembly.finish().unwrap(), bytes);
}

#[tokio::test]
async fn the_inbox_refuses_a_publication_that_names_no_version_or_lies() {
    let inbox = Inbox::new(1000);
    let (version, mut bytes) = adapter(100);
    let nameless = AdapterChunk {
        total: 100,
        data: bytes.clone(),
        ..AdapterChunk::default()
    };
    let status = inbox
        .receive(stream::iter([Ok(nameless)]), |_| None)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    bytes[0] ^= 1;
    let lie = chunk(&version, 0, 100, &bytes);
    let status = inbox
        .receive(stream::iter([Ok(lie)]), |_| None)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::DataLoss);
    // Nothing of the lie is kept.
    let question = chunk(&version, 0, 100, b"");
    let answer = inbox
        .receive(stream::iter([Ok(question)]), |_| None)
        .await
        .unwrap();
    assert_eq!(answer, Publication::Held { version, held: 0 });
}
