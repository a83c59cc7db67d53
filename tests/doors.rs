//! A cluster behind mutual TLS and tokens: real processes, with what `tina certs` and `tina token` make.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use support::{Bench, PATIENCE, tina};
use tina_proto::{
    client::{self, ClientIdentity, ClientOptions, connect},
    v1::{
        self, AdapterChunk, ControlRequest, LearnerMessage, RunStatus, StatusRequest, WorkerMessage,
    },
};
use tokio::time::timeout;
use tonic::{Code, Status};

/// What the command prints; it must succeed.
fn print(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}:\n{out}{error}");
    out.trim().to_owned()
}

/// A cluster's secret and certificates, and the address of its coordinator.
struct Cluster {
    url: String,
    secret: String,
    certs: PathBuf,
}

/// How a call ended that nobody waits for the answer of.
type Outcome = Result<(), Code>;

fn outcome<T>(reply: Result<T, Status>) -> Outcome {
    reply.map(drop).map_err(|status| status.code())
}

impl Cluster {
    /// The token of a role, as `tina token` prints it.
    fn token(&self, role: &str) -> String {
        let mut command = tina();
        command.env("TINA_TOKEN", &self.secret);
        print(command.args(["token", "--role", role]))
    }

    fn identity(&self, role: &str) -> ClientIdentity {
        identity(&self.certs, role)
    }

    /// One who dials with this token and the certificate of this role.
    fn caller(&self, token: &str, certificate: Option<&str>) -> ClientOptions {
        ClientOptions {
            url: self.url.clone(),
            token: Some(token.to_owned()),
            ca_pem: Some(fs::read(self.certs.join("ca.pem")).unwrap()),
            identity: certificate.map(|role| self.identity(role)),
        }
    }

    /// The program with a role's token and certificate alone.
    fn by_hand(&self, role: &str) -> Command {
        let mut command = tina();
        command
            .env("TINA_TOKEN", self.token(role))
            .env("TINA_CA", self.certs.join("ca.pem"))
            .env("TINA_CERT", self.certs.join(format!("{role}.pem")))
            .env("TINA_KEY", self.certs.join(format!("{role}.key")));
        command
    }

    /// One who has both of a role.
    fn role(&self, role: &str) -> ClientOptions {
        self.caller(&self.token(role), Some(role))
    }
}

fn identity(folder: &Path, role: &str) -> ClientIdentity {
    let read = |ending: &str| fs::read(folder.join(format!("{role}.{ending}"))).unwrap();
    ClientIdentity {
        cert_pem: read("pem"),
        key_pem: read("key"),
    }
}

/// Every kind of call that a coordinator takes; `None`: not even the connection came about.
#[derive(Debug, PartialEq)]
struct Calls {
    status: Outcome,
    order: Outcome,
    work: Outcome,
    learn: Outcome,
    fetch: Outcome,
    publish: Outcome,
}

impl Calls {
    /// Makes them all. None of them is whole: who is let in is told so for another reason.
    async fn of(options: &ClientOptions) -> Option<Self> {
        let channel = connect(options).await.ok()?;
        let auth = options.interceptor().unwrap();
        let mut adapters = client::adapters_client(channel.clone(), auth.clone());
        let nothing = tokio_stream::iter::<[WorkerMessage; 0]>([]);
        let nobody = tokio_stream::iter::<[LearnerMessage; 0]>([]);
        let chunks = tokio_stream::iter::<[AdapterChunk; 0]>([]);
        let unknown = v1::AdapterRequest {
            digest: vec![7; 32],
            offset: 0,
        };
        Some(Self {
            status: outcome(
                client::status_client(channel.clone(), auth.clone())
                    .get_status(StatusRequest {})
                    .await,
            ),
            // To resume what isn't paused changes nothing.
            order: outcome(
                client::control_client(channel.clone(), auth.clone())
                    .resume(ControlRequest {})
                    .await,
            ),
            work: outcome(
                client::rollouts_client(channel.clone(), auth.clone())
                    .work(nothing)
                    .await,
            ),
            learn: outcome(client::learning_client(channel, auth).learn(nobody).await),
            fetch: outcome(adapters.fetch(unknown).await),
            publish: outcome(adapters.publish(chunks).await),
        })
    }

    /// All alike.
    fn all(code: Code) -> Self {
        let [status, order, work, learn, fetch, publish] = [Err(code); 6];
        Self {
            status,
            order,
            work,
            learn,
            fetch,
            publish,
        }
    }
}

async fn status(options: &ClientOptions) -> Option<RunStatus> {
    let channel = connect(options).await.ok()?;
    let mut client = client::status_client(channel, options.interceptor().ok()?);
    Some(client.get_status(StatusRequest {}).await.ok()?.into_inner())
}

/// Makes certificates in the folder, as `tina certs` does.
fn make_certs(out: &Path) -> Command {
    let mut command = tina();
    command
        .args(["certs", "--host", "10.9.8.7", "--out"])
        .arg(out);
    command
}

/// A run behind mutual TLS that goes on until it is stopped.
fn behind_tls<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let settings = [
        "cluster.token_file=token",
        "cluster.tls_cert=certs/coordinator.pem",
        "cluster.tls_key=certs/coordinator.key",
        "cluster.tls_ca=certs/ca.pem",
        "cluster.tls_client_ca=certs/ca.pem",
        "run.steps=1000000",
        "learner.schedule_steps=100",
        "eval.before=false",
        "eval.after=false",
    ];
    let settings = settings.iter().chain(more);
    settings.flat_map(|set| ["--set", set]).collect()
}

#[test]
fn a_cluster_behind_mutual_tls_runs_and_each_caller_may_what_its_role_may() {
    let bench = Bench::new();
    let certs = bench.path("certs");
    print(&mut make_certs(&certs));
    let again = make_certs(&certs).output().unwrap();
    assert!(!again.status.success(), "certificates were overwritten");
    let strangers = bench.path("strangers");
    print(&mut make_certs(&strangers));
    let secret = print(tina().args(["token", "--new"]));
    fs::write(bench.path("token"), &secret).unwrap();

    let mut up = bench.up("doors", &behind_tls(&[]));
    let cluster = Cluster {
        url: up.address(),
        secret,
        certs,
    };
    // A second worker by hand, as on another machine: with a worker's token and certificate alone.
    let by_hand = cluster.by_hand("worker");
    let _worker = bench.join_by(by_hand, &cluster.url, "rollout-worker", &[]);

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let reader = cluster.role("reader");
    let began = Instant::now();
    loop {
        assert!(!up.has_ended(), "{}", up.finish().stderr);
        assert!(began.elapsed() < PATIENCE, "no steps by two workers");
        let at_work = |worker: &v1::WorkerStatus| worker.tokens_total > 0;
        match runtime.block_on(status(&reader)) {
            Some(now)
                if now.step >= 3 && now.workers.len() == 2 && now.workers.iter().all(at_work) =>
            {
                break;
            }
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
    runtime.block_on(each_caller(&cluster, &strangers));

    let folder = bench.path("runs/doors");
    let shown = print(tina().args(["status", "--json"]).arg(&folder));
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert!(shown["step"].as_u64().unwrap() >= 3, "{shown}");
    assert!(!shown.to_string().contains(&cluster.secret));
    let mut refused = cluster.by_hand("reader");
    refused.args(["control", "stop", "--coordinator", &cluster.url]);
    let refused = refused.output().unwrap();
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && words.contains("is for operator"),
        "{words}"
    );
    print(tina().args(["control", "stop"]).arg(&folder));
    let ended = up.finish();
    assert!(ended.summary()["steps"].as_u64() >= Some(3));
    assert!(ended.stderr.contains("Stopped early"), "{}", ended.stderr);
    assert_eq!(bench.samplers("doors"), 2);

    // No secret and no token stands in anything that is written or said.
    let mut said = vec![ended.stdout, ended.stderr];
    for file in ["config.toml", "logs/learner.log", "logs/worker-0.log"] {
        said.push(fs::read_to_string(folder.join(file)).unwrap());
    }
    let tokens = ["worker", "learner", "reader"].map(|role| cluster.token(role));
    for text in said {
        assert!(!text.contains(&cluster.secret));
        assert!(!tokens.iter().any(|token| text.contains(token)));
    }
}

async fn each_caller(cluster: &Cluster, strangers: &Path) {
    use Code::{InvalidArgument, NotFound, PermissionDenied, Unauthenticated};
    const LET_IN: Outcome = Ok(());
    let denied = || Calls::all(PermissionDenied);
    let calls = async |options: ClientOptions| {
        let calls = timeout(PATIENCE, Calls::of(&options));
        calls.await.expect("an answer").expect("a connection")
    };

    let reader = Calls {
        status: LET_IN,
        ..denied()
    };
    assert_eq!(calls(cluster.role("reader")).await, reader);
    let operator = Calls {
        status: LET_IN,
        order: LET_IN,
        ..denied()
    };
    assert_eq!(calls(cluster.role("operator")).await, operator);
    let worker = Calls {
        work: LET_IN,
        fetch: Err(NotFound),
        ..denied()
    };
    assert_eq!(calls(cluster.role("worker")).await, worker);
    let learner = Calls {
        learn: LET_IN,
        fetch: Err(NotFound),
        publish: Err(InvalidArgument),
        ..denied()
    };
    assert_eq!(calls(cluster.role("learner")).await, learner);

    // What the token may and the certificate may not, and the other way round.
    let secret = cluster.secret.as_str();
    assert_eq!(calls(cluster.caller(secret, Some("reader"))).await, reader);
    let crossed = cluster.caller(&cluster.token("reader"), Some("worker"));
    assert_eq!(calls(crossed).await, denied());
    for wrong in ["wrong", &secret[1..], "tina-worker-0"] {
        let caller = cluster.caller(wrong, Some("worker"));
        assert_eq!(calls(caller).await, Calls::all(Unauthenticated));
    }

    // Without a certificate, with the server's own, and with one of another authority there is no
    // connection to call over: TLS ends it before a token is looked at.
    let mut stranger = cluster.caller(secret, None);
    stranger.identity = Some(identity(strangers, "operator"));
    let none = cluster.caller(secret, None);
    let server = cluster.caller(secret, Some("coordinator"));
    for caller in [none, server, stranger] {
        let calls = timeout(PATIENCE, Calls::of(&caller));
        if let Some(calls) = calls.await.expect("an answer") {
            // Codes of a connection that broke, none that the coordinator answers with.
            let broken = |outcome: &Outcome| {
                use Code::{Cancelled, Internal, Unavailable, Unknown};
                matches!(outcome, Err(Cancelled | Internal | Unavailable | Unknown))
            };
            assert!(broken(&calls.status) && broken(&calls.publish), "{calls:?}");
            assert!(broken(&calls.work) && broken(&calls.learn), "{calls:?}");
        }
    }
    // And a client doesn't take a server of another authority for its own.
    let mut deceived = cluster.role("worker");
    deceived.ca_pem = Some(fs::read(strangers.join("ca.pem")).unwrap());
    let error = connect(&deceived).await.unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
}

/// Nobody but the cluster's own gets an adapter from a worker, or joins a learner: both doors ask for a
/// certificate, and what goes through them goes by TLS.
#[test]
fn workers_hand_adapters_on_and_ranks_share_gradients_behind_mutual_tls() {
    let bench = Bench::new();
    let certs = bench.path("certs");
    print(&mut make_certs(&certs));
    let secret = print(tina().args(["token", "--new"]));
    fs::write(bench.path("token"), &secret).unwrap();
    let settings = [
        "cluster.adapter_relay=true",
        "cluster.adapter_fan_out=1",
        "rollout.workers=[]",
        "learner.ranks=2",
        // A gradient where all rewards of a group are equal, too.
        "algorithm.kl_beta=0.01",
    ];
    let mut up = bench.up("inner", &behind_tls(&settings));
    let url = up.address();
    let folder = bench.path("runs/inner");
    let cluster = Cluster { url, secret, certs };
    // Whoever comes second gets adapters of the other. What shows itself to others is known by the
    // address that it was made for.
    let shown = |file: &str| cluster.certs.join(file).display().to_string();
    let _workers = ["one", "two"].map(|name| {
        let relay = [
            ("--id", name.to_owned()),
            ("--relay-listen", "127.0.0.1:0".to_owned()),
            ("--relay-cert", shown("coordinator.pem")),
            ("--relay-key", shown("coordinator.key")),
            ("--relay-client-ca", shown("ca.pem")),
        ];
        let relay = relay.map(|(option, value)| format!("{option}={value}"));
        let worker = cluster.by_hand("worker");
        bench.join_by(worker, &cluster.url, "rollout-worker", &relay)
    });

    let began = Instant::now();
    let rank = || {
        let log = folder.join("logs/learner-rank-1.log");
        fs::read_to_string(log).unwrap_or_default()
    };
    let relayed = || {
        let log = bench.joined();
        log.contains("from=\"one\"") || log.contains("from=\"two\"")
    };
    while !(relayed() && rank().contains("share of a gradient is done")) {
        assert!(!up.has_ended(), "{}", up.finish().stderr);
        let logs = [bench.joined(), rank()].concat();
        assert!(began.elapsed() < PATIENCE, "nothing went by them:\n{logs}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let door = fs::read_to_string(folder.join("learner.addr")).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // A learner knows its own role's token, not the secret.
    runtime.block_on(async {
        let caller = |role: Option<&str>| ClientOptions {
            url: door.trim().to_owned(),
            ..cluster.caller(&cluster.token("learner"), role)
        };
        let join = async |role: Option<&str>| {
            let options = caller(role);
            let channel = connect(&options).await.ok()?;
            let mut ranks = client::ranks_client(channel, options.interceptor().unwrap());
            let nobody = tokio_stream::iter::<[v1::RankMessage; 0]>([]);
            Some(outcome(ranks.join(nobody).await))
        };
        // Let in, and told that it says nothing.
        let learner = join(Some("learner")).await;
        assert_eq!(learner, Some(Err(Code::InvalidArgument)));
        let worker = join(Some("worker")).await;
        assert_eq!(worker, Some(Err(Code::PermissionDenied)));
        let stranger = join(None).await;
        let told = Some(Err(Code::InvalidArgument));
        assert!(stranger != told && stranger != Some(Ok(())), "{stranger:?}");
    });
    print(tina().args(["control", "stop"]).arg(&folder));
    up.finish().summary();
}
