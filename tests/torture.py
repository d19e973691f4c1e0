"""Kill a run at random moments and damage its checkpoints at random bits; `make torture`.

  python tests/torture.py [--kills=20] [--flips=20] [--seed=0] [--folder=…]

A run is killed by SIGKILL again and again, some of the time in the middle of a save, resumed each
time, and must end with the state, to the last bit, and the loss log of a run that never stopped. Then
one bit of its newest checkpoint is flipped at a time: each must be found, said and set aside, and the
older checkpoint used.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from guidedflow.training.checkpoint import path_of, read_record, restore, steps_in

WORKER = Path(__file__).parent / "training" / "worker.py"
STEPS = 600
# A save every few steps, so that a good part of the kills falls into one.
FIELDS = {"steps": STEPS, "log.every": 7, "checkpoint.every": 5}
FLAGS = ""  # of XLA: those that a user's run has


def command(folder):
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    return [sys.executable, os.fspath(WORKER), f"--workdir={folder}", *fields]


def start(folder, log):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS}
    environment["JAX_COMPILATION_CACHE_DIR"] = os.fspath(folder.parent / "compiled")
    return subprocess.Popen(command(folder), env=environment, stdout=log, stderr=log)


def result(folder):
    """Return what must not differ: the fingerprints of the last state, and the log."""
    record = read_record(path_of(folder / "checkpoints", STEPS))
    return record.leaves, (folder / "metrics.jsonl").read_bytes()


def kill_and_resume(folder, kills, dice, log):
    """Kill a run at random moments after it has begun to save; return how many fell into a save."""
    inside = 0
    for number in range(kills):
        process = start(folder, log)
        before = newest(folder)
        # Not before this start has done something that the next one can build on.
        while process.poll() is None and newest(folder) <= before:
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.3))
        process.kill()
        process.wait()
        inside += any((folder / "checkpoints").glob(".saving-*"))
        print(f"kill {number + 1}/{kills} at step {newest(folder)}", flush=True)
    finished = start(folder, log).wait()
    return inside, finished


def newest(folder):
    return max(steps_in(folder / "checkpoints"), default=0)


def torture_kills(folder, kills, dice):
    with (folder / "log").open("w") as log:
        if start(folder / "whole", log).wait():
            raise SystemExit(f"the run did not end well: see {folder / 'log'}")
        inside, code = kill_and_resume(folder / "killed", kills, dice, log)
    if code:
        raise SystemExit(f"the resumed run did not end well: see {folder / 'log'}")
    same = result(folder / "whole") == result(folder / "killed")
    print(
        f"kills: {kills if same else 0}/{kills} survived, {inside} of them within a save; "
        f"state and log {'bit-identical' if same else 'DIFFER'}"
    )
    return same


def abstract_of(folder):
    """Return the shapes that the run's checkpoints hold, from a fresh state of its config."""
    sys.path.insert(0, os.fspath(WORKER.parent))
    import conftest

    from guidedflow.training import build, parallel

    conftest.PRESETS["one layer"] = (conftest.OneLayer, {})
    task = build.build(conftest.tiny_config())
    return parallel.abstract_state(task.init, task.strategy)


def torture_flips(folder, flips, dice):
    """Flip one bit at a time, each in a fresh copy; return how many were found."""
    source = folder / "whole" / "checkpoints"
    abstract, steps = abstract_of(folder), steps_in(source)
    files = [p for p in path_of(source, steps[-1]).rglob("*") if p.is_file() and p.stat().st_size]
    found = 0
    for number in range(flips):
        copy = folder / "flipped"
        shutil.copytree(source, copy)
        file = copy / dice.choice(files).relative_to(source)
        content = bytearray(file.read_bytes())
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        file.write_bytes(content)
        said = []
        _, record = restore(copy, abstract, repair=True, say=said.append)
        good = record.step == steps[-2] and len(said) == 1 and steps_in(copy) == steps[:-1]
        found += good
        name = file.relative_to(copy / f"{steps[-1]:08d}")
        print(f"flip {number + 1}/{flips} in {name}: {'found' if good else 'MISSED'}", flush=True)
        shutil.rmtree(copy)
    print(f"flips: {found}/{flips} found")
    return found == flips


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--flips", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="kept; a temporary one is removed")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="torture-"))
    folder.mkdir(parents=True, exist_ok=True)
    dice = random.Random(options.seed)
    good = torture_kills(folder, options.kills, dice) & torture_flips(folder, options.flips, dice)
    if options.folder is None:
        shutil.rmtree(folder)
    print(json.dumps({"kills": options.kills, "flips": options.flips, "good": bool(good)}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
