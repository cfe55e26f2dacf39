"""The model card that lies beside saved weights: what the network is, costs and reaches, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from torch import nn

from condconv.conversion.apply import conditional_layers
from condconv.counting import count
from condconv.models.specs import SPECS
from condconv.variants import block_variants, variants

_UNKNOWN = "not stated"


def model_card(
    model: nn.Module,
    config: Mapping[str, Any],
    input_size: tuple[int, ...] | None,
    metrics: Mapping[str, float],
    data: str,
    license: str,
) -> str:
    """Markdown for a folder's ``README.md``; multiply-adds are counted by the papers' convention at ``input_size``."""
    size = input_size or default_input_size(config)
    title = config["name"] or config["network"]
    counted = count(model, size)
    layers = dict(conditional_layers(model))
    experts = sorted({layer.num_experts for layer in layers.values()})
    rows = {
        "network": f"`{title}`",
        "variant": _variant(config),
        "conditional layers": f"{len(layers)}, {'/'.join(map(str, experts))} experts each" if layers else "none",
        "parameters": f"{counted.params:,}",
        f"multiply-adds at {'×'.join(map(str, size))}": f"{counted.macs:,} (convention: {counted.convention})",
        "trained on": data or _UNKNOWN,
        "licence of the weights": license or _UNKNOWN,
    }
    static = "" if config["name"] else ", model=static"
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    measured = "\n".join(f"| {name} | {value:.4g} |" for name, value in metrics.items())
    about = ModelCardData(
        library_name="condconv",
        tags=["condconv", "image-classification"],
        license=str(license).lower() or None,
        model_name=title,
        eval_results=[
            EvalResult(
                task_type="image-classification", dataset_type="image", dataset_name=data or _UNKNOWN,
                metric_type=name, metric_value=float(value),
            )
            for name, value in metrics.items()
        ] or None,
    )  # fmt: skip
    return f"""---
{about.to_yaml()}
---

# {title}

| | |
|---|---|
{table}

## Metrics

{f"| metric | value |{chr(10)}|---|---|{chr(10)}{measured}" if metrics else "None stated."}

## How to load it

```python
import condconv

model = condconv.from_pretrained("path/to/this/folder"{static})  # or the hub id, owner/name
```

Weights are in safetensors format; nothing in this folder is executed. Made with condconv {config["condconv_version"]}.
"""


def default_input_size(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """The size that it was trained on, or that the papers' tables count at; 32 pixels where it is for small images."""
    if "images" in config:
        return tuple(config["images"]["input_size"])
    side = 300 if "ssd" in (config["name"] or "") else 224
    if config["arguments"].get("output_stride") is not None:
        side = 32
    return (config["arguments"].get("in_chans", 3), side, side)


def _variant(config: Mapping[str, Any]) -> str:
    records = config["conversion"] or []
    names = {record["variant"] for record in ([records] if isinstance(records, dict) else records)}
    if config["name"] in SPECS:
        names = {SPECS[config["name"]].variant}
    papers = [block_variants[name] if name in block_variants else variants[name] for name in sorted(names)]
    return "; ".join(f"{paper.name} — {paper.title}, {paper.url}" for paper in papers) or "none (static)"
