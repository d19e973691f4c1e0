"""Which extra of the package brings an optional module, for the message when it is missing."""

import importlib.util

# Imported module to the extra of pyproject.toml that installs it.
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
}


def missing(error: BaseException) -> str | None:
    """Return one line that names the extra to install, or None for any other error.

    Args:
      error: what an import raised.
    """
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    module = error.name.split(".")[0]
    # A part that an installed package lacks is a fault of versions, and no extra mends it.
    if module not in EXTRAS or importlib.util.find_spec(module) is not None:
        return None
    return f"{module} is not installed: pip install 'guidedflow[{EXTRAS[module]}]'"
