"""`analyse.py corruptions`: the images are blurred, made noisy, compressed, brightened and fogged."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from rich.console import Console

from datalake.progress_bar import ProgressBar
from pipelines.analysed_runs import AnalysisConfig, read_runs, telling, write_analysis
from pipelines.device import device_of
from pipelines.evaluated_frames import drawn_batches
from student.evaluation.corruptions import CORRUPTIONS, CorruptionResult, evaluate_corrupted, kept
from student.report import corruptions as corruptions_report
from student.report.page import Page


@dataclass(frozen=True, kw_only=True)
class CorruptionsConfig(AnalysisConfig):
    """Blur, compress, brighten and fog the images, and add noise: how much of the student is left?"""

    # Decides about noise and fog.
    seed: int = 0


def corruptions(config: CorruptionsConfig, console: Console) -> None:
    """Evaluate each run on corrupted images, write metrics and page, and print the table."""
    runs = read_runs(config, {}, console)
    results: dict[str, list[CorruptionResult]] = {}
    with ProgressBar(console) as bar:
        for run in runs:
            drawn, images = drawn_batches(run.frames, config.batch, config.images)
            student = run.student.to(device_of(config.device))
            told = telling(bar, run.name, images * len(CORRUPTIONS))
            results[run.name] = evaluate_corrupted(student, list(drawn), config.seed, told)
    found = {
        name: [{**asdict(one.corruption), "metrics": one.metrics} for one in each] for name, each in results.items()
    }
    page = Page(f"ClassroomNet: corrupted images, {', '.join(results)}")
    corruptions_report.fill_page(page, results)
    left = {name: kept(each) for name, each in results.items()}
    write_analysis(
        config, "corruptions", runs, found, {"AP50_left": left}, page, corruptions_report.table(results), console
    )
