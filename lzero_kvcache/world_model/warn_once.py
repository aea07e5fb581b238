import logging
from typing import Any

logger = logging.getLogger('lzero_kvcache')


class WarnOnce:
    """Logs each warning, known by its sentence, only once; ``values`` are for its placeholders."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def __call__(self, sentence: str, *values: Any) -> None:
        if sentence not in self._given:
            self._given.add(sentence)
            logger.warning(f'{sentence} Said once.', *values)
