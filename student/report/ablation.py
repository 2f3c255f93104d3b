"""The results of an ablation: means and standard deviations over seeds, as tables and on a page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from student.evaluation.errors import ERROR_KINDS
from student.report.charts import arms as arms_chart
from student.report.charts import gain_against_cost
from student.report.comparisons import ERRORS_EXPLAINED, teacher_of
from student.report.page import Page

# The arms of every study: no distillation, all teachers, and all teachers with the targets of other images.
NONE, CLASSROOM, SHUFFLED = "none", "classroom", "shuffled"
# Higher is better for all of these but depth errors.
_SHOWN = ("AP50", "AP50/>16px", "AP", "recall@100/>16px", "depth/AbsRel", "depth/AbsRel@recall25")

_BY_KIND = {kind: f"errors/{kind}" for kind in ERROR_KINDS}
_BY_CLASS_AND_SIZE = {kind: f"AP50/{kind}" for kind in ("VEHICLE", "PEDESTRIAN", "CYCLIST", "small", "medium", "large")}
_FIRST_EPOCH = "first_epoch/"

# Share of labels -> arm -> seed -> the student's metrics.
Results = dict[float, dict[str, dict[int, dict[str, float]]]]


@dataclass(frozen=True, slots=True)
class Line:
    """One arm of one table: a figure's mean and standard deviation over the seeds, and each seed's.

    values: of the seeds that have the figure
    seeds: how many seeds of the arm are there
    """

    arm: str
    values: tuple[float, ...]
    seeds: int

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """The standard deviation over the seeds; 0 where there is one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def __str__(self) -> str:
        text = f"{self.mean:.3f}" + (f" ± {self.spread:.3f}" if len(self.values) > 1 else "")
        return text if len(self.values) == self.seeds else f"{text} ({len(self.values)} of {self.seeds} seeds)"


def lines(results: Results, fraction: float, figure: str) -> list[Line]:
    """Return a figure of each arm, without the arms and seeds that have not got it."""
    found = []
    for arm, seeds in results[fraction].items():
        values = tuple(metrics[figure] for _, metrics in sorted(seeds.items()) if figure in metrics)
        if values:
            found.append(Line(arm, values, len(seeds)))
    return found


def gains(results: Results, fraction: float, figure: str) -> dict[str, dict[int, float]]:
    """Return by how much each arm is above `none`, by seed, where both are there."""
    base = results[fraction].get(NONE, {})
    return {
        arm: {
            seed: metrics[figure] - base[seed][figure]
            for seed, metrics in sorted(seeds.items())
            if seed in base and figure in metrics and figure in base[seed]
        }
        for arm, seeds in results[fraction].items()
        if arm != NONE
    }


def paired(differences: Mapping[int, float]) -> str:
    """Return the mean of paired differences, by seed, with its standard error where there are several."""
    values = list(differences.values())
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):+.3f}"
    return f"{mean} ± {statistics.stdev(values) / math.sqrt(len(values)):.3f}" if len(values) > 1 else mean


def table(results: Results, fraction: float, shown: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of one share of labels: an arm a row."""
    numbers = sorted({seed for seeds in results[fraction].values() for seed in seeds})
    header = ["arm", "labelled visits", "rate", *shown, "AP50 above none", f"seeds {' '.join(map(str, numbers))}"]
    above, rows = gains(results, fraction, "AP50"), []
    for arm, seeds in results[fraction].items():
        first = next(iter(seeds.values()))
        cells = {figure: str(line) for figure in shown for line in lines(results, fraction, figure) if line.arm == arm}
        rows.append(
            [
                arm,
                f"{first['training/labelled_images']:,.0f}",
                f"{first['training/learning_rate']:g}",
                *(cells.get(figure, "-") if _is_distilled(arm, figure) else "not distilled" for figure in shown),
                paired(above[arm]) if arm in above else "",
                " ".join(f"{above[arm][seed]:+.3f}" if seed in above[arm] else "-" for seed in numbers)
                if arm in above
                else "",
            ]
        )
    return header, rows


def table_beside_none(
    results: Results, fraction: float, figures: Mapping[str, str]
) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of some figures of one share of labels, an arm a row.

    figures: the title of a column -> the figure

    A mean, its deviation, and the mean of the paired differences from `none`; no row where nothing is known.
    """
    header, rows, known = ["arm"], {arm: [arm] for arm in results[fraction]}, False
    for title_of, figure in figures.items():
        of_arms = {line.arm: str(line) for line in lines(results, fraction, figure)}
        above = gains(results, fraction, figure)
        known |= bool(of_arms)
        header += [title_of, "above none"]
        for arm, row in rows.items():
            row += [of_arms.get(arm, "-"), paired(above[arm]) if arm in above else ""]
    return header, list(rows.values()) if known else []


def cost_table(results: Results, fraction: float) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of what training costs, an arm a row: time and memory also relative to `none`."""
    costs = {arm: Cost.of(seeds.values()) for arm, seeds in results[fraction].items()}
    base = costs.get(NONE, Cost())
    header = [
        "arm",
        "seconds a step",
        "relative to none",
        "peak memory, GB",
        "relative to none",
        "training-only weights",
    ]
    rows = [
        [
            arm,
            _number(cost.step_s, "{:.2f}"),
            _ratio(cost.step_s, base.step_s),
            _number(cost.memory_gb, "{:.2f}"),
            _ratio(cost.memory_gb, base.memory_gb),
            _number(cost.parameters, "{:,.0f}"),
        ]
        for arm, cost in costs.items()
    ]
    return header, rows if any(cost.step_s for cost in costs.values()) else []


@dataclass(frozen=True, slots=True)
class Cost:
    """What the training of an arm costs, as the mean over its seeds; None where no seed says so.

    step_s: seconds of a step, with reading and teachers
    memory_gb: the most memory of the process, or of the GPU
    parameters: that train with the student's and are not part of it
    """

    step_s: float | None = None
    memory_gb: float | None = None
    parameters: float | None = None

    @staticmethod
    def of(seeds: Iterable[Mapping[str, float]]) -> Cost:
        """Return the cost of an arm from the metrics of its seeds."""
        known = list(seeds)
        steps = [one["training/seconds"] / one["training/steps"] for one in known if "training/seconds" in one]
        memory = [one["training/peak_memory_bytes"] / 1e9 for one in known if "training/peak_memory_bytes" in one]
        beside = [one["training/method_parameters"] for one in known if "training/method_parameters" in one]
        return Cost(*(statistics.fmean(values) if values else None for values in (steps, memory, beside)))


def first_epoch_table(results: Results, fraction: float) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of every loss after one epoch, an arm a row; no row where nothing is known."""
    arms = results[fraction]
    logged = {
        name for seeds in arms.values() for one in seeds.values() for name in one if name.startswith(_FIRST_EPOCH)
    }
    # Detection's losses first, which every arm has; those of methods have a slash more.
    names = sorted(logged, key=lambda name: (name.count("/"), name))
    found = {name: {line.arm: str(line) for line in lines(results, fraction, name)} for name in names}
    header = ["arm", *(name.removeprefix(_FIRST_EPOCH) for name in names)]
    return header, [[arm, *(found[name].get(arm, "") for name in names)] for arm in arms] if names else []


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _ratio(value: float | None, base: float | None) -> str:
    return f"{value / base:.2f}" if value and base else "-"


def _is_distilled(arm: str, figure: str) -> bool:
    """Return whether a metric is of detection, or of the imitation of a teacher of the arm's students."""
    teacher = teacher_of(figure)
    methods = arm.partition("-")[0].split("+")
    return teacher is None or arm in (CLASSROOM, SHUFFLED, teacher) or "imitation" in methods


def title(results: Results, fraction: float) -> str:
    """Return what a table is of."""
    first = next(iter(next(iter(results[fraction].values())).values()))
    labelled, segments = first["training/labelled_segments"], first["training/segments"]
    return (
        f"{labelled:,.0f} of {segments:,.0f} segments labelled ({labelled / segments:.1%}),"
        f" {first['training/steps']:,.0f} steps"
    )


def shown_metrics(results: Results) -> list[str]:
    """Return the metrics worth a column: those of detection, and how well each teacher is imitated."""
    names = {name for arms in results.values() for seeds in arms.values() for one in seeds.values() for name in one}
    imitation = sorted(name for name in names if name.startswith("imitation/") and name.endswith(("/R2", "/mIoU")))
    return [*_SHOWN, *(name for name in imitation if "trivial" not in name)]


def tables(results: Results, fraction: float) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield what each table of one share of labels shows, its header and its rows; those without rows are left out."""
    for explained, (header, rows) in (
        ("", table(results, fraction, shown_metrics(results))),
        ("AP50 by class and size", table_beside_none(results, fraction, _BY_CLASS_AND_SIZE)),
        (ERRORS_EXPLAINED, table_beside_none(results, fraction, _BY_KIND)),
        ("What training costs", cost_table(results, fraction)),
        ("Losses after one epoch over the labelled images", first_epoch_table(results, fraction)),
    ):
        if rows:
            yield explained, header, rows


def markdown(results: Results) -> str:
    """Return the tables of all shares of labels."""
    text = []
    for fraction in results:
        text += [f"## {title(results, fraction)}", ""]
        for explained, header, rows in tables(results, fraction):
            text += [explained, ""] if explained else []
            text += ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
            text += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    return "\n".join(text)


def fill_page(page: Page, results: Results) -> None:
    """Draw the study on a page: charts of the arms for each share of labels, then the tables."""
    for fraction in results:
        page.heading(title(results, fraction))
        for figure in ("AP50", "depth/AbsRel"):
            points = {line.arm: line.values for line in lines(results, fraction, figure)}
            if points:
                page.image(
                    arms_chart(points, NONE, figure, figure), f"{figure}: every seed, mean and standard deviation"
                )
        above = {arm: tuple(each.values()) for arm, each in gains(results, fraction, "AP50").items() if each}
        if above:
            page.image(
                arms_chart(above, NONE, "AP50 above none, of the same seed", "difference of AP50"),
                "AP50 above that of none: every seed, mean and standard deviation",
            )
            _draw_gain_against_time(page, results, fraction, above)
        for explained, header, rows in tables(results, fraction):
            if explained:
                page.text(explained)
            page.table(rows, header)


def _draw_gain_against_time(
    page: Page, results: Results, fraction: float, above: Mapping[str, Sequence[float]]
) -> None:
    times = {arm: Cost.of(seeds.values()).step_s for arm, seeds in results[fraction].items()}
    if (base := times.get(NONE)) is None:
        return
    points = {arm: (time / base, above[arm]) for arm, time in times.items() if time and arm in above}
    page.image(
        gain_against_cost(points, "step time relative to none", "AP50 above none"),
        "What an arm gains over what it costs: mean and standard error of the paired differences, step time beside it",
    )
