"""What attacks do to students, on a page: a matrix of losses and tasks, curves over their size, and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from student.evaluation.attack import CLEAN, DEPTH_OF_LABELS, NOISE, SUM, Attack, AttackResult
from student.evaluation.attack_checks import AttackCheck
from student.evaluation.run import Example
from student.report.charts import heat_map, over_strength
from student.report.damage import damage
from student.report.evaluation import where
from student.report.images import ImageArray, beside, draw_detections, scale_to
from student.report.page import Page

# Run -> its outcomes, the clean one first.
ResultsByRun = Mapping[str, Sequence[AttackResult]]

# Metric -> what it is called, and whether more of it is better.
_TASKS = {
    "AP50": ("AP50", True),
    "recall@100": ("recall@100", True),
    "depth/AbsRel": ("AbsRel, found", False),
    DEPTH_OF_LABELS: ("AbsRel, labels", False),
}
_LEAST_SCORE = 0.5
_PANEL_PX, _COLUMNS = 768, 3
# Clean AP50s that differ by no more than this are as good.
_MATCHED = 0.1


def table(outcomes: ResultsByRun) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows: an attack a row, each run's tasks side by side, and what is lost of its AP50."""
    attacks = dict.fromkeys(str(outcome.attack) for found in outcomes.values() for outcome in found)
    header, rows = ["attack"], [[attack] for attack in attacks]
    for run, found in outcomes.items():
        prefix = f"{run}: " if len(outcomes) > 1 else ""
        header += [f"{prefix}{title}" for title, _ in _TASKS.values()] + [f"{prefix}AP50 lost"]
        by_name = {str(outcome.attack): outcome.metrics for outcome in found}
        clean = by_name[CLEAN]
        for row in rows:
            metrics = by_name.get(row[0], {})
            row += [f"{metrics[name]:.3f}" if name in metrics else "-" for name in _TASKS]
            known = "AP50" in metrics and "AP50" in clean
            row.append(f"{damage(clean['AP50'], metrics['AP50'], True):.0%}" if known else "-")
    return header, rows


def fill_page(page: Page, outcomes: ResultsByRun, epsilon: float) -> None:
    """Draw the outcomes of one or more runs on a page; at `epsilon` each loss was attacked alone."""
    page.text(
        "Each attack moves the pixels of the images towards a larger loss (projected gradient ascent within a maximum"
        " change of each value, from a random start): one loss alone, or their sum with the weights of the end of the"
        " training. Noise changes every value by as much, up or down by chance. The student's weights stay as they are"
        " and know nothing of it; teachers see the clean images, so an attack on an imitation loss moves the student's"
        " branch away from what its teacher says of the clean image. Losses of other distillation methods are left"
        " alone."
    )
    first = next(iter(outcomes.values()))[0]
    page.text(
        f"{first.images:,} images with {first.objects:,} labelled boxes; the fewer they are, the less do small"
        " differences mean. Losses are computed with the proposals of the attacked image and its labelled boxes."
    )
    page.text(
        "AbsRel, found: the depth error of detections that are right, which under an attack are fewer and easier ones."
        " AbsRel, labels: that of the depths predicted for the labelled boxes, the same in every row."
    )
    for run, found in outcomes.items():
        page.heading(f"Which loss breaks which task: {run}")
        page.image(
            _matrix(found, epsilon),
            f"A row for each loss that was raised, by {epsilon:g}/255; columns are what it did: tasks, then losses as"
            " multiples of the clean ones. Red: worse than on clean images, white: unchanged, blue: better.",
        )
    page.heading("Over the size of the change")
    page.image(_curves(outcomes), "Solid: attacks on the weighted sum of the losses. Dashed: noise of the same size.")
    page.text(matching(outcomes))
    page.heading("All attacks")
    header, rows = table(outcomes)
    page.table(rows, header)
    for run, found in outcomes.items():
        page.heading(f"Attacked images: {run}")
        page.text(
            f"Detections with a score of {_LEAST_SCORE:g} and more; labelled boxes are dashed. Last, by how much the"
            " values of an image were changed: gray is not at all."
        )
        for number, example in enumerate(found[0].examples):
            page.image(_panels(found, epsilon, number), where(example))


def fill_checks(page: Page, checks: Mapping[str, Sequence[AttackCheck]]) -> None:
    """Say what must hold of an honest attack, and whether it does, by run."""
    page.heading("Is the attack honest?")
    page.text(
        "An attack that finds little may be a weak attack. Of a strong one, damage rises with its size and its steps,"
        " the largest breaks nearly all (a tenth of AP50 is left), noise of the same size does little (four fifths are"
        " left), and images that were made for another run do less than those made for this one."
    )
    rows = [[run, one.claim, "yes" if one.holds else "NO", one.seen] for run, each in checks.items() for one in each]
    page.table(rows, ["run", "claim", "holds", "AP50"])


def matching(outcomes: ResultsByRun) -> str:
    """Say which runs are equally good on clean images: of others, what is lost cannot be compared."""
    clean = {run: found[0].metrics.get("AP50", 0.0) for run, found in outcomes.items()}
    told = ", ".join(f"{run} {value:.3f}" for run, value in clean.items())
    (first, best), *others = clean.items()
    matched = [run for run, value in others if abs(value - best) <= _MATCHED * max(value, best)]
    if not others:
        return f"Clean AP50: {told}."
    return (
        f"Clean AP50: {told}. A better detector has more to lose: compare what is left absolutely, and relative to the"
        f" clean AP50, only of runs whose clean AP50 is within {_MATCHED:.0%} of {first}'s: "
        + (", ".join(matched) if matched else "none; train.py --loop.keep keeps the steps before, give one of them")
        + "."
    )


def _matrix(found: Sequence[AttackResult], epsilon: float) -> bytes:
    clean = found[0].metrics
    rows = [
        one for one in found if one.attack.goal == CLEAN or (one.attack.epsilon == epsilon and one.attack.steps is None)
    ]
    losses = [name for name in clean if name.startswith("loss/")]
    values, texts = [], []
    for outcome in rows:
        metrics, line, cells = outcome.metrics, [], []
        for name, (_, more) in _TASKS.items():
            known = name in metrics and name in clean
            line.append(damage(clean[name], metrics[name], more) if known else np.nan)
            cells.append(f"{metrics[name]:.3f}" if name in metrics else "-")
        for name in losses:
            line.append(damage(clean[name], metrics[name], False))
            times = metrics[name] / clean[name] if clean[name] else np.nan
            cells.append(f"{clean[name]:.3g}" if outcome is found[0] else f"x {times:.2f}")
        values.append(line)
        texts.append(cells)
    columns = [title.replace(", ", "\n") for title, _ in _TASKS.values()]
    columns += [name.removeprefix("loss/").replace("/", "/\n") for name in losses]
    names = [one.attack.goal + ("" if one.attack.source is None else f" of {one.attack.source}") for one in rows]
    return heat_map(np.array(values, np.float64), texts, names, columns, f"raised loss, by {epsilon:g}/255")


def _curves(outcomes: ResultsByRun) -> bytes:
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for name, (title, _) in _TASKS.items():
        lines = {}
        for run, found in outcomes.items():
            for goal, suffix in ((SUM, ""), (NOISE, ", noise")):
                shown = [
                    one
                    for one in found
                    if one.attack.goal in (CLEAN, goal) and one.attack.is_plain and name in one.metrics
                ]
                shown.sort(key=lambda one: one.attack.epsilon)
                if shown:
                    points = ([one.attack.epsilon for one in shown], [one.metrics[name] for one in shown])
                    lines[f"{run}{suffix}"] = points
        if lines:
            panels[title] = lines
    return over_strength(panels, "most that a value changes [1/255]")


def _panels(found: Sequence[AttackResult], epsilon: float, number: int) -> ImageArray:
    """Return one image as it is and under some of the attacks, with what was changed of it by the sum's."""
    largest = max(one.attack.epsilon for one in found)
    shown = {(CLEAN, 0), (NOISE, epsilon), ("objectness", epsilon), (SUM, epsilon), (SUM, largest)}
    chosen = [one for one in found if (one.attack.goal, one.attack.epsilon) in shown and one.attack.is_plain]
    panels = [(str(one.attack), _drawn(one.examples[number])) for one in chosen]
    clean = found[0].examples[number].sample.image
    for one in chosen:
        if one.attack == Attack(goal=SUM, epsilon=epsilon):
            panels.append((f"change by {one.attack}", _changes(one.examples[number].sample.image - clean, epsilon)))
    return beside(panels, columns=_COLUMNS)


def _drawn(example: Example) -> ImageArray:
    image = (example.sample.image * 255).round().byte()
    return draw_detections(
        image, example.found, example.sample.objects, min_score=_LEAST_SCORE, scale=scale_to(_PANEL_PX, image)
    )


def _changes(change: Tensor, epsilon: float) -> ImageArray:
    """Return changes float32 [3, H, W] as large as `_drawn`, from black at -epsilon to white at epsilon, in 255ths."""
    scaled = ((0.5 + 0.5 * change * 255 / epsilon).clamp(0, 1) * 255).round().to(torch.uint8)
    scale = scale_to(_PANEL_PX, change)
    image: ImageArray = scaled.repeat_interleave(scale, 1).repeat_interleave(scale, 2).permute(1, 2, 0).numpy()
    return image
