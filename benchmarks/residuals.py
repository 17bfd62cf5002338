"""What a record that keeps few logits costs the student: how far its gradient turns, for each policy of the residual.

    python -m benchmarks.residuals [--rows 256] [--quick]

No network is asked: logits over 1,000 classes are drawn from two models.

photo  N(0, 2²) for every class; 20 related classes raised by uniform(0, 9.27); the label raised by N(13.89, 3.88²). The
       three numbers solve for a top-1 accuracy of 76.1 % and a top-5 accuracy of 92.9 % (torchvision's first ResNet-50)
       and a mean confidence of 0.80 (overconfident by 4 points, as networks of that kind are on ImageNet; Guo et al.,
       ICML 2017, measured 5 to 6 on larger ones). What comes out is printed. The spread of the bulk, and how many
       classes are related, are assumptions: they decide how flat the tail is, and with it what temperature 4 sees.
gumbel standard Gumbel, one class raised by 8: hardly any confidence, a heavy tail. The worst that is to be expected.

A student is `new` (logits N(0, 1)) or `near` (the teacher's logits with N(0, 1.5²) on top). The gradient of the KL
divergence by the student's logits is (q - p) t: the angle is that between the completed p and the dense one.
`lost` is KL(dense teacher ‖ completed), infinite where a class that has mass gets none; `off` is the total variation
between the two. All are means over rows, of one view. A training sees a row in many views: what is drawn differs in
each, what is smeared does not. `views` is the angle, for `near`, of the gradient's mean over 30 views of the first 64
rows. `sampled` keeps half of the k logits, or none, and draws as many classes as the bytes of the others then hold:
half as many at temperature 4, since draws for temperature 1 are in the record too.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.figures import write
from kdscale.cache.layout import Layout
from kdscale.cache.records import decode, encode

CLASSES, KEPT, TEMPERATURES = 1000, (5, 10, 50), (1.0, 4.0)
VIEWS, VIEWED_ROWS = 30, 64
RELATED, BULK, RAISED, LABEL, LABEL_SPREAD = 20, 2.0, 9.27, 13.89, 3.88
FKD_BYTES, FKD_K = 29, 5
"""FKD's record in fp16: 4 coordinates, a flip, 5 indices and 5 probabilities."""


def photo(rows: int, rng: torch.Generator) -> Tensor:
    """Logits (rows, classes) of a good classifier of photographs; the label is class 0."""
    logits = BULK * torch.randn(rows, CLASSES, generator=rng)
    logits[:, 1 : RELATED + 1] += RAISED * torch.rand(rows, RELATED, generator=rng)
    logits[:, 0] += LABEL + LABEL_SPREAD * torch.randn(rows, generator=rng)
    return logits


def gumbel(rows: int, rng: torch.Generator) -> Tensor:
    """Logits (rows, classes) with a heavy tail; the label is class 0."""
    logits = -torch.rand(rows, CLASSES, generator=rng).clamp(min=1e-12).log()
    logits = -logits.log()
    logits[:, 0] += 8
    return logits


def layouts(k: int, temperature: float) -> dict[str, Layout]:
    """Every policy at k kept logits' bytes, for a loss at one temperature."""
    listed = tuple(sorted({1.0, temperature}))

    def sampled(kept: int) -> Layout:
        return Layout(CLASSES, "topk", kept, "sampled", 2 * (k - kept) // len(listed), listed)

    policies: tuple[Any, ...] = ("uniform", "ghost", "to_target", "renorm")
    plain = {name: Layout(CLASSES, "topk", k, name, temperatures=listed) for name in policies}
    return {**plain, f"sampled, {k // 2} kept": sampled(k // 2), "sampled, none kept": sampled(0)}


def compared(teacher: Tensor, students: dict[str, Tensor], layout: Layout, temperature: float) -> dict[str, Any]:
    """For each student: angle in degrees, KL in nats (None: infinite), total variation; means over rows."""
    log_p = (teacher.double() / temperature).log_softmax(1)
    found: dict[str, Any] = {}
    for name, student in students.items():
        log_c = completed(teacher, student, layout, temperature)
        found[name] = _distances(log_p, log_c, student / temperature)
    few, near = teacher[:VIEWED_ROWS], students["near"][:VIEWED_ROWS]
    views = VIEWS if layout.draws else 1
    mean = sum(completed(few, near, layout, temperature, view).exp() for view in range(views)) / views
    found["degrees_over_views"] = _angle(log_p[:VIEWED_ROWS].exp(), mean, (near.double() / temperature).softmax(1))
    return found


def completed(teacher: Tensor, student: Tensor, layout: Layout, temperature: float, view: int = 0) -> Tensor:
    """Log-probabilities (B, C), float64, as they come out of the cache."""
    labels = torch.zeros(len(teacher), dtype=torch.int64)
    records = encode(teacher, layout, labels=labels, rows=torch.arange(len(teacher)), view=view)
    logits = decode(records, layout, labels=labels).at(temperature, student / temperature).logits
    return (logits.double() / temperature).log_softmax(1)


def _angle(p: Tensor, c: Tensor, q: Tensor) -> float:
    """Mean angle between the gradients that p and c give a student at q, in degrees."""
    cosine = torch.cosine_similarity(q - p, q - c, dim=1).clamp(-1, 1)
    return math.degrees(float(cosine.acos().mean()))


def _distances(log_p: Tensor, log_c: Tensor, student: Tensor) -> dict[str, float | None]:
    p, c, q = log_p.exp(), log_c.exp(), student.double().softmax(1)
    massless = bool((c == 0).any())
    return {
        "degrees": _angle(p, c, q),
        "kl": None if massless else float((p * (log_p - log_c)).sum(1).mean()),
        "total_variation": float((p - c).abs().sum(1).mean() / 2),
    }


def described(teacher: Tensor) -> dict[str, Any]:
    """What the drawn teacher is like."""
    p = teacher.softmax(1)
    rank = (teacher > teacher[:, :1]).sum(1)
    confidence = p.amax(1)
    found = {
        "top1": float((rank == 0).float().mean()), "top5": float((rank < 5).float().mean()),
        "confidence": float(confidence.mean()),
    }  # fmt: skip
    rounded: dict[str, Any] = {name: round(value, 3) for name, value in found.items()}
    levels = torch.tensor([0.1, 0.25, 0.5, 0.75])
    quantiles = [round(value, 3) for value in confidence.quantile(levels).tolist()]
    return rounded | {"confidence_quantiles": quantiles, "mass_kept": {t: _kept(teacher, t) for t in TEMPERATURES}}


def _kept(teacher: Tensor, temperature: float) -> dict[int, float]:
    """Mass of the k largest, for each k."""
    p = (teacher / temperature).softmax(1)
    return {k: round(float(p.topk(k, dim=1).values.sum(1).mean()), 3) for k in KEPT}


def measure(rows: int) -> list[dict[str, Any]]:
    """Every case: teacher's model, temperature, k, policy."""
    cases = []
    for name, model in (("photo", photo), ("gumbel", gumbel)):
        rng = torch.Generator().manual_seed(0)
        teacher = model(rows, rng)
        noise = torch.randn(rows, CLASSES, generator=rng)
        students = {"new": noise, "near": teacher + 1.5 * noise}
        cases += [
            {"teacher": name, "temperature": t, "k": k, "policy": policy, "kept": layout.k, "draws": layout.draws}
            | {"bytes": layout.record_bytes, **compared(teacher, students, layout, t)}
            for t in TEMPERATURES
            for k in KEPT
            for policy, layout in [("dense", Layout(CLASSES, "dense")), *layouts(k, t).items()]
            if policy != "dense" or k == KEPT[0]
        ]
    return cases


def table(cases: list[dict[str, Any]], teacher: str, temperature: float) -> Table:
    """One teacher at one temperature."""
    shown = Table(title=f"{teacher}, temperature {temperature:g}", box=None, title_justify="left", padding=(0, 2, 0, 0))
    for column in (
        "k",
        "policy",
        "bytes",
        "TinyViT",
        "new: angle",
        "lost",
        "off",
        "near: angle",
        "lost",
        "off",
        "views",
    ):
        shown.add_column(column, justify="left" if column == "policy" else "right", no_wrap=True)
    for case in cases:
        if (case["teacher"], case["temperature"]) == (teacher, temperature):
            dense = case["policy"] == "dense"
            sizes = ("-", "dense") if dense else (str(case["k"]), case["policy"])
            theirs = "-" if dense else str(4 + 4 * case["k"])
            shown.add_row(
                *sizes,
                str(case["bytes"]),
                theirs,
                *_figures(case["new"]),
                *_figures(case["near"]),
                f"{case['degrees_over_views']:.2f}°",
            )
    return shown


def _figures(found: dict[str, Any]) -> list[str]:
    lost = "inf" if found["kl"] is None else f"{found['kl']:.4f}"
    return [f"{found['degrees']:.2f}°", lost, f"{found['total_variation']:.4f}"]


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--quick", action="store_true", help="few rows: for trying out only")
    chosen = parser.parse_args()
    rows = 64 if chosen.quick else chosen.rows
    cases = measure(rows)
    teachers = {m.__name__: described(m(max(rows, 4096), torch.Generator().manual_seed(0))) for m in (photo, gumbel)}
    write("residuals", [], quick=chosen.quick, cases=cases, teachers=teachers, logits=CLASSES, samples=rows)
    console = Console(width=120)
    for name, facts in teachers.items():
        console.print(f"{name}: {facts}", highlight=False)
        for temperature in TEMPERATURES:
            console.print(table(cases, name, temperature))
    console.print(
        f"TinyViT: 4 + 4K bytes, a seed with indices and probabilities at temperature 1 alone. FKD: {FKD_BYTES} bytes "
        f"at K = {FKD_K}, with its crop. Ours hold no seed: a view is a function of its number.",
        highlight=False,
    )


if __name__ == "__main__":
    main()
