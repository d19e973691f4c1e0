"""Random access to array_record shards; errors name the record and the file."""

import dataclasses
import os
from collections.abc import Sequence

from array_record.python.array_record_data_source import ArrayRecordDataSource

from guidedflow.data.dataset import Indices


@dataclasses.dataclass(frozen=True)
class Shard:
    """Records [skip, skip + take) of one file, with the field names of array_record and tfds."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class Records:
    """The records of several shards, one after the other."""

    def __init__(self, shards: Sequence[Shard]):
        self._shards = tuple(shards)
        for shard in self._shards:
            if not os.path.isfile(shard.filename):
                raise ValueError(f"missing file: {shard.filename}")
        self._source = ArrayRecordDataSource(self._shards)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: Indices) -> list[bytes]:
        """Return these records.

        Raises:
          ValueError: a record fails its checksum or cannot be reached; the message names the file
            and the record.
        """
        wanted = indices.tolist()
        try:
            return list(self._source.__getitems__(wanted))
        except (RuntimeError, IndexError, OSError):
            # The error of a batch does not name the bad record; reading one at a time finds it.
            return [self._read_one(index) for index in wanted]

    def _read_one(self, index: int) -> bytes:
        try:
            return self._source[index]
        except (RuntimeError, IndexError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"cannot read {self.place(index)}: {reason}") from error

    def place(self, index: int) -> str:
        """Return the location of a record: its number within its file, the file, the example's index."""
        within = index
        for shard in self._shards:
            if within < shard.take:
                return f"record {shard.skip + within} of {shard.filename} (example {index})"
            within -= shard.take
        return f"example {index}"
