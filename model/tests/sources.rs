//! Folders in Hugging Face layout, and a Hub that each test runs for itself on loopback.
//!
//! The Hub's conventions are environment variables, so each fetch runs in a process of its own: this
//! test binary again, told by `TINA_TEST_SOURCE` what to open.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use tina_model::{ChatMessage, DatasetFile, ModelConfig, ModelError, ModelSource, open, open_text};

/// A folder's files by name.
type Files = BTreeMap<String, Vec<u8>>;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER: &str = "89abcdef0123456789abcdef0123456789abcdef";

fn config() -> Value {
    json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 6,
        "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "tie_word_embeddings": true, "eos_token_id": 1
    })
}

/// The files of a tiny model; with `shards`, its weights are in two.
fn model(shards: bool) -> Files {
    let tokenizer = json!({
        "version": "1.0", "truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 0,
        "direction": "Right"}, "padding": null,
        "added_tokens": [{"id": 1, "content": "<e>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "normalizer": null, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false,
        "trim_offsets": true, "use_regex": true}, "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "<e>": 1, "b": 2, "ab": 3, "c": 4},
        "merges": [["a", "b"]]}
    });
    let mut files = BTreeMap::new();
    let mut add = |name: &str, bytes: Vec<u8>| files.insert(name.to_owned(), bytes);
    add("config.json", config().to_string().into());
    add(
        "generation_config.json",
        json!({"eos_token_id": [1, 4]}).to_string().into(),
    );
    add("tokenizer.json", tokenizer.to_string().into());
    let chat = "{{ bos_token }}{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}";
    let named =
        json!([{"name": "tool_use", "template": "no"}, {"name": "default", "template": chat}]);
    let tokenizer_config = json!({"chat_template": named, "bos_token": {"content": "<s>"}});
    add("tokenizer_config.json", tokenizer_config.to_string().into());

    let shapes = ModelConfig::from_hf_json(&config().to_string())
        .unwrap()
        .tensors();
    let tensors: Vec<_> = shapes
        .into_iter()
        .map(|(name, shape)| {
            (
                name,
                Tensor::ones(shape, DType::BF16, &Device::Cpu).unwrap(),
            )
        })
        .collect();
    let write = |tensors: &[(String, Tensor)]| {
        safetensors::serialize(tensors.iter().map(|(n, t)| (n.clone(), t.clone())), None).unwrap()
    };
    if shards {
        let (one, two) = tensors.split_at(5);
        let map = |part: &[(String, Tensor)], file: &str| -> Vec<(String, Value)> {
            part.iter()
                .map(|(name, _)| (name.clone(), json!(file)))
                .collect()
        };
        let mut weight_map = map(one, "model-00001-of-00002.safetensors");
        weight_map.extend(map(two, "model-00002-of-00002.safetensors"));
        let weight_map: serde_json::Map<_, _> = weight_map.into_iter().collect();
        add(
            "model.safetensors.index.json",
            json!({"weight_map": weight_map}).to_string().into(),
        );
        add("model-00001-of-00002.safetensors", write(one));
        add("model-00002-of-00002.safetensors", write(two));
    } else {
        add("model.safetensors", write(&tensors));
    }
    files
}

fn write_folder(folder: &Path, files: &Files) {
    for (name, bytes) in files {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}

#[test]
fn a_folder_opens_whole_or_in_shards_with_tokenizer_and_template() {
    let mut digests = Vec::new();
    for shards in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        write_folder(folder.path(), &model(shards));
        let source = ModelSource::Folder(folder.path().to_path_buf());
        let opened = open(&source).unwrap();
        let name = "model.layers.1.mlp.down_proj.weight";
        let tensor = opened.weights.load(name, &[4, 6]).unwrap();
        assert_eq!((tensor.dtype(), tensor.dims()), (DType::BF16, &[4, 6][..]));
        assert_eq!(
            opened.weights.names().len(),
            opened.text.config.tensors().len()
        );
        assert!(!opened.weights.contains("lm_head.weight"));
        digests.push(opened.digest);

        let text = open_text(&source).unwrap();
        assert_eq!(text.stop_token_ids, [1, 4]);
        // The truncation to two tokens that the file asks for is not kept.
        assert_eq!(text.tokenizer.encode("abc<e>a").unwrap(), [3, 4, 1, 0]);
        let message = ChatMessage {
            role: "user".into(),
            content: "abc".into(),
        };
        assert_eq!(
            text.chat.unwrap().render(&[message], true).unwrap(),
            "<s>user=abc;"
        );
    }
    assert_ne!(digests[0], digests[1]);

    // The digest follows every byte of the configuration and the weights.
    let folder = tempfile::tempdir().unwrap();
    let mut files = model(false);
    *files
        .get_mut("model.safetensors")
        .unwrap()
        .last_mut()
        .unwrap() ^= 1;
    write_folder(folder.path(), &files);
    let changed = open(&ModelSource::Folder(folder.path().to_path_buf()))
        .unwrap()
        .digest;
    assert_ne!(changed, digests[0]);
}

#[test]
fn a_jinja_file_comes_before_the_tokenizer_config() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = model(false);
    files.insert(
        "chat_template.jinja".to_owned(),
        b"{{ messages | length }}".to_vec(),
    );
    write_folder(folder.path(), &files);
    let text = open_text(&ModelSource::Folder(folder.path().to_path_buf())).unwrap();
    assert_eq!(text.chat.unwrap().render(&[], false).unwrap(), "0");
}

#[test]
fn what_is_wrong_with_a_folder_is_said_by_file_and_tensor() {
    let broken = |change: &dyn Fn(&mut Files)| -> String {
        let folder = tempfile::tempdir().unwrap();
        let mut files = model(false);
        change(&mut files);
        write_folder(folder.path(), &files);
        open(&ModelSource::Folder(folder.path().to_path_buf()))
            .unwrap_err()
            .to_string()
    };
    let with = |key: &'static str, value: Value| {
        move |files: &mut Files| {
            let mut config = config();
            config[key] = value.clone();
            files.insert("config.json".to_owned(), config.to_string().into());
        }
    };
    let without = |name: &'static str| {
        move |files: &mut Files| {
            files.remove(name);
        }
    };
    let cut = |files: &mut Files| {
        let weights = files.get_mut("model.safetensors").unwrap();
        weights.truncate(weights.len() - 3);
    };
    let cases = [
        (broken(&without("config.json")), "config.json: not there"),
        (
            broken(&without("tokenizer.json")),
            "tokenizer.json: not there",
        ),
        (
            broken(&without("model.safetensors")),
            "must be saved as safetensors first",
        ),
        (broken(&cut), "the file is cut short"),
        (
            broken(&with("intermediate_size", json!(7))),
            "tensor `model.layers.0.mlp.down_proj.weight` has shape [4, 6], expected [4, 7]",
        ),
        (
            broken(&with("tie_word_embeddings", json!(false))),
            "tensor `lm_head.weight` is missing: expected shape [6, 4]",
        ),
        (
            broken(&with("num_hidden_layers", json!(1))),
            "has none of that name",
        ),
        (
            broken(&with("vocab_size", json!(4))),
            "the tokenizer has ids up to 4",
        ),
        (broken(&with("eos_token_id", json!(6))), "eos_token_id is 6"),
    ];
    for (error, expected) in cases {
        assert!(error.contains(expected), "{error}, expected {expected}");
    }
    let none = open(&"no/such/folder".parse().unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        none.contains("for a repository on the Hub write hf:ORG/NAME"),
        "{none}"
    );
}

/// A Hub with `toy/model`, whose branch `main` is `COMMIT` with the whole model and whose tag `v2`
/// is `OTHER` with the sharded one; `toy/gated`, which wants a token; a dataset `toy/model`, whose
/// file `a/rows.jsonl` names its commit; and nothing else.
struct Hub {
    endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
    port: u16,
}

impl Hub {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let log = Arc::clone(&log);
                let Ok(stream) = stream else { continue };
                let stop = std::thread::spawn(move || answer(&stream, &log));
                if stop.join().unwrap_or(true) {
                    return;
                }
            }
        });
        Self {
            endpoint: format!("http://127.0.0.1:{port}"),
            requests,
            port,
        }
    }

    /// The requests since the last call.
    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }

    fn stop(&self) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.write_all(b"GET /stop HTTP/1.1\r\n\r\n").unwrap();
        // Until the port is shut.
        while TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

/// Answers one request and closes; true when it was to stop.
fn answer(mut stream: &TcpStream, log: &Mutex<Vec<String>>) -> bool {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let Some(request) = lines.next() else {
        return false;
    };
    let token = lines
        .take_while(|line| !line.is_empty())
        .any(|line| line.eq_ignore_ascii_case("authorization: Bearer sesame"));
    let request = request.trim_end_matches(" HTTP/1.1").to_owned();
    if request == "GET /stop" {
        return true;
    }
    log.lock().unwrap().push(request.clone());
    let (method, path) = request.split_once(' ').unwrap();
    let (status, commit, body) = resource(path, token);
    let body = body.unwrap_or_default();
    let tag = format!(
        "{:016x}",
        body.iter()
            .fold(7u64, |h, b| h.wrapping_mul(31) ^ u64::from(*b))
    );
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nX-Repo-Commit: {commit}\r\nETag: \"{tag}\"\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes());
    if method == "GET" {
        let _ = stream.write_all(&body);
    }
    false
}

fn resource(path: &str, token: bool) -> (&'static str, &'static str, Option<Vec<u8>>) {
    let commit_of = |revision: &str| match revision {
        "main" | COMMIT => Some(COMMIT),
        "v2" | OTHER => Some(OTHER),
        _ => None,
    };
    let not_found = ("404 Not Found", COMMIT, None);
    if path.contains("toy/gated") && !token {
        return ("401 Unauthorized", COMMIT, None);
    }
    if let Some(revision) = path
        .strip_prefix("/api/models/toy/model/revision/")
        .or_else(|| path.strip_prefix("/api/datasets/toy/model/revision/"))
        .or_else(|| path.strip_prefix("/api/models/toy/gated/revision/"))
    {
        let Some(commit) = commit_of(revision) else {
            return not_found;
        };
        let info = json!({"id": "toy/model", "sha": commit});
        return ("200 OK", commit, Some(info.to_string().into()));
    }
    if let Some(rest) = path.strip_prefix("/datasets/toy/model/resolve/") {
        return match rest.split_once('/') {
            Some((COMMIT, "a/rows.jsonl")) => ("200 OK", COMMIT, Some(COMMIT.into())),
            Some((OTHER, "a/rows.jsonl")) => ("200 OK", OTHER, Some(OTHER.into())),
            _ => not_found,
        };
    }
    let file = path
        .strip_prefix("/toy/model/resolve/")
        .or_else(|| path.strip_prefix("/toy/gated/resolve/"))
        .and_then(|rest| rest.split_once('/'));
    let Some((revision, name)) = file else {
        return not_found;
    };
    let Some(commit) = commit_of(revision) else {
        return not_found;
    };
    match model(commit == OTHER).remove(name) {
        Some(bytes) => ("200 OK", commit, Some(bytes)),
        None => ("404 Not Found", commit, None),
    }
}

/// Opens a source in a process of its own; gives its digest, or the error.
fn open_elsewhere(
    source: &str,
    hub: &Hub,
    cache: &Path,
    more: &[(&str, &str)],
) -> Result<String, String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "opens_what_it_is_told",
            "--ignored",
            "--nocapture",
        ])
        .env_remove("HF_HUB_CACHE")
        .env_remove("HUGGINGFACE_HUB_CACHE")
        .env_remove("HF_TOKEN")
        .env_remove("HF_HUB_OFFLINE")
        .env("NO_PROXY", "127.0.0.1")
        .env("TINA_TEST_SOURCE", source)
        .env("HF_HOME", cache)
        .env("HF_ENDPOINT", &hub.endpoint)
        .envs(more.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = |mark: &str| {
        text.split_once(mark)
            .map(|(_, rest)| rest.split("\u{1}").next().unwrap().to_owned())
    };
    match (found("DIGEST\u{1}"), found("ERROR\u{1}")) {
        (Some(digest), _) => Ok(digest),
        (None, Some(error)) => Err(error),
        (None, None) => panic!("{text}{}", String::from_utf8_lossy(&output.stderr)),
    }
}

#[test]
#[ignore = "run by the tests of the Hub, in a process of its own"]
fn opens_what_it_is_told() {
    let Ok(source) = std::env::var("TINA_TEST_SOURCE") else {
        return;
    };
    if let Some(file) = source.strip_prefix("file ") {
        let path = file.parse().and_then(|file: DatasetFile| file.fetch());
        match path {
            Ok(path) => println!("DIGEST\u{1}{}\u{1}", std::fs::read_to_string(path).unwrap()),
            Err(error) => println!("ERROR\u{1}{error}\u{1}"),
        }
        return;
    }
    let (source, text_only) = match source.strip_prefix("text ") {
        Some(source) => (source, true),
        None => (source.as_str(), false),
    };
    let source: ModelSource = source.parse().unwrap();
    let digest: Result<String, ModelError> = if text_only {
        open_text(&source).map(|text| text.config.layers.to_string())
    } else {
        open(&source).map(|model| model.digest)
    };
    match digest {
        Ok(digest) => println!("DIGEST\u{1}{digest}\u{1}"),
        Err(error) => println!("ERROR\u{1}{error}\u{1}"),
    }
}

fn digest_of(files: &Files) -> String {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), files);
    open(&ModelSource::Folder(folder.path().to_path_buf()))
        .unwrap()
        .digest
}

#[test]
fn a_repository_is_fetched_once_and_opens_from_the_cache_without_its_hub() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    let cache = cache.path();
    // Text first: no weights are asked for.
    assert_eq!(
        open_elsewhere("text hf:toy/model", &hub, cache, &[]).unwrap(),
        "2"
    );
    let asked = hub.requests();
    assert!(
        asked
            .iter()
            .all(|request| !request.contains(".safetensors")),
        "{asked:?}"
    );

    let digest = open_elsewhere("hf:toy/model", &hub, cache, &[]).unwrap();
    assert_eq!(digest, digest_of(&model(false)));
    let asked = hub.requests();
    let fetched: Vec<_> = asked
        .iter()
        .filter(|r| r.starts_with("GET /toy/"))
        .collect();
    assert_eq!(
        fetched,
        [&format!(
            "GET /toy/model/resolve/{COMMIT}/model.safetensors"
        )]
    );

    // Once more: only the branch is looked up.
    assert_eq!(
        open_elsewhere("hf:toy/model", &hub, cache, &[]).unwrap(),
        digest
    );
    assert_eq!(hub.requests(), ["GET /api/models/toy/model/revision/main"]);

    // A tag, whose model is in shards.
    let other = open_elsewhere("hf:toy/model@v2", &hub, cache, &[]).unwrap();
    assert_eq!(other, digest_of(&model(true)));

    // Told to stay off the network, and with the Hub gone.
    hub.requests();
    let offline = [("HF_HUB_OFFLINE", "1")];
    assert_eq!(
        open_elsewhere("hf:toy/model", &hub, cache, &offline).unwrap(),
        digest
    );
    assert_eq!(hub.requests(), [""; 0]);
    hub.stop();
    assert_eq!(
        open_elsewhere("hf:toy/model", &hub, cache, &[]).unwrap(),
        digest
    );
    let by_commit = format!("hf:toy/model@{OTHER}");
    assert_eq!(open_elsewhere(&by_commit, &hub, cache, &[]).unwrap(), other);
    let error = open_elsewhere("hf:toy/model@v3", &hub, cache, &[]).unwrap_err();
    assert!(
        error.starts_with("hf:toy/model@v3: the Hub is out of reach"),
        "{error}"
    );
    let error = open_elsewhere("hf:toy/model@v3", &hub, cache, &offline).unwrap_err();
    assert!(error.contains("HF_HUB_OFFLINE is set"), "{error}");
}

#[test]
fn what_the_hub_does_not_give_is_said_with_what_to_do() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    let fetch =
        |source: &str, more: &[(&str, &str)]| open_elsewhere(source, &hub, cache.path(), more);
    let cases = [
        (
            "hf:toy/none",
            "hf:toy/none@main: there is no such repository or revision (404)",
        ),
        (
            "hf:toy/model@v9",
            "hf:toy/model@v9: there is no such repository or revision (404)",
        ),
        (
            "hf:toy/gated",
            "hf:toy/gated@main: the Hub wants to know who asks (401)",
        ),
    ];
    for (source, expected) in cases {
        let error = fetch(source, &[]).unwrap_err();
        assert!(
            error.starts_with(expected) && error.contains(&hub.endpoint),
            "{error}"
        );
    }
    let digest = fetch("hf:toy/gated", &[("HF_TOKEN", "sesame")]).unwrap();
    assert_eq!(digest, digest_of(&model(false)));
}

#[test]
fn a_datasets_file_is_fetched_once_and_beside_a_model_of_the_same_name() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    let fetch =
        |source: &str, more: &[(&str, &str)]| open_elsewhere(source, &hub, cache.path(), more);
    let (main, tag) = (
        "file hf:toy/model:a/rows.jsonl",
        "file hf:toy/model@v2:a/rows.jsonl",
    );
    assert_eq!(fetch(main, &[]).unwrap(), COMMIT);
    assert!(hub.requests().contains(&format!(
        "GET /datasets/toy/model/resolve/{COMMIT}/a/rows.jsonl"
    )));
    // Once more: only the branch is looked up.
    assert_eq!(fetch(main, &[]).unwrap(), COMMIT);
    assert_eq!(
        hub.requests(),
        ["GET /api/datasets/toy/model/revision/main"]
    );
    assert_eq!(fetch(tag, &[]).unwrap(), OTHER);
    assert_eq!(
        fetch("text hf:toy/model", &[]).unwrap(),
        "2",
        "the model of this name is another repository"
    );

    let error = fetch("file hf:toy/model:b.jsonl", &[]).unwrap_err();
    let expected = "hf:toy/model@main:b.jsonl: the repository has no b.jsonl";
    assert_eq!(error, expected);
    let error = fetch("file hf:toy/none:b.jsonl", &[]).unwrap_err();
    assert!(error.contains("(404)"), "{error}");

    // Told to stay off the network, and with the Hub gone.
    hub.requests();
    let offline = [("HF_HUB_OFFLINE", "1")];
    assert_eq!(fetch(main, &offline).unwrap(), COMMIT);
    let error = fetch("file hf:toy/model:c.jsonl", &offline).unwrap_err();
    assert!(
        error.contains("HF_HUB_OFFLINE is set and c.jsonl"),
        "{error}"
    );
    assert_eq!(hub.requests(), [""; 0]);
    hub.stop();
    assert_eq!(fetch(main, &[]).unwrap(), COMMIT);
    let error = fetch("file hf:toy/model:c.jsonl", &[]).unwrap_err();
    assert!(error.contains("the Hub is out of reach"), "{error}");
}
