#!/usr/bin/env python3
"""Answers a file of prompts greedily with transformers, and scores the answers that stand in it.

The file is a JSON list of {"prompt": token ids, "tokens": answer, "logprobs": [...]}. The one that
is written has the same prompts, this side's greedy tokens, and this side's log-probs of the answers
that it was given. Ends with status 3 where transformers is not installed. `tina-bench cpu` runs it.
"""

import itertools
import json

import common

parser = common.arguments(__doc__)
parser.add_argument("--answers", required=True, help="the file of prompts and answers")
parser.add_argument("--out", required=True, help="file to write")
parser.add_argument("--batch", type=int, default=32, help="prompts at a time at most")
args = parser.parse_args()
torch = common.start(args.threads)


def batches(answers):
    """Indices of prompts, and of answers, that are as long as each other: nothing is padded."""

    def size(index):
        return len(answers[index]["prompt"]), len(answers[index]["tokens"])

    for _, same in itertools.groupby(sorted(range(len(answers)), key=size), key=size):
        indices = list(same)
        for first in range(0, len(indices), args.batch):
            yield indices[first : first + args.batch]


@torch.no_grad()
def greedy(model, prompts, new):
    out = model.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=new,
        do_sample=False,
    )
    return out[:, prompts.shape[1] :]


@torch.no_grad()
def log_probs(model, prompts, tokens):
    new = tokens.shape[1]
    ids = torch.cat([prompts, tokens], 1)
    logits = model(input_ids=ids, logits_to_keep=new + 1, use_cache=False).logits[:, :-1]
    return logits.float().log_softmax(-1).gather(2, tokens[:, :, None])[:, :, 0]


model = common.load(torch, args)
with open(args.answers) as file:
    given = json.load(file)
made = [None] * len(given)
for indices in batches(given):
    prompts = torch.tensor([given[i]["prompt"] for i in indices])
    tokens = torch.tensor([given[i]["tokens"] for i in indices])
    own = greedy(model, prompts, tokens.shape[1]).tolist()
    scores = log_probs(model, prompts, tokens).tolist()
    for index, answer, score in zip(indices, own, scores):
        made[index] = {"prompt": given[index]["prompt"], "tokens": answer, "logprobs": score}
with open(args.out, "w") as file:
    json.dump(made, file)
print(json.dumps(common.about(torch, ("transformers", "torch"))))
