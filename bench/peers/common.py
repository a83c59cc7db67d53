"""What the peers' scripts share: how they begin, and what they say of themselves."""

import argparse
import importlib.metadata
import os
import sys

# Tells the benchmark that the peer is not installed.
NOT_INSTALLED = 3


def arguments(doc):
    """A parser of the arguments that all of them have."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder in Hugging Face layout")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="bf16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser


def start(threads):
    """torch, set up: nothing is fetched, nothing runs on a GPU. Ends where it is not installed."""
    os.environ.update(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    try:
        import peft  # noqa: F401
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        print(f"{error} (pip install -r bench/peers/requirements.txt)", file=sys.stderr)
        sys.exit(NOT_INSTALLED)
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    return torch


def load(torch, args):
    """The model, which ends at no token."""
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def allocator():
    """The one that is loaded, whatever was asked for."""
    with open("/proc/self/maps") as maps:
        return "tcmalloc" if "libtcmalloc" in maps.read() else "system malloc"


def about(torch, packages):
    """Memory, allocator, threads and versions, for the report."""
    with open("/proc/self/status") as status:
        (peak,) = [line for line in status if line.startswith("VmHWM:")]
    return {
        "peak_mib": int(peak.split()[1]) / 1024,
        "malloc": allocator(),
        "threads": torch.get_num_threads(),
        "versions": ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages),
    }
