import logging
from typing import Any

logger = logging.getLogger('lzero_kvcache')


class WarnOnce:
    """
    Overview:
        Logs each warning the first time that it is given.
    """

    def __init__(self) -> None:
        self._given: set[str] = set()

    def __call__(self, sentence: str, *values: Any) -> None:
        """
        Overview:
            Give a warning.
        Arguments:
            - sentence (:obj:`str`): The warning, by which it is known again.
            - values (:obj:`Any`): For its placeholders.
        """
        if sentence not in self._given:
            self._given.add(sentence)
            logger.warning(f'{sentence} Said once.', *values)
