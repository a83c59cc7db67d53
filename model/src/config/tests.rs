use serde_json::{Value, json};

use super::*;

fn smollm2() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "intermediate_size": 1536,
        "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30,
        "num_key_value_heads": 3, "pretraining_tp": 1, "rms_norm_eps": 1e-5,
        "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16", "vocab_size": 49152
    })
}

fn with(mut config: Value, changes: Value) -> Result<ModelConfig> {
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    ModelConfig::from_hf_json(&config.to_string())
}

#[test]
fn llama_is_read_with_every_field() {
    let config = with(smollm2(), json!({})).unwrap();
    assert_eq!(
        config,
        ModelConfig {
            architecture: Architecture::Llama,
            vocab_size: 49152,
            hidden_size: 576,
            intermediate_size: 1536,
            layers: 30,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            max_positions: 8192,
            rms_eps: 1e-5,
            rope_theta: 1e5,
            rope_scaling: RopeScaling::None,
            tied_embeddings: true,
            qkv_bias: false,
            qk_norm: false,
        }
    );
    assert_eq!(config.parameter_count(), 134_515_008);
}

#[test]
fn qwen_families_differ_in_bias_and_norms() {
    // Qwen2.5-0.5B and Qwen3-0.6B.
    let qwen = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896,
        "intermediate_size": 4864, "num_attention_heads": 14, "num_hidden_layers": 24,
        "num_key_value_heads": 2, "use_sliding_window": false, "sliding_window": 32768,
        "max_window_layers": 24, "max_position_embeddings": 32768, "vocab_size": 151936,
        "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": true
    });
    let config = with(qwen.clone(), json!({})).unwrap();
    assert!(config.qkv_bias && !config.qk_norm);
    assert_eq!(config.parameter_count(), 494_032_768);
    let config = with(
        qwen,
        json!({
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024,
            "intermediate_size": 3072, "num_attention_heads": 16, "num_hidden_layers": 28,
            "num_key_value_heads": 8, "head_dim": 128, "attention_bias": false,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000000.0}
        }),
    )
    .unwrap();
    assert!(!config.qkv_bias && config.qk_norm);
    assert_eq!(config.rope_theta, 5e6);
    assert_eq!(config.parameter_count(), 596_049_920);
}

#[test]
fn what_is_not_served_is_refused_by_name() {
    let cases = [
        (
            json!({"model_type": "mistral"}),
            "architecture `mistral`; served are llama, qwen2",
        ),
        (json!({"sliding_window": 4096}), "sliding_window is 4096"),
        (
            json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 64,
                   "max_window_layers": 3}),
            "sliding_window is 64",
        ),
        (
            json!({"layer_types": ["full_attention", "linear_attention"]}),
            "linear_attention",
        ),
        (json!({"mlp_bias": true}), "mlp_bias"),
        (json!({"hidden_act": "gelu"}), "hidden_act `gelu`"),
        (
            json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
            "type `dynamic`",
        ),
        (json!({"rope_interleaved": true}), "rope_interleaved"),
        (
            json!({"partial_rotary_factor": 0.5}),
            "partial_rotary_factor is 0.5",
        ),
        (
            json!({"quantization_config": {"quant_method": "gptq"}}),
            "gptq",
        ),
        (
            json!({"architectures": ["LlamaForSequenceClassification"]}),
            "ForCausalLM",
        ),
    ];
    for (change, expected) in cases {
        let error = with(smollm2(), change.clone()).unwrap_err();
        assert!(
            matches!(error, ModelError::Unsupported(_)),
            "{change}: {error}"
        );
        assert!(error.to_string().contains(expected), "{change}: {error}");
    }
}

#[test]
fn impossible_values_are_errors_that_name_the_key() {
    let cases = [
        (
            json!({"num_attention_heads": 0}),
            "num_attention_heads is 0",
        ),
        (
            json!({"num_key_value_heads": 2}),
            "num_key_value_heads, 2, does not divide",
        ),
        (
            json!({"num_attention_heads": 7, "num_key_value_heads": 7}),
            "head_dim is not given",
        ),
        (json!({"head_dim": 63}), "head_dim is 63"),
        (
            json!({"vocab_size": 1u64 << 40}),
            "vocab_size is 1099511627776",
        ),
        (json!({"hidden_size": -1}), "config.json"),
        (json!({"hidden_size": null}), "config.json"),
        (json!({"rms_norm_eps": 0.0}), "rms_norm_eps is 0"),
        (json!({"rope_theta": -5.0}), "rope_theta is -5"),
        (
            json!({"rope_scaling": {"rope_type": "linear"}}),
            "rope_scaling has no factor",
        ),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0,
                   "low_freq_factor": 4.0, "high_freq_factor": 1.0}}),
            "high_freq_factor is 1",
        ),
        (json!({"model_type": null}), "no model_type"),
    ];
    for (change, expected) in cases {
        let error = with(smollm2(), change.clone()).unwrap_err();
        assert!(matches!(error, ModelError::Config(_)), "{change}: {error}");
        assert!(error.to_string().contains(expected), "{change}: {error}");
    }
    assert!(ModelConfig::from_hf_json("{").is_err());
}

#[test]
fn a_llama_with_attention_bias_has_qkv_bias() {
    assert!(
        with(smollm2(), json!({"attention_bias": true}))
            .unwrap()
            .qkv_bias
    );
}

#[test]
fn stop_tokens_come_from_both_files_as_number_or_list() {
    let ids = |config: Value, generation: Option<Value>| {
        stop_token_ids(
            &config.to_string(),
            generation.map(|g| g.to_string()).as_deref(),
        )
    };
    let config = json!({"eos_token_id": 151645});
    let generation = json!({"eos_token_id": [151645, 151643]});
    assert_eq!(
        ids(config.clone(), Some(generation)).unwrap(),
        [151643, 151645]
    );
    assert_eq!(ids(config, None).unwrap(), [151645]);
    assert_eq!(ids(json!({"eos_token_id": null}), None).unwrap(), [0u32; 0]);
    let error = ids(json!({}), Some(json!({"eos_token_id": [1, "x"]}))).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("generation_config.json: eos_token_id holds \"x\"")
    );
}

#[test]
fn rope_frequencies_are_those_of_transformers() {
    // The frequencies 0, 10, 16 (on Llama 3's ramp) and 25 of 32.
    let cases = [
        (
            json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}),
            (1.0, [0.25, 0.0140585, 0.0025, 0.000187474]),
        ),
        (
            json!({
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
                "rope_theta": 500000.0
            }),
            (1.0, [1.0, 0.0165604, 0.000524846, 4.41153e-06]),
        ),
        (
            json!({
                "rope_type": "yarn", "factor": 4.0, "rope_theta": 1000000.0,
                "original_max_position_embeddings": 32768
            }),
            (1.13863, [1.0, 0.0133352, 0.000583333, 5.13381e-06]),
        ),
    ];
    for (parameters, (factor, expected)) in cases {
        let config = with(smollm2(), json!({"rope_parameters": parameters})).unwrap();
        let (found, found_factor) = config.rope_frequencies();
        assert_eq!(found.len(), 32);
        assert!((found_factor - factor).abs() < 1e-5);
        for (at, expected) in [0, 10, 16, 25].into_iter().zip(expected) {
            assert!(
                (found[at] / expected - 1.0).abs() < 1e-5,
                "{at}: {} {expected}",
                found[at]
            );
        }
    }
    // What GGUF stores of the same: one divisor a frequency.
    let mut config = with(smollm2(), json!({})).unwrap();
    let plain = config.rope_frequencies().0;
    config.rope_scaling = RopeScaling::Factors {
        factors: vec![2.0; 32],
    };
    assert_eq!(config.rope_frequencies().0[3], plain[3] / 2.0);
}
