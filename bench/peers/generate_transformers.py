#!/usr/bin/env python3
"""Sampling by transformers' generate: random prompts, all different, temperature 1, no early end.

Prints one JSON object: tokens of prompts a second up to the first sampled token ("prefill"), and
further tokens a second ("decode"). Ends with status 3 where transformers is not installed.
`tina-bench cpu` runs it; by hand:

    LD_PRELOAD=libtcmalloc_minimal.so.4 \\
        python generate_transformers.py --model FOLDER --sequences 64 --prompt 64 --new 64
"""

import json
import time

import common

parser = common.arguments(__doc__)
parser.add_argument("--sequences", type=int, default=64)
parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
parser.add_argument("--new", type=int, default=64, help="tokens sampled after each")
args = parser.parse_args()
torch = common.start(args.threads)
from transformers import StoppingCriteria, StoppingCriteriaList  # noqa: E402


class Clock(StoppingCriteria):
    """Asked after every token whether to stop: it never does, and notes the time."""

    def __init__(self):
        self.ticks = []

    def __call__(self, ids, scores, **_):
        self.ticks.append(time.perf_counter())
        return torch.zeros(ids.shape[0], dtype=torch.bool)


@torch.no_grad()
def sample(model, prompt, new):
    """When it began, and when each token was there."""
    ids = torch.randint(10, model.config.vocab_size, (args.sequences, prompt))
    clock = Clock()
    began = time.perf_counter()
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        stopping_criteria=StoppingCriteriaList([clock]),
    )
    assert out.shape == (args.sequences, prompt + new), out.shape
    assert len(clock.ticks) == new, len(clock.ticks)
    return began, clock.ticks


model = common.load(torch, args)
sample(model, min(args.prompt, 8), min(args.new, 4))
began, ticks = sample(model, args.prompt, args.new)
prefill, decode = ticks[0] - began, ticks[-1] - ticks[0]
print(
    json.dumps(
        {
            "prefill": args.sequences * args.prompt / prefill,
            "decode": args.sequences * (args.new - 1) / max(decode, 1e-9),
            "prefill_seconds": prefill,
            "decode_seconds": decode,
        }
        | common.about(torch, ("transformers", "torch"))
    )
)
