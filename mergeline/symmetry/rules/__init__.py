"""What each operation does to permutations. Importing the package fills the table.

To add a rule, write a function with the decorator `rule` in the module of its kind.
"""

from mergeline.symmetry.rules import (  # noqa: F401
    contractions,
    convolution,
    creation,
    indexing,
    movement,
    normalisation,
    pointwise,
    pooling,
    recurrent,
    reductions,
)
from mergeline.symmetry.rules.table import Call, Parameter, find_rule, labelled, rule, rule_names, tensors_in

__all__ = ["Call", "Parameter", "find_rule", "labelled", "rule", "rule_names", "tensors_in"]
