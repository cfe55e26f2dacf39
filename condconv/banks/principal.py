"""Principal kernels: the few that a layer's experts amount to over given data.

    W(x) = Σᵢ αᵢ(x) Wᵢ  ≈  Σⱼ βⱼ(x) Vⱼ,    β = α M,    j = 1 … m ≤ n

The m kernels with which the mean square of what is lost over the data is least (Eckart and Young 1936, "The
approximation of one matrix by another of lower rank") come from S = mean of αᵀα, (n, n), and the kernels as rows of W:

    S^½ W Wᵀ S^½ = P Λ Pᵀ,    V = Pₘᵀ S^½ W,    M = S^-½ Pₘ

so that each βⱼ has a mean square of 1, and ‖Vⱼ‖² = Λⱼ falls with j. An expert that is never used is in no kernel, equal
experts are in one, and routing that never changes leaves one kernel in all.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NOTHING = 1e-10
"""Of the largest eigenvalue: directions in which the coefficients do not move."""


def principal_kernels(
    experts: Tensor, bias: Tensor | None, coefficients: Tensor | None, kernels: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return M (n, m), V (m, *kernel) and the biases (m, O) in the place of the experts', or None.

    Args:
        experts: W, (n, *kernel).
        bias: the experts' biases (n, O), or None.
        coefficients: α over the data, (N, n); None for zeros in all three.
        kernels: m, from 1 to n.
    """
    n = experts.shape[0]
    if coefficients is None or experts.is_meta:
        empty = [experts.new_zeros((kernels, *t.shape[1:])) for t in (experts, *([] if bias is None else [bias]))]
        return experts.new_zeros((n, kernels)), empty[0], None if bias is None else empty[1]
    rows = experts.double().flatten(1)
    if bias is not None:
        rows = torch.cat([rows, bias.double()], dim=1)
    alpha = coefficients.to(rows)
    values, vectors = torch.linalg.eigh(alpha.T @ alpha / len(alpha))
    values = values.where(values > _NOTHING * values[-1], 0)
    root = vectors * values.sqrt() @ vectors.T  # S^½
    inverse = vectors * values.sqrt().reciprocal().nan_to_num(posinf=0) @ vectors.T  # S^-½ where it is not zero
    principal = torch.linalg.eigh(root @ (rows @ rows.T) @ root).eigenvectors.flip(1)[:, :kernels]  # Pₘ
    made = principal.T @ root @ rows
    weight = made[:, : experts[0].numel()].unflatten(1, experts.shape[1:])
    return inverse @ principal, weight, None if bias is None else made[:, experts[0].numel() :]
