"""Folders that are complete or absent: a manifest of checksums, and a rename to commit."""

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
    """Write the manifest of `staging` and rename the folder to `final`, which is then complete."""
    (staging / MANIFEST).write_text(_manifest_text(staging))
    staging.rename(final)


def damage(folder: Path) -> str | None:
    """Return what is wrong with a committed folder, or None.

    The size and CRC-32 of every file are compared with the manifest. The manifest's text is compared
    with the text that would be written now. A changed bit is therefore found in any file.
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
    """Rename a damaged folder without deleting it, and return its new path."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.damaged-{number}")).exists():
        number += 1
    return folder.rename(aside)


def remove(folder: Path) -> None:
    """Delete a folder; after a kill half-way the rest does not count as a complete folder."""
    doomed = folder.with_name(f".deleting-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
