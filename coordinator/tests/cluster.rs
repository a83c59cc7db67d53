//! Whole runs: a real coordinator, and workers and a learner that speak real gRPC.

// The helpers of tests may panic, as tests may: that is how they fail.
#![allow(clippy::unwrap_used)]

mod support;

use std::{sync::atomic::Ordering, time::Duration};

use support::{Coordinator, Manners, Roles, adapter, config, options, undisturbed};
use tina_coordinator::{CoordinatorError, CoordinatorOptions, RunEvent, config::RunConfig};
use tina_proto::{
    auth::{Role, role_token},
    client,
    v1::{self, ControlRequest, ListCompletionsRequest, ListStepsRequest, StatusRequest},
};

/// Completions of a run: 4 steps of 3 x 4, and 10 problems twice.
const COMPLETIONS: usize = 4 * 12 + 20;

#[test]
fn a_run_trains_evaluates_and_leaves_its_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let roles = Roles::start(&[Manners::default()], 1);
    let coordinator = Coordinator::start(config(folder.path(), &[]), false, &roles.address);
    let record = coordinator.wait_for_step(2);
    assert_eq!(record.tokens_sampled, 36);
    assert!(record.rewards[0].mean >= 0.0 && record.seconds_total > 0.0);
    let summary = coordinator.finish().unwrap();
    assert_eq!((summary.steps, summary.stopped_early), (4, false));
    assert!(summary.accuracy_before.is_some() && summary.accuracy_after.is_some());
    assert_eq!(summary.tokens, 3 * COMPLETIONS as u64);
    assert!((summary.cost_usd - summary.seconds).abs() < 1e-6);
    assert_eq!(roles.sampled(), COMPLETIONS);
    assert_eq!(adapter(&summary), roles.checkpoint.0.lock().unwrap().1);
    let adapters = summary.run_dir.join("adapters");
    assert!(adapters.join("000002/adapter_config.json").exists());
    assert!(!adapters.join("000001").exists());
    let latest = std::fs::read_link(adapters.join("latest")).unwrap();
    assert_eq!(latest.to_str(), Some("000004"));
}

/// A start that is expected to be refused.
fn refused(config: RunConfig, resume: bool, overwrite: bool) -> CoordinatorError {
    let options = CoordinatorOptions {
        config,
        resume,
        overwrite,
        launch: false,
        exe: None,
    };
    let (events, _heard) = tokio::sync::mpsc::unbounded_channel();
    let (_shutdown, asked) = tokio::sync::watch::channel(0);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let run = tina_coordinator::run(options, events, asked);
    let run = async { tokio::time::timeout(Duration::from_secs(30), run).await };
    runtime.block_on(run).unwrap().unwrap_err()
}

/// A run that is stopped before its first step.
fn begin(config: RunConfig) {
    let address = tokio::sync::watch::channel(String::new()).0;
    let coordinator = Coordinator::start(config, false, &address);
    while !matches!(coordinator.events.recv(), Ok(RunEvent::Bound { .. })) {}
    coordinator.shutdown.send(1).unwrap();
    assert!(coordinator.finish().unwrap().stopped_early);
}

#[test]
fn a_resume_that_is_refused_leaves_the_folder_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let problems = folder.path().join("problems.jsonl");
    let write = |last: &str| {
        let rows: String = (0..20)
            .map(|n| format!("{{\"question\": \"{n}+{n}\", \"answer\": \"{}\"}}\n", 2 * n))
            .collect();
        std::fs::write(&problems, rows + last).unwrap();
    };
    write("");
    let own = config(folder.path(), &["data.source=problems.jsonl"]);
    let nothing = refused(own.clone(), true, false);
    assert!(
        matches!(nothing, CoordinatorError::NoRun { .. }),
        "{nothing}"
    );
    assert!(!own.run_dir().exists());

    begin(own.clone());
    let kept = || std::fs::read_to_string(own.run_dir().join("config.toml")).unwrap();
    let before = kept();
    let other = config(
        folder.path(),
        &["data.source=problems.jsonl", "lora.rank=4"],
    );
    let error = refused(other, true, false).to_string();
    assert!(error.contains("lora.rank: was 2, is 4"), "{error}");

    write("{\"question\": \"1+2\", \"answer\": \"3\"}\n");
    let error = refused(own.clone(), true, false).to_string();
    assert!(error.contains("other problems"), "{error}");
    assert_eq!(kept(), before);
}

#[test]
fn what_the_model_does_not_allow_is_refused_before_anybody_is_started() {
    let folder = tempfile::tempdir().unwrap();
    for (set, words) in [
        ("sampling.max_tokens=254", "256 positions"),
        ("sampling.stop_token_ids=[64]", "vocabulary of 64"),
    ] {
        let error = refused(config(folder.path(), &[set]), false, false).to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn an_overwrite_that_can_not_begin_deletes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let own = config(folder.path(), &[]);
    begin(own.clone());
    let parts = ["run.db", "config.toml", "adapters", "logs"];
    let all_there = || parts.iter().all(|part| own.run_dir().join(part).exists());
    assert!(all_there());

    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("cluster.listen=\"{}\"", busy.local_addr().unwrap());
    let error = refused(config(folder.path(), &[&port]), false, true);
    assert!(matches!(error, CoordinatorError::Doors(_)), "{error}");
    let error = refused(
        config(folder.path(), &["data.source=none.jsonl"]),
        false,
        true,
    );
    assert!(matches!(error, CoordinatorError::Data(_)), "{error}");
    assert!(all_there());
}

#[test]
fn more_workers_that_hang_up_again_and_again_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let expected = undisturbed(folder.path());
    let restless = Manners {
        hang_up_after: Some(3),
        slots: 3,
        ..Manners::default()
    };
    let roles = Roles::start(&[restless.clone(), Manners::default(), restless], 1);
    let coordinator = Coordinator::start(config(folder.path(), &[]), false, &roles.address);
    assert_eq!(adapter(&coordinator.finish().unwrap()), expected);
}

#[test]
fn a_killed_coordinator_goes_on_and_samples_nothing_twice_that_was_journaled() {
    let folder = tempfile::tempdir().unwrap();
    let expected = undisturbed(folder.path());
    let slow = Manners {
        sample_time: Duration::from_millis(10),
        ..Manners::default()
    };
    let roles = Roles::start(&[slow], 1);
    let first = Coordinator::start(config(folder.path(), &[]), false, &roles.address);
    first.wait_for_step(2);
    std::thread::sleep(Duration::from_millis(60)); // in the middle of step 3
    first.kill();
    let second = Coordinator::start(config(folder.path(), &[]), true, &roles.address);
    let summary = second.finish().unwrap();
    assert_eq!(adapter(&summary), expected);
    assert_eq!(summary.steps, 4);
    assert!(summary.accuracy_before.is_some());
    // at most what the worker had in flight was sampled again
    assert!(
        roles.sampled() <= COMPLETIONS + 4,
        "{} sampled",
        roles.sampled()
    );
}

#[test]
fn a_learner_behind_the_journal_is_brought_up_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let expected = undisturbed(folder.path());
    let roles = Roles::start(&[Manners::default()], 3);
    let first = Coordinator::start(config(folder.path(), &[]), false, &roles.address);
    first.wait_for_step(2);
    first.kill(); // the learner's stream breaks with it; its checkpoint is of step 0
    let second = Coordinator::start(config(folder.path(), &[]), true, &roles.address);
    assert_eq!(adapter(&second.finish().unwrap()), expected);
    assert!(
        roles.tally.batches.load(Ordering::SeqCst) >= 6,
        "nothing was replayed"
    );
}

#[test]
fn a_stop_ends_after_the_step_and_resume_goes_on_from_there() {
    let folder = tempfile::tempdir().unwrap();
    let expected = undisturbed(folder.path());
    let roles = Roles::start(&[Manners::default()], 1);
    let first = Coordinator::start(config(folder.path(), &[]), false, &roles.address);
    first.wait_for_step(1);
    first.shutdown.send(1).unwrap();
    let summary = first.finish().unwrap();
    assert!(
        summary.stopped_early && (1..4).contains(&summary.steps),
        "{summary:?}"
    );

    let again = Coordinator::start(config(folder.path(), &[]), false, &roles.address).finish();
    let error = again.unwrap_err();
    assert!(matches!(error, CoordinatorError::Exists { .. }), "{error}");
    assert!(error.to_string().contains("--resume"), "{error}");

    let roles = {
        let fresh = Roles::start(&[Manners::default()], 1);
        *fresh.checkpoint.0.lock().unwrap() = roles.checkpoint.0.lock().unwrap().clone();
        fresh
    };
    // the learner reads its checkpoint when it dials
    let second = Coordinator::start(config(folder.path(), &[]), true, &roles.address);
    let summary = second.finish().unwrap();
    assert_eq!((summary.steps, summary.stopped_early), (4, false));
    assert_eq!(adapter(&summary), expected);
    assert_eq!(summary.tokens, 3 * COMPLETIONS as u64);
}

#[test]
fn status_lists_and_control_answer_while_the_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let other = Manners {
        model: "another".into(),
        ..Manners::default()
    };
    let slow = Manners {
        sample_time: Duration::from_millis(10),
        ..Manners::default()
    };
    let roles = Roles::start(&[slow, other], 1);
    let coordinator = Coordinator::start(config(folder.path(), &[]), false, &roles.address);
    coordinator.wait_for_step(1);
    let address = roles.address.borrow().clone();
    let asked = tokio::runtime::Runtime::new().unwrap().block_on(async {
        let options = options(&address);
        let channel = client::connect(&options).await.unwrap();
        let mut control = client::control_client(channel.clone(), options.interceptor().unwrap());
        control.pause(ControlRequest {}).await.unwrap();
        let mut status = client::status_client(channel.clone(), options.interceptor().unwrap());
        let mut watch = status
            .watch_status(v1::WatchStatusRequest { interval_ms: 50 })
            .await
            .unwrap()
            .into_inner();
        let paused = loop {
            let report = watch.message().await.unwrap().unwrap();
            if report.phase() == v1::Phase::Paused {
                break report;
            }
        };
        let steps = status
            .list_steps(ListStepsRequest {
                from_step: 1,
                limit: 0,
            })
            .await
            .unwrap();
        let completions = status
            .list_completions(ListCompletionsRequest { step: 1, limit: 5 })
            .await
            .unwrap();
        let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
        let healthy = health
            .check(tonic_health::pb::HealthCheckRequest {
                service: "tina.v1.Rollouts".into(),
            })
            .await
            .unwrap();
        assert_eq!(healthy.into_inner().status, 1);
        control.resume(ControlRequest {}).await.unwrap();
        let now = status
            .get_status(StatusRequest {})
            .await
            .unwrap()
            .into_inner();
        assert_eq!(now.run_id, paused.run_id);
        (
            paused,
            steps.into_inner().steps,
            completions.into_inner().completions,
        )
    });
    let (paused, steps, completions) = asked;
    let refused = paused
        .workers
        .iter()
        .find(|worker| worker.worker_id == "w1")
        .unwrap();
    assert!(refused.state.contains("another"), "{}", refused.state);
    assert_eq!(paused.workers[0].state, "ready");
    assert_eq!(paused.workers[0].version, paused.version);
    assert_eq!(steps.len() as u64, paused.step);
    assert_eq!(completions.len(), 5);
    assert!(
        completions[0].prompt.starts_with("What is"),
        "{:?}",
        completions[0]
    );
    assert!((1..=2).contains(&completions[0].text.len()));
    // Of a step that is done, what depends on the group is given too.
    assert!(completions.iter().all(|one| one.rewards.len() == 2));
    let compared = |one: &v1::CompletionRecord| one.rewards[1].mean != 0.0;
    assert!(completions.iter().any(compared), "{completions:?}");
    for one in &completions {
        let sum = one.rewards[0].mean + 0.5 * one.rewards[1].mean;
        assert_eq!(one.reward, sum);
    }
    assert_eq!(coordinator.finish().unwrap().steps, 4);
}

#[test]
fn a_malformed_completion_is_refused_by_name_and_ends_the_run_after_three() {
    let folder = tempfile::tempdir().unwrap();
    let bad = Manners {
        malformed: true,
        ..Manners::default()
    };
    let roles = Roles::start(&[bad], 1);
    let coordinator = Coordinator::start(config(folder.path(), &[]), false, &roles.address);
    let error = coordinator.finish().unwrap_err().to_string();
    assert!(
        error.contains("w0") && error.contains("token 9999"),
        "{error}"
    );
}

#[test]
fn a_batch_that_the_learner_refuses_ends_the_run_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let roles = Roles::start(&[Manners::default()], 1);
    roles.refuse.store(true, Ordering::SeqCst);
    let coordinator = Coordinator::start(config(folder.path(), &[]), false, &roles.address);
    let error = coordinator.finish().unwrap_err().to_string();
    assert!(error.contains("I don't like it"), "{error}");
}

#[test]
fn a_hostile_worker_wastes_its_own_slots_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let hostile = Manners {
        hostile: true,
        slots: 1,
        ..Manners::default()
    };
    let roles = Roles::start(&[Manners::default(), hostile], 1);
    let coordinator = Coordinator::start(config(folder.path(), &[]), false, &roles.address);
    let (mut notes, mut seen) = (Vec::new(), v1::WorkerStatus::default());
    while let Ok(event) = coordinator.events.recv() {
        match event {
            RunEvent::Note(note) => notes.push(note),
            RunEvent::Status(status) => {
                let mut workers = status.workers.iter();
                seen = workers
                    .find(|worker| worker.worker_id == "w1")
                    .cloned()
                    .unwrap_or(seen);
            }
            _ => {}
        }
    }
    let summary = coordinator.finish().unwrap();
    assert_eq!(summary.steps, 4);
    assert!(adapter(&summary) == undisturbed(folder.path()));
    assert!(seen.unasked > 0 && seen.failures > 0, "{seen:?}");
    let named = |words: &str| notes.iter().any(|note| note.contains(words));
    assert!(named("worker w1 brought sample"), "{notes:?}");
    assert!(named("failed at worker w1: I won't"), "{notes:?}");
}

#[test]
fn a_program_scores_in_a_run_and_one_that_never_starts_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    // Answers with half a mark, and not at all where the completion begins with a 1.
    let script = folder.path().join("half.sh");
    std::fs::write(
        &script,
        "while read -r line; do\n\
         id=${line##*'\"id\":'}; id=${id%?}\n\
         case \"$line\" in '{\"completion\":\"1'*) value=null;; *) value=0.5;; esac\n\
         echo \"{\\\"id\\\": $id, \\\"reward\\\": $value}\"\n\
         done\n",
    )
    .unwrap();
    let command = |words: &str| format!("reward.2.command={words}");
    let sets = |command: &str| {
        let sets = ["reward.2.kind=external", "reward.2.name=mine", command];
        config(folder.path(), &sets)
    };
    let good = sets(&command(&format!("[\"sh\", \"{}\"]", script.display())));
    let roles = Roles::start(&[Manners::default()], 1);
    let coordinator = Coordinator::start(good, false, &roles.address);
    let record = coordinator.wait_for_step(3);
    let mine = &record.rewards[2];
    assert_eq!((mine.name.as_str(), mine.mean), ("mine", 0.5));
    assert!((1..12).contains(&mine.not_judged), "{mine:?}");
    let summary = coordinator.finish().unwrap();
    assert_eq!(summary.steps, 4);

    let mut broken = sets(&command("[\"/nowhere/to/be/found\"]"));
    broken.run.name = "broken".to_owned();
    let roles = Roles::start(&[Manners::default()], 1);
    let error = Coordinator::start(broken, false, &roles.address).finish();
    let error = error.unwrap_err().to_string();
    assert!(error.contains("reward \"mine\""), "{error}");
    assert!(error.contains("can't be started"), "{error}");
}

#[test]
fn without_the_token_only_health_answers() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "open-sesame\n").unwrap();
    let set = format!("cluster.token_file=\"{}\"", token.display());
    let (address, mut bound) = tokio::sync::watch::channel(String::new());
    let coordinator = Coordinator::start(config(folder.path(), &[&set]), false, &address);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        support::listening(&mut bound).await;
        let mut options = options(&address.borrow());
        let channel = client::connect(&options).await.unwrap();
        let ask = |token: Option<&str>| {
            options.token = token.map(str::to_owned);
            client::status_client(channel.clone(), options.interceptor().unwrap())
        };
        let [mut nobody, mut wrong, mut right] = [None, Some("open"), Some("open-sesame")].map(ask);
        for denied in [&mut nobody, &mut wrong] {
            let error = denied.get_status(StatusRequest {}).await.unwrap_err();
            assert_eq!(error.code(), tonic::Code::Unauthenticated);
        }
        right.get_status(StatusRequest {}).await.unwrap();
        // A reader may read, and nothing else.
        options.token = Some(role_token("open-sesame", Role::Reader));
        let auth = options.interceptor().unwrap();
        let mut reader = client::status_client(channel.clone(), auth.clone());
        reader.get_status(StatusRequest {}).await.unwrap();
        let mut control = client::control_client(channel.clone(), auth.clone());
        let mut adapters = client::adapters_client(channel.clone(), auth);
        let chunks = tokio_stream::iter::<[v1::AdapterChunk; 0]>([]);
        for denied in [
            control.stop(ControlRequest {}).await.unwrap_err(),
            adapters.publish(chunks).await.unwrap_err(),
        ] {
            assert_eq!(denied.code(), tonic::Code::PermissionDenied);
            assert!(denied.message().contains("reader"), "{denied}");
        }
        let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
        health
            .check(tonic_health::pb::HealthCheckRequest::default())
            .await
            .unwrap();
    });
    coordinator.shutdown.send(2).unwrap();
    let error = coordinator.finish().unwrap_err();
    assert!(
        matches!(error, CoordinatorError::Interrupted { .. }),
        "{error}"
    );
}

#[test]
fn a_run_that_nobody_joins_says_what_it_waits_for() {
    let folder = tempfile::tempdir().unwrap();
    let (address, _) = tokio::sync::watch::channel(String::new());
    let config = config(folder.path(), &["cluster.start_timeout_s=0.5"]);
    let coordinator = Coordinator::start(config, false, &address);
    let mut said = String::new();
    while let Ok(event) = coordinator.events.recv() {
        if let RunEvent::Status(status) = event {
            said = if status.message.is_empty() {
                said
            } else {
                status.message.clone()
            };
        }
    }
    assert_eq!(said, "waiting for a learner to dial in");
    let error = coordinator.finish().unwrap_err().to_string();
    assert!(error.contains("waiting for a learner"), "{error}");
}

#[test]
fn with_a_certificate_only_tls_answers_and_reflection_tells_the_services() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let folder = tempfile::tempdir().unwrap();
    let tls = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/tls");
    let [cert, key] = ["cert", "key"].map(|name| {
        format!(
            "cluster.tls_{name}=\"{}\"",
            tls.join(name).with_extension("pem").display()
        )
    });
    let (address, mut bound) = tokio::sync::watch::channel(String::new());
    let coordinator = Coordinator::start(config(folder.path(), &[&cert, &key]), false, &address);
    let services = tokio::runtime::Runtime::new().unwrap().block_on(async {
        support::listening(&mut bound).await;
        let mut options = options(&address.borrow());
        let plain = client::connect(&options).await;
        if let Ok(channel) = plain {
            let auth = options.interceptor().unwrap();
            client::status_client(channel, auth)
                .get_status(StatusRequest {})
                .await
                .unwrap_err();
        }
        options.url = options.url.replace("http://", "https://");
        options.ca_pem = Some(std::fs::read(tls.join("cert.pem")).unwrap());
        let channel = client::connect(&options).await.unwrap();
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut answers = ServerReflectionClient::new(channel)
            .server_reflection_info(tokio_stream::iter([request]))
            .await
            .unwrap()
            .into_inner();
        match answers.message().await.unwrap().unwrap().message_response {
            Some(MessageResponse::ListServicesResponse(list)) => list.service,
            other => panic!("{other:?}"),
        }
    });
    for name in ["Rollouts", "Learning", "Adapters", "Status", "Control"] {
        let name = format!("tina.v1.{name}");
        assert!(
            services.iter().any(|service| service.name == name),
            "{services:?}"
        );
    }
    coordinator.shutdown.send(1).unwrap();
    assert!(coordinator.finish().unwrap().stopped_early);
}
