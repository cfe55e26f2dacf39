"""Whether a transform of `torch.func` is running: it takes apart what it runs, and not every operator lets it."""

from __future__ import annotations

import torch

REFUSAL = "it is an operator of its own that transforms of torch.func (grad, vmap, jvp, ...) cannot look into"
"""Why an operator that only autograd can differentiate does not serve inside a transform."""


@torch.compiler.assume_constant_result
def transformed() -> bool:
    """Return whether this runs inside a transform of `torch.func`; compiled code asks once, while it is traced."""
    return torch._C._functorch.peek_interpreter_stack() is not None
