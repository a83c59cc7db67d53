//! The policy: architecture, weights, tokenizer, chat template, LoRA, kernels.
