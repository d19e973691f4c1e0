"""The `guidedflow` program: finds the subcommand, and says what went wrong in one line."""

import contextlib
import importlib
import os
import sys
import traceback
from pathlib import Path

from guidedflow.commands.flags import has_gpu_plugin, use_flags
from guidedflow.commands.memory import collect_seldom, keep_memory
from guidedflow.extras import missing
from guidedflow.registry import choose

# Subcommand to module. A module is imported only if its subcommand is called.
COMMANDS = {
    "configs": "guidedflow.commands.configs",
    "prepare": "guidedflow.commands.prepare",
    "encode": "guidedflow.commands.encode",
    "train": "guidedflow.commands.train",
    "sample": "guidedflow.commands.sample",
    "evaluate": "guidedflow.commands.evaluate",
    "bench": "guidedflow.commands.bench",
    "plan": "guidedflow.commands.plan",
}

CACHE_BYTES = 2 * 1024**3


def use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, up to 2 GiB; the longest unused are deleted first.

    JAX_COMPILATION_CACHE_DIR names another folder; if it is empty, the cache is off.
    """
    import jax

    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(home / "guidedflow" / "jax"))
    if not folder:
        return
    _trim(Path(folder))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _trim(folder: Path) -> None:
    """Delete the longest unused files until the rest fit; another process may be doing the same."""
    files = [path for path in folder.glob("*") if path.is_file()]
    with contextlib.suppress(OSError):
        found = [(path.stat(), path) for path in files]
        dated = sorted((max(s.st_atime, s.st_mtime), s.st_size, path) for s, path in found)
        excess = sum(size for _, size, _ in dated) - CACHE_BYTES
        for _, size, path in dated:
            if excess <= 0:
                break
            path.unlink()
            excess -= size


def explain(error: BaseException) -> str | None:
    """Return one line for an error that the user can fix, None for any other."""
    # The error of a full disk contains this word too.
    if "RESOURCE_EXHAUSTED" in str(error) and not isinstance(error, OSError):
        return "out of device memory: take a smaller batch, config.accumulate, or fsdp"
    absent = missing(error)
    if absent is not None:
        return absent
    # Our code raises exactly these two classes (the adaptive solver); subclasses come from Python and JAX.
    ours = type(error) in (ImportError, RuntimeError)
    if ours or isinstance(error, ValueError | OSError | FloatingPointError):
        return " ".join(str(error).split())
    return None


def run(arguments: list[str]) -> int:
    """Run a subcommand and return its exit code.

    Raises:
      ValueError: there is no such subcommand, or the subcommand raises it.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: guidedflow {' | '.join(COMMANDS)}   (each with --help)")
        return 0 if arguments else 2
    module = choose("command", arguments[0], COMMANDS)
    use_flags()
    # The benchmark also runs other projects' programs, with the process settings that their users have.
    if module != COMMANDS["bench"]:
        collect_seldom()
        if not has_gpu_plugin():
            keep_memory(os.environ)
    use_compilation_cache()
    return importlib.import_module(module).main(arguments[1:])


def main(arguments: list[str] | None = None) -> int:
    """Run the program. An error that the user can fix is one line on stderr and exit code 2.

    GUIDEDFLOW_TRACEBACK=1 shows the traceback.
    """
    try:
        code = run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        line = explain(error)
        if line is None or os.environ.get("GUIDEDFLOW_TRACEBACK"):
            traceback.print_exc()
        if line is not None:
            print(f"guidedflow: {line}", file=sys.stderr)
        code = 1 if line is None else 2
    if code:
        _leave_other_processes(code)
    return code


def _leave_other_processes(code: int) -> None:
    """Exit at once if the job has other processes: an ordinary exit waits for them, and they wait for
    this one."""
    jax = sys.modules.get("jax")
    # Do not ask JAX for the number of processes: the call would wait until all are connected.
    if jax is not None and jax.distributed.is_initialized():
        if code == 1:
            print(
                "guidedflow: the job ends with this process; where the error above is one of the "
                "connection, another process failed first",
                file=sys.stderr,
            )
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
