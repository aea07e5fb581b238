from typing import Any, Callable, Optional

from ..config import KVCacheConfig
from ..store import TokenStore
from .cached_model import CachedModel
from .compiled import Step, step_of
from .dimensions import longest_context
from .forward import Forward
from .model_watch import ModelWatch
from .positions import SearchPositions


class CurrentModel:
    """The ``Forward`` of a world model, made anew whenever the model has changed. ``on_change`` is called then: no
    context is of its weights any more. ``generation`` counts these changes; ``forward`` is None until it is asked for.
    """

    def __init__(
            self, config: KVCacheConfig, store: TokenStore, num_observations: int, on_change: Callable[[], None]
    ) -> None:
        self.generation = 0
        self.forward: Optional[Forward] = None
        self._config = config
        self._store = store
        self._num_observations = num_observations
        self._on_change = on_change
        self._step: Optional[Step] = None
        self._watch = ModelWatch()

    def of(self, world_model: Any) -> Forward:
        """Look at all of the model, as is due at the roots of a search."""
        if self._watch.has_changed(world_model):
            self._watch.remember(world_model)
            self.generation += 1
            self.forward = None
            self._on_change()
            if not self._store.slab.fits(world_model.transformer.ln_f.weight):
                self._store.drop_memory()
        if self.forward is None:
            num_places = longest_context(world_model.context_length, world_model.num_observations_tokens)
            model = CachedModel(world_model, num_places, not self._store.encodes_again)
            self._step = step_of(model, self._config, self._step)
            self.forward = Forward(
                model, self._step, self._store.slab, SearchPositions(self._config.rope_positions),
                self._config.on_miss == 'rebuild', self._num_observations
            )
        return self.forward

    def within_search(self, world_model: Any) -> Forward:
        """The same by a quick look, at an inference outside of LightZero's searches."""
        return self.of(world_model) if self.forward is None or self._watch.may_have_changed() else self.forward

    def at_simulation(self, world_model: Any) -> Forward:
        """The same by a quicker look. It notices writes by anything but an optimiser some simulations late."""
        return self.of(world_model) if self.forward is None or self._watch.some_may_have_changed() else self.forward

    def forget(self) -> None:
        """Weights may have been written to without a trace."""
        self.forward, self._watch = None, ModelWatch()

    def __getstate__(self) -> dict:
        # A copy's weights are its own.
        return dict(self.__dict__, forward=None, _step=None, _watch=ModelWatch())
