"""What `product.cc` and `attention.cc` need of this machine, and the program made of them when asked for."""

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax

PRODUCT = "guidedflow_product"
ATTENTION = "guidedflow_attention"
ATTENTION_GRADIENT = "guidedflow_attention_gradient"
_HANDLERS = {
    PRODUCT: "GuidedflowProduct",
    ATTENTION: "GuidedflowAttention",
    ATTENTION_GRADIENT: "GuidedflowAttentionGradient",
}
_FOLDER = Path(__file__).parent
_SOURCES = [_FOLDER / name for name in ("product.cc", "attention.cc")]
_READ = [*_SOURCES, _FOLDER / "tiles.h"]
# What the compiler may use, and what the processor must then say that it has.
_UNITS = ("amx_bf16", "amx_tile", "avx512_bf16", "avx512bw", "avx512dq", "avx512f", "avx512vl")
_OPTIONS = ["-O3", "-std=c++17", "-shared", "-fPIC"]
_OPTIONS += ["-m" + name.replace("amx_", "amx-").replace("avx512_", "avx512") for name in _UNITS]


class Unavailable(Exception):
    """This machine cannot have the program; the message says why."""


def processor_units() -> set[str]:
    """Return the units that the processor says it has, empty where it cannot be asked."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return set(flags.partition(":")[2].split())


@functools.cache
def load() -> None:
    """Compile the program, unless the user's cache folder holds it, and make it known to JAX.

    Raises:
      Unavailable: the processor lacks the units, there is no C++ compiler ($CXX, or c++), or it
        refuses.
    """
    missing = sorted(set(_UNITS) - processor_units())
    if platform.machine() != "x86_64" or missing:
        raise Unavailable(f"the processor has no {', '.join(missing) or 'x86-64 instructions'}")
    library = ctypes.CDLL(str(_compiled()))
    for target, handler in _HANDLERS.items():
        capsule = jax.ffi.pycapsule(getattr(library, handler))
        jax.ffi.register_ffi_target(target, capsule, platform="cpu")


def _compiled() -> Path:
    """Return the compiled program, made where it is missing: whole or not at all."""
    parts = [path.read_bytes() for path in _READ] + [repr(_OPTIONS).encode()]
    parts.append(importlib.metadata.version("jaxlib").encode())
    name = f"units-{hashlib.sha256(b'/'.join(parts)).hexdigest()[:16]}.so"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = home / "guidedflow" / "native" / name
    if path.exists():
        return path
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        raise Unavailable("there is no C++ compiler: neither $CXX nor c++")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / name
            command = [*compiler.split(), *_OPTIONS, "-isystem", jax.ffi.include_dir()]
            command += [*map(str, _SOURCES), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            os.replace(made, path)
    except subprocess.CalledProcessError as error:
        said = (line for line in error.stderr.splitlines() if "error" in line)
        reason = next(said, "no reason given")
        raise Unavailable(f"{compiler} refused: {reason}") from error
    except OSError as error:
        raise Unavailable(str(error)) from error
    return path
