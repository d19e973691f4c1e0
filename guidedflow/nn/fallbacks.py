"""Warnings about fallbacks, each given once per process."""

import functools
import logging

_log = logging.getLogger(__name__)


@functools.cache
def say_once(message: str) -> None:
    """Warn of a fallback, only the first time."""
    _log.warning(message)
