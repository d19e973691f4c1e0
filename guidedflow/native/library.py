"""The kernels of `sources/`, compiled for this machine's processor at their first use."""

import ctypes
import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import jax

PRODUCT = "guidedflow_product"
AFFINE = "guidedflow_affine"
AFFINE_GRADIENT = "guidedflow_affine_gradient"
ATTENTION = "guidedflow_attention"
ATTENTION_GRADIENT = "guidedflow_attention_gradient"
NORMALIZE = "guidedflow_normalize"
NORMALIZE_GRADIENT = "guidedflow_normalize_gradient"
_HANDLERS = {
    PRODUCT: "GuidedflowProduct",
    AFFINE: "GuidedflowAffine",
    AFFINE_GRADIENT: "GuidedflowAffineGradient",
    ATTENTION: "GuidedflowAttention",
    ATTENTION_GRADIENT: "GuidedflowAttentionGradient",
    NORMALIZE: "GuidedflowNormalize",
    NORMALIZE_GRADIENT: "GuidedflowNormalizeGradient",
}
_FOLDER = Path(__file__).parent / "sources"
_SOURCES = sorted(_FOLDER.glob("*.cc"))
_READ = sorted(_FOLDER.iterdir())
_OPTIONS = ["-O3", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=fast"]


@dataclasses.dataclass(frozen=True)
class Units:
    """Units of a processor that the kernels are compiled for.

    Attributes:
      needs: features that the processor must have and the compiler may use.
      least_rows: if the input has fewer rows, XLA's matmul is faster, because packing the right operand
        takes longer than the kernel saves.
      options: further compiler options.
    """

    needs: tuple[str, ...]
    least_rows: int
    options: tuple[str, ...] = ()

    def compiler_options(self) -> list[str]:
        """Return every option of the compiler."""
        named = (name.replace("amx_", "amx-").replace("avx512_", "avx512") for name in self.needs)
        return [*_OPTIONS, *self.options, *("-m" + name for name in named)]


_AVX512 = ("avx512bw", "avx512dq", "avx512f", "avx512vl")
# By name, the fastest first: matrix units (AMX), then fused multiply-add on wide and on narrow vectors.
UNITS: Mapping[str, Units] = {
    "amx": Units(("amx_bf16", "amx_tile", "avx512_bf16", *_AVX512), 256, ("-DGUIDEDFLOW_AMX",)),
    "avx512": Units((*_AVX512, "fma"), 512),
    "avx2": Units(("avx2", "fma"), 1024),
}


class Unavailable(Exception):
    """The kernels cannot be built or run on this machine; the message says why."""


def processor_units() -> set[str]:
    """Return the features that the processor reports; empty if they cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return set(flags.partition(":")[2].split())


def target(name: str, units: str) -> str:
    """Return the name under which a kernel for these units is registered in JAX."""
    return f"{name}_{units}"


def load(units: str) -> None:
    """Compile the kernels for a name of UNITS, unless the user's cache folder has them, and register
    them in JAX.

    Raises:
      Unavailable: the processor lacks the units, there is no C++ compiler ($CXX, or c++), or it
        fails. A process tries only once.
    """
    if hindrance := find_hindrance(units):
        raise Unavailable(hindrance)


@functools.cache
def find_hindrance(units: str) -> str:
    """Return the reason why `load` fails, or an empty string if it succeeds."""
    missing = sorted(set(UNITS[units].needs) - processor_units())
    if platform.machine() != "x86_64" or missing:
        return f"the processor has no {', '.join(missing) or 'x86-64 instructions'}"
    try:
        library = ctypes.CDLL(str(_compiled(units)))
    except Unavailable as error:
        return str(error)
    for name, handler in _HANDLERS.items():
        capsule = jax.ffi.pycapsule(getattr(library, handler))
        jax.ffi.register_ffi_target(target(name, units), capsule, platform="cpu")
    return ""


def _compiled(units: str) -> Path:
    """Return the file of the compiled kernels, and compile it first if it is missing."""
    options = UNITS[units].compiler_options()
    parts = [path.read_bytes() for path in _READ] + [repr(options).encode()]
    parts.append(importlib.metadata.version("jaxlib").encode())
    name = f"{units}-{hashlib.sha256(b'/'.join(parts)).hexdigest()[:16]}.so"
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
            command = [*compiler.split(), *options, "-isystem", jax.ffi.include_dir()]
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
