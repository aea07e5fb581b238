"""What mode 'validate' has seen."""
from collections import Counter
from dataclasses import dataclass, field


class KVCacheMismatchError(RuntimeError):
    """Managed and stock inference disagree where they should agree."""


class StockInferenceError(RuntimeError):
    """The stock code has failed by no fault that mode 'validate' knows."""


@dataclass
class ValidationReport:
    """Counts compared rows, those not compared by reason, and keeps the largest absolute difference."""
    agreed: int = 0
    differed: int = 0
    not_compared: Counter = field(default_factory=Counter)
    largest_difference: float = 0.0

    def __str__(self) -> str:
        reasons = ''.join(f'\n  {count} not compared: {reason}' for reason, count in self.not_compared.most_common())
        return (
            f'{self.agreed} predictions agreed with the stock ones (largest difference {self.largest_difference:.2e}), '
            f'{self.differed} differed{reasons}'
        )
