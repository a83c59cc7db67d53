"""math-verify's verdicts on a file of JSON lines {gold, completion}, one process, timed one by one.

    pip install -r bench/peers/requirements-verify.txt
    python bench/peers/verify_math_verify.py --config tina FILE

Prints one JSON object: {"version", "seconds": [...], "verdicts": [true, false or null, ...]}.
`tina-bench verify --python PYTHON` calls it.
"""

import argparse
import json
import logging
import time
from importlib.metadata import version

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify


def tina(gold, completion):
    """The accuracy reward of Tina, Open-R1 and TRL."""
    gold = parse(gold, extraction_mode="first_match")
    if not gold:
        return None
    answer = parse(
        completion,
        extraction_config=[
            LatexExtractionConfig(
                normalization_config=NormalizationConfig(
                    basic_latex=True,
                    units=True,
                    malformed_operators=False,
                    nits=False,
                    boxed="all",
                    equations=True,
                ),
                boxed_match_priority=0,
                try_extract_without_anchor=False,
            )
        ],
        extraction_mode="first_match",
    )
    return bool(verify(gold, answer))


def default(gold, completion):
    """The library as it is without arguments."""
    gold = parse(gold)
    if not gold:
        return None
    return bool(verify(gold, parse(completion)))


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--config", choices=["tina", "default"], default="tina")
    options.add_argument("file")
    options = options.parse_args()
    # equations=True, which the paper's code sets, warns at every call.
    logging.disable(logging.CRITICAL)
    judge = tina if options.config == "tina" else default
    with open(options.file, encoding="utf-8") as file:
        cases = [json.loads(line) for line in file]
    judge("$1$", r"\boxed{1}")  # compiles the regular expressions
    seconds, verdicts = [], []
    for case in cases:
        start = time.perf_counter()
        verdicts.append(judge(case["gold"], case["completion"]))
        seconds.append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                "version": version("math-verify"),
                "seconds": seconds,
                "verdicts": verdicts,
            }
        )
    )


if __name__ == "__main__":
    main()
