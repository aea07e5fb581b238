"""How long a choice of a search has to wait until it is the best one."""
from typing import NamedTuple

import numpy as np

# A choice whose rivals are better by far waits for longer than any search lasts.
LONGEST_WAIT = 500
TIE = 1e-9


class Choices(NamedTuple):
    """
    Overview:
        What a search chooses from: its nodes, and the untried actions of each node. A score is a value, and a prior
        times its parent's exploration / (visits + 1). One number per choice.
    Arguments:
        - values (:obj:`np.ndarray`): Between 0 and 1.
        - priors (:obj:`np.ndarray`): Of the actions that lead there.
        - visits (:obj:`np.ndarray`): So far.
        - exploration (:obj:`np.ndarray`): Of the parent.
        - tries (:obj:`np.ndarray`): Visits of all children of the parent.
    """
    values: np.ndarray
    priors: np.ndarray
    visits: np.ndarray
    exploration: np.ndarray
    tries: np.ndarray

    def scores(self) -> np.ndarray:
        """
        Overview:
            By which the search chooses: the largest of each parent.
        """
        return self.values + self.exploration * self.priors / (self.visits + 1)


def visits_until_chosen(choices: Choices, waiting: np.ndarray, rivals: np.ndarray, pb_c_init: float) -> np.ndarray:
    """
    Overview:
        How many visits of its parent go to others before a choice is the best one, if values stay as they are. A better
        rival is visited until its share of exploration has shrunk to the choice's score, or until exploration has grown
        so far that the choice outdoes the rival's value, whichever comes first.
    Arguments:
        - choices (:obj:`Choices`): All of them, N.
        - waiting, rivals (:obj:`np.ndarray`): The numbers of two choices of the same parent, pair by pair.
        - pb_c_init (:obj:`float`): Of the selection rule: exploration grows by so much with the root of the visits.
    Returns:
        - visits (:obj:`np.ndarray`): At least 0, :math:`(N, )`.
    """
    scores = choices.scores()
    outdone = scores[rivals] > scores[waiting] + TIE
    waiting, rivals = waiting[outdone], rivals[outdone]
    with np.errstate(divide='ignore', invalid='ignore'):
        margins = scores[waiting] - choices.values[rivals]
        bonuses = choices.exploration[rivals] * choices.priors[rivals]
        shrinking = np.where(
            margins > TIE, np.ceil(bonuses / margins - choices.visits[rivals] - 1 - TIE), np.inf
        )
        leads = choices.values[rivals] - choices.values[waiting]
        needed = leads * (choices.visits[waiting] + 1) / choices.priors[waiting]
        growing = (needed / pb_c_init) ** 2 - choices.tries[waiting]
    growing = np.where(growing > 0, growing, np.inf)
    return np.bincount(waiting, np.clip(np.minimum(shrinking, growing), 1, LONGEST_WAIT), minlength=len(scores))
