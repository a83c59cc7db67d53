#!/usr/bin/env python3
"""A LoRA training step in torch with PEFT: GRPO's clipped loss over random completions, AdamW.

All sequences have an advantage and go through both passes. Prints one JSON object with the step's
seconds; a smaller step before it warms up. Ends with status 3 where PEFT is not installed.
`tina-bench cpu` runs it; by hand:

    LD_PRELOAD=libtcmalloc_minimal.so.4 python train_step_peft.py --model FOLDER --sequences 64
"""

import json
import time

import common

parser = common.arguments(__doc__)
parser.add_argument("--sequences", type=int, default=64)
parser.add_argument("--group", type=int, default=1, help="sequences that share a prompt")
parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
parser.add_argument("--completion", type=int, default=64, help="tokens of a completion")
parser.add_argument("--warm-up", type=int, default=16, help="sequences of the step before")
parser.add_argument("--micro", type=int, default=16, help="sequences of one pass")
parser.add_argument("--rank", type=int, default=16)
args = parser.parse_args()
torch = common.start(args.threads)
from peft import LoraConfig, get_peft_model  # noqa: E402

CLIP = 0.2


def batch(sequences, vocabulary):
    """Token ids, and an advantage for each sequence: none is 0."""
    prompts = torch.randint(10, vocabulary, (-(-sequences // args.group), args.prompt))
    prompts = prompts.repeat_interleave(args.group, 0)[:sequences]
    completions = torch.randint(10, vocabulary, (sequences, args.completion))
    advantages = torch.linspace(-1, 1, 2 * sequences)[::2]
    return torch.cat([prompts, completions], 1), advantages


def log_probs(model, ids):
    """Of the completions' tokens, in f32."""
    kept = args.completion + 1
    logits = model(input_ids=ids, logits_to_keep=kept, use_cache=False).logits[:, :-1]
    targets = ids[:, -args.completion :]
    loss = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction="none"
    )
    return -loss.view_as(targets)


def step(model, optimizer, sequences):
    """Seconds forward, backward, and in the optimiser."""
    ids, advantages = batch(sequences, model.config.vocab_size)
    forward = backward = 0.0
    for rows, scale in zip(ids.split(args.micro), advantages.split(args.micro)):
        began = time.perf_counter()
        new = log_probs(model, rows)
        # Sampled by the same policy, so the ratio is 1 and its gradient is the advantage's.
        ratio = (new - new.detach()).exp()
        scale = scale[:, None]
        gain = torch.minimum(ratio * scale, ratio.clamp(1 - CLIP, 1 + CLIP) * scale)
        loss = -gain.sum() / (sequences * args.completion)
        there = time.perf_counter()
        loss.backward()
        forward += there - began
        backward += time.perf_counter() - there
    began = time.perf_counter()
    torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return forward, backward, time.perf_counter() - began


base = common.load(torch, args)
lora = LoraConfig(
    r=args.rank,
    lora_alpha=2 * args.rank,
    task_type="CAUSAL_LM",
    target_modules=[f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")],
)
# The adapter in the weights' type: in f32 it would cost conversions.
model = get_peft_model(base, lora, autocast_adapter_dtype=False).train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
step(model, optimizer, min(args.warm_up, args.sequences))
began = time.perf_counter()
forward, backward, update = step(model, optimizer, args.sequences)
print(
    json.dumps(
        {
            "seconds": time.perf_counter() - began,
            "forward_seconds": forward,
            "backward_seconds": backward,
            "optimizer_seconds": update,
        }
        | common.about(torch, ("peft", "transformers", "torch"))
    )
)
