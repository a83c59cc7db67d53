#!/usr/bin/env python3
"""The step of `tina-bench step`, taken by TRL's GRPOTrainer with PEFT on the CPU.

Prints one JSON object: seconds of every step and of its parts, the first step included. Ends with
status 3 where TRL is not installed. `tina-bench step` runs it; by hand:

    python grpo_step_trl.py --model FOLDER --dtype bf16 --steps 4
"""

import argparse
import importlib.metadata
import json
import os
import random
import re
import sys
import tempfile
import time

STARTED = time.perf_counter()

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--model", required=True, help="folder in Hugging Face layout")
parser.add_argument("--dtype", choices=["f32", "bf16"], default="bf16")
parser.add_argument("--steps", type=int, default=4)
parser.add_argument("--prompts", type=int, default=8)
parser.add_argument("--completions", type=int, default=8, help="of each prompt")
parser.add_argument("--max-tokens", type=int, default=48, help="of a completion")
parser.add_argument("--micro", type=int, default=16, help="sequences of one pass")
parser.add_argument("--rank", type=int, default=16)
parser.add_argument("--alpha", type=float, default=32)
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--out", help="folder that the trainer may write to")
args = parser.parse_args()

# Nothing is fetched, nothing runs on a GPU.
os.environ.update(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
try:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
except ImportError as error:
    print(f"{error} (pip install -r bench/peers/requirements.txt)", file=sys.stderr)
    sys.exit(3)

torch.set_num_threads(args.threads)


def problems(count):
    """Sums of two two-digit numbers, as `arithmetic:add2`."""
    rng = random.Random(1)
    for _ in range(count):
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        yield {"prompt": [{"role": "user", "content": f"What is {a} + {b}?"}], "answer": a + b}


def answer(completions, answer, **_):
    """1 where the last number is right."""
    numbers = [re.findall(r"-?\d+", completion[0]["content"]) for completion in completions]
    return [float(bool(n) and int(n[-1]) == gold) for n, gold in zip(numbers, answer)]


spent = {"_generate": 0.0, "_calculate_rewards": 0.0, "_generate_and_score_completions": 0.0}
sampled = 0


def timed(name):
    """Adds up the time in one of the trainer's methods, and the tokens that it generated."""
    method = getattr(GRPOTrainer, name)

    def wrapper(self, *a, **k):
        global sampled
        began = time.perf_counter()
        result = method(self, *a, **k)
        spent[name] += time.perf_counter() - began
        if name == "_generate":
            sampled += sum(len(ids) for ids in result[1])
        return result

    setattr(GRPOTrainer, name, wrapper)


for name in spent:
    timed(name)


class Steps(TrainerCallback):
    """A step goes from one end of a step to the next: completions are made while the trainer
    prepares its inputs. What is neither sampling nor scoring is learning."""

    def __init__(self):
        self.steps = []
        self.start = self.last = 0.0

    def on_train_begin(self, *_, **__):
        self.last = time.perf_counter()
        self.start = self.last - STARTED

    def on_step_end(self, *_, **__):
        global sampled
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        self.steps.append(
            {
                "seconds": seconds,
                "sample": spent["_generate"],
                "score": spent["_calculate_rewards"],
                "learn": seconds - spent["_generate"] - spent["_calculate_rewards"],
                "tokens_sampled": sampled,
            }
        )
        spent.update(dict.fromkeys(spent, 0.0))
        sampled = 0
        print(f"step {len(self.steps)}: {seconds:.2f} s", file=sys.stderr)


def allocator():
    """The one that is loaded, whatever was asked for."""
    with open("/proc/self/maps") as maps:
        return "tcmalloc" if "libtcmalloc" in maps.read() else "system malloc"


sequences = args.prompts * args.completions
micro = min(args.micro, sequences)
if sequences % micro:
    sys.exit(f"{sequences} completions make no whole number of passes of {micro}: see --micro")
steps = Steps()
trainer = GRPOTrainer(
    model=args.model,
    reward_funcs=[answer],
    args=GRPOConfig(
        output_dir=args.out or tempfile.mkdtemp(),
        use_cpu=True,
        bf16=args.dtype == "bf16",
        model_init_kwargs={"dtype": "bfloat16" if args.dtype == "bf16" else "float32"},
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=sequences // micro,
        num_generations=args.completions,
        max_completion_length=args.max_tokens,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        loss_type="grpo",
        beta=0.0,
        num_iterations=1,
        activation_checkpointing=False,
        max_steps=args.steps,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=1,
    ),
    train_dataset=Dataset.from_list(list(problems(1000))),
    processing_class=AutoTokenizer.from_pretrained(args.model, padding_side="left"),
    peft_config=LoraConfig(
        r=args.rank,
        lora_alpha=args.alpha,
        task_type="CAUSAL_LM",
        target_modules=[f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")],
    ),
    callbacks=[steps],
)
trainer.train()
packages = ("trl", "transformers", "peft", "torch")
print(
    json.dumps(
        {
            "start_seconds": steps.start,
            "steps": steps.steps,
            "malloc": allocator(),
            "threads": torch.get_num_threads(),
            "versions": ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages),
        }
    )
)
