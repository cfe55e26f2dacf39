"""What the inference form costs in accuracy and saves in file size: small networks on digits, and EfficientNet-B0-8e.

    python benchmarks/inference_form.py            writes benchmarks/results/inference_form.csv, then docs/inference.md
    python benchmarks/inference_form.py --docs     writes the table of docs/inference.md from the CSV again

The small networks are trained here, in a few minutes: 30 epochs of scikit-learn's digits, one seed.
"""

from __future__ import annotations

import argparse
import csv
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import condconv
from condconv.data import open_source
from condconv.inference.form import ExpertStorage, RestStorage
from condconv.safe_text import write_csv

HERE = Path(__file__).resolve().parent
OUT = HERE / "results" / "inference_form.csv"
PAGE = HERE.parent / "docs" / "inference.md"
TABLE = re.compile(r"(?<=<!-- table: inference_form -->\n).*?(?=<!-- end -->)", re.DOTALL)

TRAINED = ("condconv_mobilenetv1_025", "dynamic_mobilenetv2_035")
LARGE = "condconv_efficientnet_b0_8e"
FORMS: tuple[tuple[ExpertStorage, RestStorage], ...] = (
    ("f32", "f32"), ("bf16", "f32"), ("int8", "f32"), ("bf16", "bf16"), ("int8", "bf16"),
)  # fmt: skip
EPOCHS, BATCH_SIZE = 30, 64

Line = dict[str, str]


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalised images (N, 1, 8, 8) and labels (N,) for training and for validation."""
    source = open_source("digits")
    parts: list[Tensor] = []
    for images in (source.train, source.val):
        pixels = torch.stack([images.load(i) for i in range(len(images))]).float() / 255
        parts += [(pixels - source.mean[0]) / source.std[0], images.labels]
    return parts[0], parts[1], parts[2], parts[3]


def trained(name: str, images: Tensor, labels: Tensor) -> nn.Module:
    """A network of the zoo after 30 epochs; the temperature of Dynamic Convolution is annealed in the first ten."""
    torch.manual_seed(0)
    model = condconv.create_model(name, num_classes=10, in_chans=1, output_stride=4)
    steps = -(-len(images) // BATCH_SIZE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * steps)
    dynamic = any(isinstance(module, condconv.SoftmaxGate) for module in model.modules())
    schedule = condconv.RoutingSchedule(model, steps=10 * steps) if dynamic else None
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH_SIZE):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            decay.step()
            if schedule is not None:
                schedule.step()
    return model.eval()


def state_bytes(model: nn.Module) -> int:
    """Size of the weights in a safetensors file, its header left out."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def measured() -> Iterator[Line]:
    """One line for each network and form; the networks of before have the form "none"."""
    about = {"machine": platform.machine(), "torch": torch.__version__, "condconv": condconv.__version__}
    train_images, train_labels, images, labels = digits()
    for name in TRAINED:
        model = trained(name, train_images, train_labels)
        with torch.no_grad():
            expected = model(images)
            for form in (None, *FORMS):
                made = model if form is None else condconv.optimize_for_inference(model, *form)
                experts, rest = form or ("", "")
                outputs = made(images)
                yield {
                    "network": name,
                    "experts": experts,
                    "rest": rest,
                    "bytes": str(state_bytes(made)),
                    "images": str(len(images)),
                    "correct": str(int((outputs.argmax(1) == labels).sum())),
                    "same_answer": str(int((outputs.argmax(1) == expected.argmax(1)).sum())),
                    "output_error": f"{float((outputs - expected).abs().max() / expected.abs().max()):.2e}",
                    **about,
                }
    with torch.device("meta"):  # shapes are enough
        model = condconv.create_model(LARGE)
    for form in (None, *FORMS):
        made = model if form is None else condconv.optimize_for_inference(model, *form)
        experts, rest = form or ("", "")
        empty = dict.fromkeys(("images", "correct", "same_answer", "output_error"), "")
        yield {"network": LARGE, "experts": experts, "rest": rest, "bytes": str(state_bytes(made)), **empty, **about}


def table(lines: list[Line]) -> str:
    """The table of the page."""
    rows = ["| network | experts | rest | file, MB | accuracy | same answer | largest output error |", "|---" * 7 + "|"]
    for line in lines:
        form = [line["experts"] or "as trained", line["rest"] or "f32"]
        cells = [f"`{line['network']}`", *form, f"{int(line['bytes']) / 1e6:.2f}"]
        if line["images"]:
            shares = (int(line[key]) / int(line["images"]) for key in ("correct", "same_answer"))
            cells += [*(f"{100 * share:.2f} %" for share in shares), line["output_error"]]
        else:
            cells += ["–"] * 3
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def measure_or_rewrite(
    about: str | None, lines: Callable[[], Iterable[Line]], made: Callable[[list[Line]], str],
    out: Path, page: Path, place: re.Pattern[str],
) -> None:  # fmt: skip
    """The command line: measure and write the CSV, unless --docs is given; then the table at its place of the page."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", action="store_true", help="write the table from the CSV, without measuring")
    if not parser.parse_args().docs:
        found = list(lines())
        write_csv(out, list(found[0]), (line.values() for line in found))
    with out.open(newline="", encoding="utf-8") as file:
        text = made(list(csv.DictReader(file)))
    page.write_text(place.sub(lambda _: text, page.read_text(encoding="utf-8")), encoding="utf-8")
    print(text)


def main() -> None:
    """Measure, write the CSV and the table."""
    measure_or_rewrite(__doc__, measured, table, OUT, PAGE, TABLE)


if __name__ == "__main__":
    main()
