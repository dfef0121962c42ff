"""A trainer for tests of launches, which starts at once: `python pretended_trainer.py RUN STEPS HOW`.

It "trains" a step each tenth of a second and puts a checkpoint into RUN, from the newest on; SIGTERM ends it with 143 after a step.
HOW: well; killed@3 (by itself, once, in step 3), raises@3 (each time), refuses, killed (each time, at once); rank 1 alone does it where
there are two. RUN/starts.jsonl gets a line for each start.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    run, steps, (how, _, at) = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3].partition("@")
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if name.startswith(("GRPO_MM_", "MASTER", "LOCAL_"))}
    with open(run / f"starts_{rank}.jsonl", "a") as file:
        file.write(json.dumps({"pid": os.getpid(), "words": sys.argv[4:], **kept}) + "\n")
    done = max([0, *(int(path.name[5:]) for path in (run / "checkpoints").iterdir())])
    print(f"going on from {done}", flush=True)
    does = how != "well" and rank == world - 1
    if how == "refuses" and does:
        print("ConfigError: steps = -1; wanted above 0.", flush=True)
        sys.exit(2)
    for step in range(done + 1, steps + 1):
        if does and how == "killed" and (not at or int(at) == step and not (run / "was_killed").exists()):
            (run / "was_killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if does and how == "raises" and int(at) == step:
            print(f"RuntimeError: step {step}: the port {os.getpid()} is taken", flush=True)
            sys.exit(1)
        time.sleep(0.1)
        if rank == 0:
            (run / f"checkpoints/step_{step:06d}").mkdir(exist_ok=True)
        print(f"step {step}/{steps}", flush=True)
        if (run / "another_ends").exists():
            print("TrainingStopped: process 1 ended without a word", flush=True)
            sys.exit(3)
        if asked:
            sys.exit(143)


if __name__ == "__main__":
    main()
