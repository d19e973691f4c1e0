"""Install what `make dist` built into empty environments and try it as a user would.

  python tests/try_dist.py dist

The wheel and the sdist are tried alike: the core alone runs the example of README.md and says which extra
the program needs; with the extra `train` a tiny run is trained and sampled. Then the sdist is unpacked, and
both commands of README.md run in it: a part of `make test`, and `make demo` whole. Needs pip and a registry,
or a mirror of one; versions are those of requirements.lock.
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TINY = [
    "--config.network.preset=tiny",
    "--config.network.depth=1",
    "--config.batch=16",
    "--config.steps=4",
    "--config.optimizer.warm_up=2",
    "--config.sample.steps=2",
    "--config.log.tensorboard=False",
]
TESTS = "tests/test_readme.py tests/test_docs.py tests/test_config_files.py tests/test_paths.py"


def say(line):
    print(f"dist: {line}", flush=True)


def run(*command, cwd, code=0):
    """Run a command outside the checkout; return what it printed."""
    inherited = {
        k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "PYTHON"))
    }
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**inherited, "TFDS_DATA_DIR": str(cwd / "sets")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != code:
        print(done.stdout)
        sys.exit(f"dist: {command} ended with {done.returncode}, expected {code}")
    return done.stdout


def expect(text, found):
    """End the program unless `text` is in what was printed."""
    if text not in found:
        print(found)
        sys.exit(f"dist: expected {text!r}")


def check_wheel(wheel):
    """Every file of the package and every config is in the wheel."""
    files = [f for f in (ROOT / "guidedflow").rglob("*") if f.is_file() and f.suffix != ".pyc"]
    wanted = {f.relative_to(ROOT).as_posix() for f in files}
    wanted |= {f"guidedflow/configs/{f.name}" for f in (ROOT / "configs").glob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        missing = sorted(wanted - set(archive.namelist()))
    if missing:
        sys.exit(f"dist: {wheel.name} lacks {', '.join(missing)}")
    say(f"{wheel.name} holds the package's {len(wanted)} files")


def install(environment, requirement):
    python = environment / "bin" / "python"
    lock = ROOT / "requirements.lock"
    pip = ("-m", "pip", "--disable-pip-version-check", "--quiet", "install")
    run(python, *pip, "-c", lock, requirement, cwd=environment)
    return python


def try_core(environment, built):
    """Without extras: the example of the README runs, and the program names the extra."""
    python = install(environment, built)
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(
        1
    )
    ending = "\nimport importlib.util as i\nprint('flax' if i.find_spec('flax') else 'core alone')"
    expect("core alone", run(python, "-c", example + ending, cwd=environment))
    program = environment / "bin" / "guidedflow"
    expect("digits_long", run(program, "configs", cwd=environment))
    found = run(program, "train", "--config=digits", "--workdir=run", cwd=environment, code=2)
    expect("pip install 'guidedflow[train]'", found)
    say(f"{built.name} without extras: the README's example runs; train names its extra")


def try_program(environment, built):
    """With the extra `train`: help, configs, a tiny run and a grid drawn from it."""
    install(environment, f"{built}[train]")
    program = environment / "bin" / "guidedflow"
    expect("train", run(program, "--help", cwd=environment))
    expect("digits_long", run(program, "configs", cwd=environment))
    run(program, "train", "--config=digits", "--workdir=run", *TINY, cwd=environment)
    run(program, "train", "--workdir=run", "--resume", "--config.steps=5", cwd=environment)
    grid = environment / "grid.png"
    run(program, "sample", "--workdir=run", "--steps=2", f"--out={grid}", cwd=environment)
    if not grid.is_file():
        sys.exit("dist: no grid was drawn")
    say(f"{built.name} with the extra train: trained, resumed and sampled")


def try_sources(folder, sdist):
    """Both commands of the README in the unpacked sdist."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    say("make test, in the unpacked sdist")
    expect(" passed", run("make", "test", f"ARGS={TESTS}", cwd=root))
    say("make demo, in the unpacked sdist")
    expect("pictures: ", run("make", "demo", cwd=root))
    say("both commands of the README run from the sdist")


def main():
    folder = Path(sys.argv[1])
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    check_wheel(wheel)
    for built in (wheel, sdist):
        with tempfile.TemporaryDirectory() as temporary:
            environment = Path(temporary)
            venv.create(environment, with_pip=True)
            try_core(environment, built.absolute())
            try_program(environment, built.absolute())
    with tempfile.TemporaryDirectory() as temporary:
        try_sources(Path(temporary), sdist)


if __name__ == "__main__":
    main()
