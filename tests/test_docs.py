"""The pages of docs/ hold what runs: files that parse, and commands whose options exist."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from guidedflow.cli import COMMANDS
from guidedflow.commands import encode, evaluate, sample, train

DOCS = Path(__file__).parents[1] / "docs"
BLOCKS = [
    (page.name, kind, text)
    for page in sorted(DOCS.glob("*.md"))
    for kind, text in re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.DOTALL)
]


def commands():
    """Every `guidedflow SUBCOMMAND ...` of the blocks, as words."""
    for page, kind, text in BLOCKS:
        if kind == "yaml":
            text = " ".join(text.split())
        joined = re.sub(r"\\\n\s*", " ", text)
        for line in re.findall(rf"guidedflow (?:{'|'.join(COMMANDS)})\b[^\n]*", joined):
            line = re.split(r" (?:resources:|&$|')|'$", line)[0]
            line = re.sub(r"\$\{?\w+\}?", "1", line)
            yield pytest.param(shlex.split(line)[1:], id=f"{page}: {line[:50]}")


@pytest.mark.parametrize("words", list(commands()))
def test_every_command_of_the_pages_takes_its_options(words):
    name, *options = words
    if name == "train":
        (config,) = [o for o in options if o.startswith("--config=")] or ["--config=digits"]
        there = DOCS.parent / config.replace("1/guidedflow/", "").removeprefix("--config=")
        given = f"--config={there}" if there.is_file() else config
        # A run that goes on takes the config of its workdir, whatever it was.
        rest = [o for o in options if o != config]
        assert train.parse([given, *rest]).workdir
    elif name in ("sample", "evaluate", "encode"):
        module = {"sample": sample, "evaluate": evaluate, "encode": encode}[name]
        assert module.parser().parse_args(options)


def test_there_are_commands_to_check():
    found = [param.values[0][0] for param in commands()]
    assert found.count("train") >= 4
    assert found.count("encode") >= 2


@pytest.mark.parametrize(
    "text", [text for _, kind, text in BLOCKS if kind in ("bash", "sh")], ids=lambda text: text[:20]
)
def test_every_script_parses(text):
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_the_file_for_kubernetes_is_whole():
    """Every volume that is mounted is declared; all pods are told of, and restarted when stopped."""
    (text,) = [text for _, kind, text in BLOCKS if kind == "yaml"]
    service, job = yaml.safe_load_all(text)
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert spec["completions"] == spec["parallelism"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    (line,) = container["args"]
    name = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert f"--coordinator={name}:" in line
    assert f"--process_count={spec['parallelism']} " in line
    assert re.search(r"--stop_code=[1-9]", line)


def test_the_file_for_slurm_starts_every_process_with_all_its_gpus_and_cores(tmp_path):
    (text,) = [text for _, _, text in BLOCKS if "#SBATCH" in text]
    asked = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", text))
    fake = tmp_path / "bin" / "srun"
    fake.parent.mkdir()
    fake.write_text('#!/bin/bash\necho "$JAX_LOCAL_DEVICE_IDS"; printf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", text],
        env={
            "PATH": f"{fake.parent}:/usr/bin:/bin",
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_CPUS_PER_TASK": asked["cpus-per-task"],
        },
        capture_output=True,
        text=True,
        check=True,
    )
    devices, *words = done.stdout.split()
    assert devices == ",".join(map(str, range(int(asked["gpus-per-node"]))))
    assert f"--cpus-per-task={asked['cpus-per-task']}" in words
    assert {"--distributed", "--resume"} <= set(words)
