//! Relays against each other, and against sources that break, stall and lie.

use futures::StreamExt as _;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use super::{
    super::{AdapterTransport as _, Checks, GrpcTransport, Relayed, Source, chunks},
    *,
};
use crate::{
    client::{ClientOptions, connect},
    v1::{AdapterLeg, adapters_server::AdaptersServer},
};

const CHUNK: u64 = CHUNK_BYTES as u64;
/// Pieces of the adapter of these tests.
const PIECES: usize = 6;

/// A source of the adapter whose chunks come as they are let through.
#[derive(Clone, Debug)]
struct Origin {
    adapter: Arc<(PolicyVersion, Vec<u8>)>,
    /// Chunks that may be sent, all streams together.
    gate: Arc<Semaphore>,
    /// After so many chunks of a stream it breaks.
    breaks_after: usize,
    /// This byte is another.
    spoilt: Option<usize>,
    /// Offsets asked for.
    offsets: Arc<Mutex<Vec<u64>>>,
}

impl Origin {
    fn new() -> Self {
        let bytes: Vec<u8> = (0..(PIECES - 1) * CHUNK_BYTES + 17)
            .map(|i| ((i * 31) >> 3) as u8)
            .collect();
        Self {
            adapter: Arc::new((PolicyVersion::of_bytes(4, &bytes), bytes)),
            gate: Arc::new(Semaphore::new(1000)),
            breaks_after: usize::MAX,
            spoilt: None,
            offsets: Arc::default(),
        }
    }

    /// Lets through no chunk but by [`Origin::let_through`].
    fn held(self) -> Self {
        let gate = Arc::new(Semaphore::new(0));
        Self { gate, ..self }
    }

    fn breaks_after(self, breaks_after: usize) -> Self {
        Self {
            breaks_after,
            ..self
        }
    }

    fn spoilt(self, byte: usize) -> Self {
        let spoilt = Some(byte);
        Self { spoilt, ..self }
    }

    fn let_through(&self, chunks: usize) {
        self.gate.add_permits(chunks);
    }

    fn asked(&self) -> Vec<u64> {
        self.offsets.lock().unwrap().clone()
    }

    fn version(&self) -> &PolicyVersion {
        &self.adapter.0
    }

    fn bytes(&self) -> &[u8] {
        &self.adapter.1
    }

    fn checks(&self) -> Checks {
        Checks::of_bytes(self.bytes())
    }

    async fn serve(&self) -> ClientOptions {
        serve(self.clone()).await
    }
}

#[tonic::async_trait]
impl Adapters for Origin {
    type FetchStream = Pin<Box<dyn Stream<Item = Result<AdapterChunk, Status>> + Send>>;

    async fn fetch(
        &self,
        request: Request<AdapterRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let AdapterRequest { offset, .. } = request.into_inner();
        self.offsets.lock().unwrap().push(offset);
        let (version, mut bytes) = (*self.adapter).clone();
        if let Some(spoilt) = self.spoilt {
            bytes[spoilt] ^= 1;
        }
        let gate = self.gate.clone();
        let chunks = chunks(version, bytes.into(), offset)?
            .take(self.breaks_after)
            .then(move |chunk| {
                let gate = gate.clone();
                async move {
                    gate.acquire_owned().await.unwrap().forget();
                    chunk
                }
            });
        Ok(Response::new(chunks.boxed()))
    }

    async fn publish(
        &self,
        _: Request<Streaming<AdapterChunk>>,
    ) -> Result<Response<PublishReply>, Status> {
        Err(Status::unimplemented("nothing is published here"))
    }
}

async fn serve(service: impl Adapters) -> ClientOptions {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = Server::builder()
        .add_service(AdaptersServer::new(service))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    ClientOptions {
        url,
        ..ClientOptions::default()
    }
}

async fn grpc(at: &ClientOptions) -> GrpcTransport {
    let channel = connect(at).await.unwrap();
    GrpcTransport::new(channel, at.interceptor().unwrap())
}

/// A way from these, in order, and last from the origin.
async fn way(sources: &[(&str, &ClientOptions)], origin: &Origin) -> Relayed {
    let at = origin.serve().await;
    let sources = sources.iter().map(|(name, relay)| {
        Source::new((*name).to_owned(), &relay.url, &ClientOptions::default()).unwrap()
    });
    Relayed::new(grpc(&at).await)
        .with_sources(sources.collect(), origin.checks(), 1)
        .with_silence(Duration::from_millis(400))
}

fn leg(worker: &str, bytes: u64) -> (String, u64, bool) {
    (worker.to_owned(), bytes, false)
}

fn told(legs: &[AdapterLeg]) -> Vec<(String, u64, bool)> {
    legs.iter()
        .map(|leg| (leg.worker_id.clone(), leg.bytes, leg.wrong_bytes))
        .collect()
}

/// Waits until the relay has so many right bytes.
async fn has(relay: &Relay, origin: &Origin, bytes: u64) {
    let transfer = relay.wait_for(&origin.version().digest).await.unwrap();
    let mut progress = transfer.progress();
    let enough = progress.wait_for(|progress| progress.good >= bytes);
    drop(
        timeout(Duration::from_secs(10), enough)
            .await
            .unwrap()
            .unwrap(),
    );
}

#[tokio::test]
async fn a_relay_hands_on_what_it_has_while_the_rest_is_still_coming() {
    let origin = Origin::new().held();
    let (relay, below) = (Relay::new(4), Relay::new(4));
    let first = way(&[], &origin).await.with_relay(Some(relay.clone()));
    let second = way(&[("first", &serve(relay.clone()).await)], &origin)
        .await
        .with_silence(Duration::from_secs(20))
        .with_relay(Some(below.clone()));
    let version = origin.version().clone();
    let [first, second] = [first, second].map(|way| {
        let version = version.clone();
        tokio::spawn(async move { way.fetch(&version).await })
    });
    origin.let_through(2);
    has(&relay, &origin, 2 * CHUNK).await;
    has(&below, &origin, 2 * CHUNK).await;
    assert!(!first.is_finished() && !second.is_finished());
    origin.let_through(PIECES);
    let [first, second] = [first.await.unwrap(), second.await.unwrap()];
    let total = origin.bytes().len() as u64;
    assert_eq!(told(&first.legs), [leg("", total)]);
    assert_eq!(told(&second.legs), [leg("first", total)]);
    for fetched in [first, second] {
        assert!(**fetched.bytes.unwrap() == *origin.bytes());
    }
    assert_eq!(origin.asked(), [0], "the source was asked once for both");
    assert_eq!(relay.sent(), total);
    // All of it is there for whoever comes later, from any byte on.
    let late = grpc(&serve(below).await).await;
    assert!(late.fetch(&version).await.unwrap() == origin.bytes());
}

#[tokio::test]
async fn a_fetch_goes_on_with_the_next_source_from_the_byte_where_one_broke() {
    let (first, second) = (Origin::new().breaks_after(2), Origin::new().breaks_after(1));
    let origin = Origin::new();
    let sources = [
        ("first", &first.serve().await),
        ("second", &second.serve().await),
    ];
    let fetched = way(&sources, &origin).await.fetch(origin.version()).await;
    assert!(**fetched.bytes.unwrap() == *origin.bytes());
    let rest = origin.bytes().len() as u64 - 3 * CHUNK;
    let expected = [leg("first", 2 * CHUNK), leg("second", CHUNK), leg("", rest)];
    assert_eq!(told(&fetched.legs), expected);
    assert_eq!(first.asked(), [0]);
    assert_eq!(second.asked(), [2 * CHUNK]);
    assert_eq!(origin.asked(), [3 * CHUNK]);
    assert!(fetched.legs[0].problem.contains("ended early"));
    assert!(fetched.legs[2].problem.is_empty());
}

#[tokio::test]
async fn wrong_bytes_are_found_when_they_come_named_and_never_handed_on() {
    let liar = Origin::new().spoilt(3 * CHUNK_BYTES + 5);
    let origin = Origin::new().held();
    let relay = Relay::new(1);
    let way = way(&[("liar", &liar.serve().await)], &origin)
        .await
        .with_relay(Some(relay.clone()));
    let version = origin.version().clone();
    let fetch = tokio::spawn(async move { way.fetch(&version).await });
    has(&relay, &origin, 3 * CHUNK).await;
    let transfer = relay.find(&origin.version().digest).unwrap();
    // The coordinator is asked for the rest by now, and gives nothing yet.
    while origin.asked().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(origin.asked(), [3 * CHUNK]);
    assert_eq!(transfer.progress().borrow().good, 3 * CHUNK);
    assert!(transfer.read(3 * CHUNK, 1).is_empty());
    origin.let_through(PIECES);
    let fetched = fetch.await.unwrap();
    assert!(**fetched.bytes.unwrap() == *origin.bytes());
    let rest = origin.bytes().len() as u64 - 3 * CHUNK;
    let expected = [("liar".to_owned(), 3 * CHUNK, true), leg("", rest)];
    assert_eq!(told(&fetched.legs), expected);
    assert!(
        fetched.legs[0]
            .problem
            .contains(&format!("ends at byte {}", 4 * CHUNK))
    );
}

#[tokio::test]
async fn a_silent_source_and_one_that_nobody_answers_at_cost_a_deadline_each() {
    let silent = Origin::new().held();
    silent.let_through(1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = ClientOptions {
        url: format!("http://{}", listener.local_addr().unwrap()),
        ..ClientOptions::default()
    };
    drop(listener);
    let origin = Origin::new();
    let sources = [("gone", &gone), ("silent", &silent.serve().await)];
    let way = way(&sources, &origin).await;
    let fetched = timeout(Duration::from_secs(10), way.fetch(origin.version()));
    let fetched = fetched.await.unwrap();
    assert!(**fetched.bytes.unwrap() == *origin.bytes());
    let rest = origin.bytes().len() as u64 - CHUNK;
    assert_eq!(
        told(&fetched.legs),
        [leg("gone", 0), leg("silent", CHUNK), leg("", rest)]
    );
    let problems: Vec<_> = fetched
        .legs
        .iter()
        .map(|leg| leg.problem.as_str())
        .collect();
    assert!(problems[0].contains(&gone.url), "{problems:?}");
    assert!(
        problems[1].contains("no chunk within 0.4 s"),
        "{problems:?}"
    );
}

#[tokio::test]
async fn a_relay_that_loses_its_own_source_says_so_at_once() {
    let origin = Origin::new().breaks_after(2);
    let relay = Relay::new(1);
    let at = serve(relay.clone()).await;
    let version = origin.version().clone();
    // The coordinator itself lies: the relay's fetch fails for good.
    let liar = Origin::new().spoilt(3 * CHUNK_BYTES);
    let failing = way(&[], &liar).await.with_relay(Some(relay.clone()));
    let whole = Origin::new();
    let child = way(&[("relay", &at)], &whole)
        .await
        .with_silence(Duration::from_secs(60));
    let (failed, fetched) = tokio::join!(failing.fetch(&version), child.fetch(&version));
    assert!(failed.bytes.is_err() && !failed.legs[0].problem.is_empty());
    assert!(**fetched.bytes.unwrap() == *whole.bytes());
    assert_eq!(fetched.legs[0].bytes, 3 * CHUNK);
    assert!(
        fetched.legs[0].problem.contains("could not get all"),
        "{:?}",
        fetched.legs
    );
}

#[tokio::test]
async fn a_relay_takes_no_more_readers_than_it_may_and_a_place_is_free_again_after_one() {
    let origin = Origin::new().held();
    let relay = Relay::new(2);
    let at = serve(relay.clone()).await;
    let way_here = way(&[], &origin).await.with_relay(Some(relay.clone()));
    let version = origin.version().clone();
    let fetch = tokio::spawn({
        let version = version.clone();
        async move { way_here.fetch(&version).await }
    });
    has(&relay, &origin, 0).await;
    let ask = async || {
        let channel = connect(&at).await.unwrap();
        let request = AdapterRequest {
            digest: version.digest.clone(),
            offset: 0,
        };
        let mut client = crate::client::adapters_client(channel, at.interceptor().unwrap());
        client.fetch(request).await.map(Response::into_inner)
    };
    let (one, two) = (ask().await.unwrap(), ask().await.unwrap());
    assert_eq!(
        ask().await.unwrap_err().code(),
        tonic::Code::ResourceExhausted
    );
    drop(one);
    timeout(Duration::from_secs(10), async {
        while ask().await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    drop(two);
    origin.let_through(PIECES);
    assert!(fetch.await.unwrap().bytes.is_ok());
}

#[tokio::test]
async fn an_adapter_that_is_announced_to_the_child_first_is_waited_for_a_moment() {
    let origin = Origin::new();
    let relay = Relay::new(2);
    let at = serve(relay.clone()).await;
    let child = way(&[("relay", &at)], &origin)
        .await
        .with_silence(Duration::from_secs(20));
    let later = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        relay.hold(origin.version().clone(), Arc::new(origin.bytes().to_vec()));
    };
    let (fetched, ()) = tokio::join!(child.fetch(origin.version()), later);
    assert!(fetched.bytes.is_ok());
    assert_eq!(
        told(&fetched.legs),
        [leg("relay", origin.bytes().len() as u64)]
    );
    // What nobody ever sends is refused in the end.
    let unheard = PolicyVersion::of_bytes(9, b"unheard of");
    let error = grpc(&at)
        .await
        .fetch(&unheard)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("has no adapter"), "{error}");
}

#[test]
fn tokens_go_over_tls_or_stay_on_the_machine() {
    let secret = ClientOptions {
        url: "https://coordinator:1".to_owned(),
        token: Some("secret".to_owned()),
        ca_pem: Some(b"-----BEGIN".to_vec()),
        ..ClientOptions::default()
    };
    let source = |relay: &str| Source::new("w".to_owned(), relay, &secret);
    assert!(source("http://127.0.0.1:5").is_ok() && source("https://other:5").is_ok());
    for open in ["http://other:5", "http://10.0.0.1:5", "other:5"] {
        assert!(source(open).is_err(), "{open}");
    }
    let plain = ClientOptions::default();
    let error = Source::new("w".to_owned(), "https://other:5", &plain).unwrap_err();
    assert!(error.contains("certificate"), "{error}");
}
