"""Data sets as numbered examples, and batches of them as a function of (seed, step)."""

from guidedflow.data.dataset import Batch, Dataset
from guidedflow.data.latent_files import write_latents
from guidedflow.data.latents import LatentDecoder
from guidedflow.data.pipeline import Batches, pipeline, random_flip
from guidedflow.data.prefetch import Prefetch, prefetch
from guidedflow.data.sources import SOURCES, default_data_dir, load, prepare

__all__ = [
    "SOURCES",
    "Batch",
    "Batches",
    "Dataset",
    "LatentDecoder",
    "Prefetch",
    "default_data_dir",
    "load",
    "pipeline",
    "prefetch",
    "prepare",
    "random_flip",
    "write_latents",
]
