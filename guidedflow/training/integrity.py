"""Folders written whole: a manifest of checksums, a rename to commit, a name for bad ones."""

import json
import shutil
import zlib
from pathlib import Path

MANIFEST = "files.json"


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def _manifest_text(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    sums = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, _checksum(path)]
        for path in files
    }
    return json.dumps(sums, sort_keys=True)


def commit(staging: Path, final: Path) -> None:
    """Write the manifest of `staging` and rename it to `final`: from then on it is whole."""
    (staging / MANIFEST).write_text(_manifest_text(staging))
    staging.rename(final)


def damage(folder: Path) -> str | None:
    """Return what is wrong with a committed folder, or None.

    Every file's size and CRC-32 is compared with the manifest, and the manifest's text with what
    it would be if written now, so that a changed bit shows wherever it is.
    """
    manifest = folder / MANIFEST
    try:
        written = manifest.read_bytes()
    except OSError:
        return f"{MANIFEST} is missing"
    try:
        found = _manifest_text(folder)
    except OSError as error:
        return f"a file cannot be read: {error}"
    if written == found.encode():
        return None
    try:
        listed, present = json.loads(written), json.loads(found)
        names = sorted(n for n in {*listed, *present} if listed.get(n) != present.get(n))
    except (ValueError, AttributeError):
        return f"{MANIFEST} is damaged"
    if not names:
        return f"{MANIFEST} is damaged"
    state = "missing" if names[0] not in present else "damaged"
    return f"{names[0]} is {state}"


def set_aside(folder: Path) -> Path:
    """Rename a bad folder out of the way, never deleting it; return its new name."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.damaged-{number}")).exists():
        number += 1
    return folder.rename(aside)


def remove(folder: Path) -> None:
    """Delete a folder; a kill half-way leaves nothing that could be taken for a whole one."""
    doomed = folder.with_name(f".deleting-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
