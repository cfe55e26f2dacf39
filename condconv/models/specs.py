"""The papers' networks as rows: a static backbone, and which of its layers become conditional.

How sure is each placement? Only the EfficientNet rows are documented, by the authors' TensorFlow code. The text of the
papers' appendices was not at hand for the others: their placement is the one that reproduces the published
multiply-adds and parameters (docs/numbers.md sets both side by side), which shows consistency, not proof.

Layer names are timm's. Block numbers in the comments count from 1, as the papers do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_MOBILE_CONVOLUTIONS = r"conv_(?:pw|dw|pwl)"


@dataclass(frozen=True)
class Spec:
    """One network of a paper.

    ``targets`` is a regular expression that a layer's whole name must match to become conditional; it never matches
    squeeze-and-excitation, which stays static in both papers. ``single`` are further conditional layers outside the
    shared blocks, each routed by its own input: the last 1x1 convolution, and the classifier (routed by the pooled
    features that feed it). ``timm_name`` is timm's implementation of the same network, where there is one; its
    published weights fit. ``placement`` says the same in words, for the documentation. ``options`` are those of the
    variant's layers that differ from their defaults, and ``together`` says which of them have something in common,
    given all options: {name: regex}.
    """

    name: str
    backbone: str
    variant: str
    num_experts: int
    targets: str
    placement: str
    single: tuple[str, ...] = ()
    timm_name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    together: Callable[[Mapping[str, Any]], Mapping[str, str]] | None = None

    @property
    def pattern(self) -> str:
        """The regular expression over all conditional layers' names."""
        return "|".join(f"(?:{part})" for part in (self.targets, *self.single))


def _condconv_rows() -> list[Spec]:
    rows = [
        Spec(
            f"condconv_mobilenetv1_{width}",
            f"mobilenetv1_{width}",
            "condconv",
            8,
            rf"blocks\.[34]\.\d+\.{_MOBILE_CONVOLUTIONS}",  # separable blocks 6..13
            "separable blocks 6–13, classifier",
            single=(r"classifier",),
        )
        for width in ("025", "050", "075", "100")
    ]
    rows += [
        Spec(
            f"condconv_mobilenetv2_{width}",
            f"mobilenetv2_{width}",
            "condconv",
            8,
            rf"blocks\.[3456]\.\d+\.{_MOBILE_CONVOLUTIONS}",  # inverted bottlenecks 7..17
            "inverted bottlenecks 7–17, last 1x1, classifier",
            single=(r"conv_head", r"classifier"),
        )
        for width in ("050", "100")
    ]
    rows.append(
        Spec(
            "condconv_mnasnet_a1",
            "mnasnet_a1",
            "condconv",
            8,
            rf"blocks\.[456]\.\d+\.{_MOBILE_CONVOLUTIONS}",  # blocks 11..16
            "inverted bottlenecks 11–16 (112, 160 and 320 channels)",
        )
    )
    rows.append(
        Spec(
            "condconv_resnet50",
            "resnet50",
            "condconv",
            8,
            r"layer4\.\d+\.conv[123]",
            "last three residual blocks without the shortcut convolution, classifier",
            single=(r"fc",),
        )
    )
    for suffix, backbone, experts, timm_name in (
        ("4e", "efficientnet_b0", 4, "tf_efficientnet_cc_b0_4e"),
        ("8e", "efficientnet_b0", 8, "tf_efficientnet_cc_b0_8e"),
        ("8e_depth", "efficientnet_b0_depth", 8, "tf_efficientnet_cc_b1_8e"),
    ):
        rows.append(
            Spec(
                f"condconv_efficientnet_b0_{suffix}",
                backbone,
                "condconv",
                experts,
                rf"blocks\.[456]\.\d+\.{_MOBILE_CONVOLUTIONS}",
                "last three stages (112, 192 and 320 channels), as in the authors' code",
                timm_name=timm_name,
            )
        )
    return rows


def _ssd_rows() -> list[Spec]:
    return [
        Spec(
            f"condconv_ssd_mobilenetv1_{width}",
            f"ssd_mobilenetv1_{width}",
            "condconv",
            8,
            rf"backbone\.blocks\.[34]\.\d+\.{_MOBILE_CONVOLUTIONS}|extras\.\d+\.(?:reduce|expand)",
            "separable blocks 6–13, the eight extra feature layers; predictors static",
        )
        for width in ("050", "075", "100")
    ]


def _pose_rows() -> list[Spec]:
    """Dynamic Convolution, section 5.3: the backbone alone with head A, backbone and head with head B."""
    mobile = rf"backbone\.(?:blocks\.\d+\.\d+\.{_MOBILE_CONVOLUTIONS}|conv_head)"
    head = r"head\.(?:reduce\.0|levels\.\d+\.\d+\.(?:expand|depthwise|project))"
    where = "all convolutions of the backbone but the first"
    return [
        Spec("dynamic_pose_mobilenetv2_100_a", "pose_mobilenetv2_100_a", "dynamic_convolution", 4, mobile, where),
        Spec(
            "dynamic_pose_mobilenetv2_050_b", "pose_mobilenetv2_050_b", "dynamic_convolution", 4, rf"{mobile}|{head}",
            f"{where}, those of the head but the last",
        ),
    ]  # fmt: skip


def _dynamic_rows() -> list[Spec]:
    def row(backbone: str, targets: str, placement: str) -> Spec:
        return Spec(f"dynamic_{backbone}", backbone, "dynamic_convolution", 4, targets, placement)

    mobile = rf"blocks\.\d+\.\d+\.{_MOBILE_CONVOLUTIONS}"
    rows = [
        row(f"mobilenetv2_{width}", mobile, "all convolutions of the inverted bottlenecks")
        for width in ("035", "050", "075", "100")
    ]
    rows += [
        row(
            f"mobilenetv3_{size}",
            rf"{mobile}|blocks\.\d+\.\d+\.conv",
            "all convolutions but the first and squeeze-and-excitation's",
        )
        for size in ("small", "large")
    ]
    rows += [
        row(
            f"resnet{layers}",
            r"layer\d\.\d+\.(?:conv\d|downsample\.0)",
            "all convolutions but the first",
        )
        for layers in (10, 18, 50)
    ]
    return rows


def _odconv_rows() -> list[Spec]:
    residual = r"layer\d\.\d+\.conv\d", "all convolutions of the residual blocks, shortcuts static"
    mobile = rf"blocks\.\d+\.\d+\.{_MOBILE_CONVOLUTIONS}|conv_head", "all convolutions but the first"
    backbones = {f"resnet{layers}": residual for layers in (18, 50)}
    backbones |= {f"mobilenetv2_{width}": mobile for width in ("050", "075", "100")}
    return [Spec(f"odconv_{name}", name, "odconv", 1, *where) for name, where in backbones.items()]


def _dcd_rows() -> list[Spec]:
    rows = [
        Spec(
            f"dcd_resnet{layers}",
            f"resnet{layers}",
            "dcd",
            1,
            r"layer\d\.\d+\.conv\d",
            "all convolutions of the residual blocks, shortcuts static; classifier",
            single=("fc",),
            options={"sizes": sizes},
        )
        for layers, sizes in ((18, "basic"), (50, "bottleneck"))
    ]
    rows += [
        Spec(
            f"dcd_mobilenetv2_{width}",
            f"mobilenetv2_{width}",
            "dcd",
            1,
            r"blocks\.[1-6]\.\d+\.conv_pwl?",
            "1x1 convolutions of the inverted bottlenecks 2–17, classifier",
            single=("classifier",),
            options={"sizes": "mobile", "squeeze": 16 if width in ("075", "100") else 8},
        )
        for width in ("035", "050", "075", "100")
    ]
    return rows


def _residual_warehouses(options: Mapping[str, Any]) -> dict[str, str]:
    """One for each stage; what leads into a stage, its first convolution and its shortcut, is of the stage before."""
    return {
        f"stage {stage}": rf"^layer{stage}\.(?:0\.conv[{'1' if stage == 1 else ''}23]|[1-9]\.conv\d)"
        + (rf"|^layer{stage + 1}\.0\.(?:conv1|downsample)" if stage < 4 else "")
        for stage in (1, 2, 3, 4)
    }


def _mobile_warehouses(options: Mapping[str, Any]) -> dict[str, str]:
    """Depthwise and 1x1 convolutions of each stage apart, and with a budget above 1 the two kinds of 1x1 as well.

    The block that leads into a stage is of the stage before; the last two stages are one.
    """
    blocks = [r"(?:0\.0|1\.0)", r"(?:1\.1|2\.0)", r"(?:2\.[12]|3\.0)", r"(?:3\.[123]|4\.0)", r"(?:4\.[12]|5\.0)"]
    blocks.append(r"(?:5\.[12]|6\.0)")
    depthwise_separable = r"|^blocks\.0\.0\.conv_pw$"  # Its 1x1 convolution projects.
    found = {}
    for number, block in enumerate(blocks, 1):
        inside, last = rf"^blocks\.{block}\.conv_", r"|^conv_head" if number == len(blocks) else ""
        found[f"depthwise {number}"] = rf"{inside}dw$"
        if options["budget"] in ("2", "4"):
            found[f"expand {number}"] = rf"(?!{depthwise_separable[1:]}){inside}pw$"
            found[f"project {number}"] = rf"{inside}pwl${last}" + (depthwise_separable if number == 1 else "")
        else:
            found[f"pointwise {number}"] = rf"{inside}pwl?${last}"
    return found


def _kernel_warehouse_rows() -> list[Spec]:
    def row(backbone: str, targets: str, placement: str, together: Any) -> Spec:
        name = f"kernel_warehouse_{backbone}"
        return Spec(name, backbone, "kernel_warehouse", 1, targets, placement, together=together)

    words = "all convolutions of the residual blocks and the shortcuts"
    mobile = rf"conv_stem|blocks\.\d+\.\d+\.{_MOBILE_CONVOLUTIONS}|conv_head"
    return [
        row("resnet18", r"layer\d\.\d+\.(?:conv\d|downsample\.0)", words, _residual_warehouses),
        row(
            "resnet50",
            r"(?!layer1\.0\.(?:conv1|downsample))layer\d\.\d+\.(?:conv\d|downsample\.0)",
            f"{words} but the first 1x1 and the first shortcut",
            _residual_warehouses,
        ),
        *(row(f"mobilenetv2_{width}", mobile, "all convolutions", _mobile_warehouses) for width in ("050", "100")),
    ]


def _fdconv_rows() -> list[Spec]:
    where = r"layer\d\.\d+\.conv\d", "all convolutions of the residual blocks, shortcuts static"
    return [Spec("fdconv_resnet50", "resnet50", "fdconv", 64, *where)]


_ROWS = (
    _condconv_rows, _ssd_rows, _pose_rows, _dynamic_rows, _odconv_rows, _dcd_rows, _kernel_warehouse_rows, _fdconv_rows,
)  # fmt: skip
SPECS: dict[str, Spec] = {spec.name: spec for rows in _ROWS for spec in rows()}
