from dataclasses import dataclass
from typing import Optional

OK = 'ok'
WARNING = 'warning'
PROBLEM = 'problem'


@dataclass(frozen=True)
class Finding:
    """
    Overview:
        What a check has seen.
    Arguments:
        - name (:obj:`str`): What was looked at.
        - status (:obj:`str`): 'ok', 'warning' (a part that not everybody needs does not work) or 'problem'.
        - seen (:obj:`str`): In a few words.
        - mend (:obj:`Optional[str]`): The command that mends it.
    """
    name: str
    status: str
    seen: str
    mend: Optional[str] = None
