"""Is everything well while it trains? Routers by their coefficients on the validation set, loading by the clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl

from condconv.analysis.totals import DEAD_SHARE, HIGH, off_below
from condconv.evaluation.routing import RouterHealth, routed_together
from condconv.routing_hooks import layer_of
from condconv.runs.metrics import EpochRow
from condconv.training.callbacks import EpochRows
from condconv.training.module import TrainingModule
from condconv.training.nan_check import router_of

WAITING_LIMIT = 0.2
"""Share of the training time spent waiting for images from which on that is said."""

HEALTH_COLUMNS = (
    "network", "epoch", "router", "layers", "experts", "entropy", "dead", "always_on", "bimodality",
)  # fmt: skip


class HealthWarnings(pl.Callback):
    """Keeps a row for each router and epoch, and says once what is wrong. Placed after `EpochRows`.

    Args:
        rows: the epochs of this network.
        on_rows: gets all rows so far after each epoch.
        notice: shows one line to the user.
        workers: loader processes.
    """

    def __init__(
        self, rows: EpochRows, on_rows: Callable[[list[EpochRow]], None], notice: Callable[[str], None], workers: int
    ) -> None:
        self.epochs = rows
        self.on_rows = on_rows
        self.notice = notice
        self.workers = workers
        self.rows: list[EpochRow] = []
        self.said: set[str] = set()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the epoch that is over."""
        assert isinstance(pl_module, TrainingModule)
        for kind, text in [*self._routers(pl_module), *self._loading()]:
            if kind not in self.said:
                self.said.add(kind)
                self.notice(text)

    def _routers(self, module: TrainingModule) -> Iterator[tuple[str, str]]:
        if module.routing is None:
            return
        health = module.routing.compute().health
        epoch = self.epochs.rows[-1]["epoch"]
        for first, layers in routed_together(module.network).items():
            if first not in health:
                continue
            found = health[first]
            router = router_of(module.network, layer_of(first))
            self.rows.append(_row(self.epochs.network, epoch, first, len(layers), found))
            others = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
            where = f"{first}{others} ({router})"
            for state, experts, bound in (
                ("dead", found.dead, f"below {off_below(found.experts):g}"),
                ("always on", found.always_on, f"above {HIGH}"),
            ):
                if experts and found.experts > 1:
                    yield (
                        f"{first} {state}",
                        f"warning: {where}: {len(experts)} of {found.experts} experts are {state} "
                        f"({', '.join(map(str, experts))}): coefficient {bound} for at least {DEAD_SHARE:.1%} of the "
                        f"validation images in epoch {epoch}; see docs/training.md, 'Router health'",
                    )
        self.on_rows(self.rows)

    def _loading(self) -> Iterator[tuple[str, str]]:
        waiting = float(self.epochs.rows[-1]["loading_share"])
        if waiting > WAITING_LIMIT:
            yield (
                "loading",
                f"notice: {waiting:.0%} of the training time went by waiting for images; raise --workers (now "
                f"{self.workers}); see docs/training.md, 'Loading'",
            )

    def state_dict(self) -> dict[str, Any]:
        """Rows so far, and what was said."""
        return {"rows": [dict(row) for row in self.rows], "said": sorted(self.said)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state."""
        self.rows, self.said = [dict(row) for row in state_dict["rows"]], set(state_dict["said"])


def _row(network: str, epoch: float | int | str, router: str, layers: int, health: RouterHealth) -> EpochRow:
    return {
        "network": network,
        "epoch": epoch,
        "router": router,
        "layers": layers,
        "experts": health.experts,
        "entropy": health.entropy,
        "dead": " ".join(map(str, health.dead)),
        "always_on": " ".join(map(str, health.always_on)),
        "bimodality": health.bimodality,
    }
