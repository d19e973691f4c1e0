"""What this process falls back to, said once."""

import functools
import logging

_log = logging.getLogger(__name__)


@functools.cache
def say_once(message: str) -> None:
    """Warn of a fallback, the first time alone."""
    _log.warning(message)
