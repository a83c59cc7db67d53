use tina_proto::v1::{Cancel, Completion, CompletionAck, VersionSpan, WorkerStop};

use super::*;
use crate::{
    adapter::AdapterLoader,
    check::tests::{good_sample, plan},
    testing,
};

fn command(command: Command) -> WorkerCommand {
    WorkerCommand {
        command: Some(command),
    }
}

fn spec(run_id: &str) -> RunSpec {
    RunSpec {
        run_id: run_id.to_owned(),
        seed: 1,
        ..RunSpec::default()
    }
}

fn welcome(run_id: &str) -> WorkerCommand {
    let spec = Some(spec(run_id));
    command(Command::Welcome(WorkerWelcome {
        spec,
        slots: 4,
        heartbeat_ms: 500,
        ..Default::default()
    }))
}

fn model(run_id: &str) -> LoadedModel {
    LoadedModel {
        spec: spec(run_id),
        digest: "model".to_owned(),
        slots: 4,
        device: DeviceInfo {
            numerics: "cpu-f32".to_owned(),
            ..DeviceInfo::default()
        },
        plan: plan(),
    }
}

fn version(step: u64, content: &str) -> PolicyVersion {
    PolicyVersion::of_bytes(step, content.as_bytes())
}

fn load(step: u64, content: &str) -> WorkerCommand {
    let version = Some(version(step, content));
    command(Command::LoadAdapter(LoadAdapter {
        version,
        bytes: 7,
        ..LoadAdapter::default()
    }))
}

fn sample(group_id: u64, indices: &[u32]) -> WorkerCommand {
    let sample_indices = indices.to_vec();
    command(Command::Sample(Sample {
        group_id,
        sample_indices,
        ..good_sample()
    }))
}

fn completed(group_id: u64, sample_index: u32) -> Event {
    let versions = vec![VersionSpan {
        start: 0,
        version: good_sample().version,
    }];
    let completion = Completion {
        group_id,
        sample_index,
        versions,
        ..Completion::default()
    };
    Event::Completed {
        completion,
        prompt_key: [7; 32],
        asked: good_sample().version.unwrap(),
    }
}

fn loaded(step: u64, content: &str) -> Event {
    let version = Some(version(step, content));
    let probe_logprobs = vec![-1.0, -2.0];
    Event::Loaded(AdapterLoaded {
        version,
        probe_logprobs,
        ..AdapterLoaded::default()
    })
}

/// Under this name; what is in it is of no interest here.
fn fetched(version: PolicyVersion) -> Box<ReadyAdapter> {
    let bytes = testing::adapter(0.0).1;
    let loader = AdapterLoader::new(testing::decoder(), &testing::plan());
    Box::new(loader.load_verified(version, &bytes).unwrap())
}

/// What it says, shortly.
fn said(state: &mut State) -> Vec<String> {
    std::iter::from_fn(|| state.next_message()?.message)
        .map(|message| match message {
            Message::Hello(hello) => format!("hello {}", hello.worker_id),
            Message::Ready(ready) => format!("ready {}", ready.model_digest),
            Message::AdapterLoaded(loaded) => {
                let version = loaded.version.unwrap_or_default();
                let end = if loaded.error.is_empty() {
                    ""
                } else {
                    " failed"
                };
                format!("loaded {}{end}", version.step)
            }
            Message::Completion(c) => format!("completion {}.{}", c.group_id, c.sample_index),
            Message::Heartbeat(beat) => format!("heartbeat {}", beat.queued),
            Message::SampleFailed(failed) => format!("failed {}", failed.group_id),
        })
        .collect()
}

/// What it does, shortly.
fn done(actions: Vec<Action>) -> Vec<String> {
    let told = |action| match action {
        Action::LoadModel { spec, .. } => format!("model {}", spec.run_id),
        Action::Fetch { version, .. } => format!("fetch {}", version.step),
        Action::Engine(Work::Sample {
            task,
            indices,
            epoch,
        }) => {
            format!("sample {}{indices:?} in {epoch}", task.group_id)
        }
        Action::Engine(Work::Rename(version)) => format!("rename {}", version.step),
        Action::Engine(Work::Cancel { group_id, .. }) => format!("cancel {group_id}"),
        Action::Engine(Work::Load { adapter, epoch }) => {
            format!("load {} in {epoch}", adapter.version().step)
        }
        Action::Stop(reason) => format!("stop {reason}"),
        Action::Fail(problem) => format!("fail {problem}"),
    };
    actions.into_iter().map(told).collect()
}

/// Connected, welcomed, the model loaded and the adapter "adapter" of step 0 in place.
fn ready() -> State {
    let mut state = State::new(WorkerHello {
        worker_id: "w".to_owned(),
        ..WorkerHello::default()
    });
    state.connected();
    assert_eq!(done(state.command(welcome("run"))), ["model run"]);
    assert!(done(state.model_loaded(model("run"))).is_empty());
    assert_eq!(done(state.command(load(0, "adapter"))), ["fetch 0"]);
    assert_eq!(
        done(state.fetched(
            version(0, "adapter"),
            Ok(fetched(version(0, "adapter"))),
            vec![]
        )),
        ["load 0 in 1"]
    );
    assert!(done(state.engine_event(loaded(0, "adapter"))).is_empty());
    assert_eq!(said(&mut state), ["hello w", "ready model", "loaded 0"]);
    state
}

#[test]
fn a_welcomed_worker_loads_the_model_then_adapters_then_samples() {
    let mut state = ready();
    assert_eq!(
        done(state.command(sample(1, &[0, 1]))),
        ["sample 1[0, 1] in 1"]
    );
    state.engine_event(completed(1, 1));
    assert_eq!(said(&mut state), ["completion 1.1"]);
}

#[test]
fn a_command_before_the_welcome_breaks_the_protocol() {
    let mut state = State::new(WorkerHello::default());
    state.connected();
    assert!(matches!(
        state.command(sample(1, &[0]))[..],
        [Action::Fail(_)]
    ));
    let no_spec = command(Command::Welcome(WorkerWelcome::default()));
    assert!(matches!(state.command(no_spec)[..], [Action::Fail(_)]));
}

#[test]
fn samples_wait_for_the_adapter_that_was_announced_before_them() {
    let mut state = ready();
    assert_eq!(done(state.command(load(1, "next"))), ["fetch 1"]);
    assert!(state.command(sample(1, &[0, 1, 2])).is_empty());
    assert!(state.command(sample(2, &[0])).is_empty());
    state.command(command(Command::Cancel(Cancel {
        group_id: 1,
        sample_indices: vec![1],
    })));
    state.command(command(Command::Cancel(Cancel {
        group_id: 2,
        sample_indices: vec![],
    })));
    state.heartbeat(WorkerHeartbeat::default());
    assert_eq!(said(&mut state), ["heartbeat 2"]);
    assert_eq!(
        done(state.fetched(version(1, "next"), Ok(fetched(version(1, "next"))), vec![])),
        ["load 1 in 1"]
    );
    assert_eq!(
        done(state.engine_event(loaded(1, "next"))),
        ["sample 1[0, 2] in 1"]
    );
    assert_eq!(said(&mut state), ["loaded 1"]);
}

#[test]
fn where_adapters_are_swapped_under_way_only_samples_of_the_new_one_wait() {
    let mut state = ready();
    let ModelState::Ready(model) = &mut state.model else {
        panic!("no model")
    };
    model.plan.swap = AdapterSwap::Keep;
    let newer = |group_id, content: &str| {
        command(Command::Sample(Sample {
            group_id,
            version: Some(version(9, content)),
            ..good_sample()
        }))
    };
    assert_eq!(done(state.command(load(1, "next"))), ["fetch 1"]);
    assert!(state.command(load(2, "after")).is_empty());
    assert!(state.command(newer(1, "next")).is_empty());
    assert!(state.command(newer(2, "after")).is_empty());
    assert_eq!(
        done(state.command(sample(3, &[0]))),
        ["sample 3[0] in 1"],
        "of the one that is held"
    );
    let ready = fetched(version(1, "next"));
    done(state.fetched(version(1, "next"), Ok(ready), vec![]));
    assert_eq!(
        done(state.engine_event(loaded(1, "next"))),
        ["fetch 2", "sample 1[0, 1] in 1"]
    );
    // One that can't be had: the engine answers.
    let gone = state.fetched(version(2, "after"), Err("gone".to_owned()), vec![]);
    assert_eq!(done(gone), ["sample 2[0, 1] in 1"]);
}

#[test]
fn a_completion_of_a_newer_adapter_answers_the_sample_that_was_asked_for() {
    let mut state = ready();
    let Event::Completed {
        mut completion,
        prompt_key,
        asked,
    } = completed(1, 0)
    else {
        panic!("no completion")
    };
    completion.versions[0].version = Some(version(1, "next"));
    state.engine_event(Event::Completed {
        completion,
        prompt_key,
        asked,
    });
    said(&mut state);
    assert_eq!(
        done(state.command(sample(1, &[0, 1]))),
        ["sample 1[1] in 1"]
    );
    assert_eq!(said(&mut state), ["completion 1.0"]);
}

#[test]
fn an_adapter_that_cannot_be_fetched_is_told_and_work_goes_on() {
    let mut state = ready();
    state.command(load(1, "next"));
    state.command(sample(1, &[0]));
    let failed = state.fetched(version(1, "next"), Err("gone".to_owned()), vec![]);
    assert_eq!(done(failed), ["sample 1[0] in 1"]);
    assert_eq!(said(&mut state), ["loaded 1 failed"]);
    // The same adapter may be asked for again.
    assert_eq!(done(state.command(load(1, "next"))), ["fetch 1"]);
    let nameless = command(Command::LoadAdapter(LoadAdapter::default()));
    state.fetched(version(1, "next"), Err("gone".to_owned()), vec![]);
    assert!(state.command(nameless).is_empty());
    assert_eq!(said(&mut state), ["loaded 1 failed", "loaded 0 failed"]);
}

#[test]
fn an_adapter_that_is_held_is_acknowledged_at_once_under_any_step() {
    let mut state = ready();
    assert_eq!(done(state.command(load(5, "adapter"))), ["rename 5"]);
    assert_eq!(said(&mut state), ["loaded 5"]);
}

#[test]
fn an_adapter_that_is_held_is_taken_again_where_a_group_waits_for_this_worker() {
    let mut state = ready();
    let group = NcclGroup {
        id: vec![1; 128],
        rank: 1,
        world: 2,
        lasting: false,
    };
    let actions = state.command(command(Command::LoadAdapter(LoadAdapter {
        version: Some(version(5, "adapter")),
        bytes: 7,
        nccl: Some(group.clone()),
        ..LoadAdapter::default()
    })));
    match actions.as_slice() {
        [Action::Fetch { bytes: 7, nccl, .. }] => assert_eq!(*nccl, Some(group)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn after_a_reconnect_unacknowledged_completions_are_sent_again() {
    let mut state = ready();
    for index in 0..3 {
        state.engine_event(completed(1, index));
    }
    let ack = CompletionAck {
        group_id: 1,
        sample_index: 1,
    };
    state.command(command(Command::CompletionAck(ack)));
    state.disconnected();
    assert!(!state.has_message());
    state.engine_event(completed(2, 0));
    assert!(!state.has_message(), "nobody listens");
    state.connected();
    assert!(
        state.command(welcome("run")).is_empty(),
        "the model is kept"
    );
    assert_eq!(
        said(&mut state),
        [
            "hello w",
            "ready model",
            "completion 1.0",
            "completion 1.2",
            "completion 2.0"
        ]
    );
    assert!(
        state.command(load(0, "adapter")).is_empty(),
        "the adapter is kept"
    );
    assert_eq!(said(&mut state), ["loaded 0"]);
}

#[test]
fn what_is_sampled_already_is_sent_again_and_not_sampled_again() {
    let mut state = ready();
    state.engine_event(completed(1, 0));
    said(&mut state);
    assert_eq!(
        done(state.command(sample(1, &[0, 1]))),
        ["sample 1[1] in 1"]
    );
    assert_eq!(said(&mut state), ["completion 1.0"]);
    // Another prompt under the same name is another sample.
    let other = Sample {
        group_id: 1,
        prompt_key: vec![8; 32],
        ..good_sample()
    };
    let asked = done(state.command(command(Command::Sample(other))));
    assert_eq!(asked, ["sample 1[0, 1] in 1"]);
}

#[test]
fn cancelled_completions_are_forgotten() {
    let mut state = ready();
    state.engine_event(completed(1, 0));
    let cancel = Cancel {
        group_id: 1,
        sample_indices: vec![0],
    };
    assert_eq!(
        done(state.command(command(Command::Cancel(cancel)))),
        ["cancel 1"]
    );
    state.connected();
    state.command(welcome("run"));
    assert_eq!(said(&mut state), ["hello w", "ready model"]);
}

#[test]
fn a_bad_sample_is_refused_with_the_reason() {
    let mut state = ready();
    assert!(state.command(sample(3, &[])).is_empty());
    assert_eq!(said(&mut state), ["failed 3"]);
}

#[test]
fn another_run_starts_from_its_own_model() {
    let mut state = ready();
    state.engine_event(completed(1, 0));
    state.connected();
    assert_eq!(done(state.command(welcome("other"))), ["model other"]);
    // And a third before the second is loaded: the load under way is not the one that counts.
    state.connected();
    assert!(state.command(welcome("third")).is_empty());
    assert_eq!(done(state.model_loaded(model("other"))), ["model third"]);
    assert!(done(state.model_loaded(model("third"))).is_empty());
    assert_eq!(said(&mut state), ["hello w", "ready model"]);
    assert_eq!(done(state.command(load(0, "adapter"))), ["fetch 0"]);
}

#[test]
fn heartbeats_do_not_pile_up() {
    let mut state = ready();
    for _ in 0..3 {
        state.heartbeat(WorkerHeartbeat::default());
    }
    assert_eq!(said(&mut state), ["heartbeat 0"]);
}

#[test]
fn a_stop_ends_the_worker() {
    let mut state = ready();
    let stop = WorkerStop {
        reason: "done".to_owned(),
    };
    assert_eq!(
        done(state.command(command(Command::Stop(stop)))),
        ["stop done"]
    );
}

#[test]
fn an_acknowledgement_says_once_by_which_way_the_adapter_came() {
    let mut state = ready();
    let route = |actions: Vec<Action>| match actions.into_iter().next() {
        Some(Action::Fetch { route, .. }) => route,
        other => panic!("{other:?}"),
    };
    let source = AdapterSource {
        worker_id: "w2".to_owned(),
        relay: "http://127.0.0.1:9".to_owned(),
    };
    let (next, bytes) = (version(1, "next"), 7);
    let told = route(state.command(command(Command::LoadAdapter(LoadAdapter {
        version: Some(next.clone()),
        bytes,
        sources: vec![source.clone()],
        depth: 1,
        ..LoadAdapter::default()
    }))));
    assert_eq!((told.sources, told.depth), (vec![source], 1));
    let leg = AdapterLeg {
        worker_id: "w2".to_owned(),
        bytes,
        ..AdapterLeg::default()
    };
    state.fetched(next.clone(), Ok(fetched(next)), vec![leg.clone()]);
    assert!(!state.has_message());
    state.engine_event(loaded(1, "next"));
    let mut legs = || match state.next_message().and_then(|message| message.message) {
        Some(Message::AdapterLoaded(loaded)) => Some(loaded.legs),
        _ => None,
    };
    assert_eq!(legs(), Some(vec![leg]));
    // Asked again, it holds the adapter already.
    state.command(load(1, "next"));
    let again = state.next_message().and_then(|message| message.message);
    assert!(matches!(again, Some(Message::AdapterLoaded(loaded)) if loaded.legs.is_empty()));
}
