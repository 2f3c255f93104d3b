"""`analyse.py interpret`: which branches the student uses, seen in three ways."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from datalake.progress_bar import ProgressBar
from pipelines.analysed_runs import AnalysisConfig, read_runs, telling, write_analysis
from pipelines.device import device_of
from pipelines.evaluated_frames import drawn_batches, words_of_images
from student.backbone import FREE
from student.evaluation.agreement import Agreement, agreement
from student.evaluation.attribution import Attribution, attribute_branches
from student.evaluation.branches import ALL, REPLACEMENTS, Ablation, ablate_branches
from student.evaluation.responses import Contrast, branch_responses, past_branches, shown_samples
from student.report import branches as branches_report
from student.report.branches import RunResponses
from student.report.page import Page
from training.metrics_log import read_history
from training.run_dir import RunDir


@dataclass(frozen=True, kw_only=True)
class InterpretConfig(AnalysisConfig):
    """Which branches does the student use: responses to them, what is lost without them, gradients."""


def interpret(config: InterpretConfig, console: Console) -> None:
    """Look at each run's branches, write metrics and page, and print the table."""
    runs = read_runs(config, {}, console)
    ablations: dict[str, list[Ablation]] = {}
    responses: dict[str, RunResponses] = {}
    attributions: dict[str, list[Attribution]] = {}
    agreements: dict[str, list[Agreement]] = {}
    times = words_of_images(runs[0].frames.lake, config.split, "time_of_day")
    kinds = {key: word for key, word in times.items() if word is not None}
    with ProgressBar(console) as bar:
        for run in runs:
            student = run.student.to(device_of(config.device))
            drawn, images = drawn_batches(run.frames, config.batch, config.images, panoptic=True)
            batches = list(drawn)
            total = images * (1 + len(REPLACEMENTS) * (len(run.branches) + len((FREE, ALL))))
            ablations[run.name] = ablate_branches(student, batches, telling(bar, run.name, total), kinds)
            responses[run.name] = RunResponses(
                branches=branch_responses(student, batches),
                past=past_branches(student, batches),
                samples=shown_samples(batches),
            )
            told = telling(bar, f"{run.name}, gradients", images)
            attributions[run.name] = attribute_branches(student, batches, told)
            agreements[run.name] = agreement(responses[run.name].branches, ablations[run.name], attributions[run.name])
    histories = {run.name: read_history(RunDir(run.url)) for run in runs}
    found = {
        name: [{"branch": one.branch, "replacement": one.replacement, "metrics": one.metrics} for one in each]
        for name, each in ablations.items()
    }
    page = Page(f"ClassroomNet: the branches of {', '.join(ablations)}")
    branches_report.fill_agreement(page, agreements)
    branches_report.fill_page(page, ablations, sorted(set(kinds.values())))
    branches_report.fill_responses(page, responses)
    branches_report.fill_attribution(page, attributions)
    branches_report.fill_selection(page, histories)
    more = {
        "responses": {
            name: {one.branch: {"share": one.share, "classes": _plain(one.contrasts)} for one in each.branches}
            for name, each in responses.items()
        },
        "past_branches": {
            name: [{"stride": one.stride, "share": one.share, "classes": _plain(one.contrasts)} for one in each.past]
            for name, each in responses.items()
        },
        "attribution": {
            name: [{**asdict(one), "incomplete": one.incomplete} for one in each] for name, each in attributions.items()
        },
        "agreement": {
            name: [{**asdict(one), "verdict": one.verdict} for one in each] for name, each in agreements.items()
        },
    }
    write_analysis(config, "interpret", runs, found, more, page, branches_report.table(ablations), console)
    for name, parts in attributions.items():
        every = parts[0]
        added, change = sum(every.branches.values()), every.after - every.before
        console.print(
            f"{name}: integrated gradients add up to {added:.3f} of {change:.3f} logits,"
            f" {every.incomplete:.1%} off; {_told(agreements[name])}",
            soft_wrap=True,
            highlight=False,
        )


def _told(found: list[Agreement]) -> str:
    return "response, ablation and gradient: " + "; ".join(f"{one.class_name} {one.verdict}" for one in found)


def _plain(contrasts: dict[str, Contrast]) -> dict[str, Any]:
    """Return contrasts as JSON has them; without a t where there are too few images for one."""
    return {
        name: {
            "inside": one.inside,
            "ratio": one.ratio,
            "images": one.images,
            **({"t": one.t} if math.isfinite(one.t) else {}),
        }
        for name, one in contrasts.items()
    }
