"""A reward in Python: 1 for a completion of at most 200 words, less the longer it is."""
import json
import sys

for line in sys.stdin:
    ask = json.loads(line)
    words = len(ask["completion"].split())
    reward = min(1.0, 200 / words) if words else None  # None: it can't be judged
    print(json.dumps({"id": ask["id"], "reward": reward, "reason": f"{words} words"}), flush=True)
