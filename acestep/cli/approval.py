"""What a run will take, shown before it begins; where it does not fit, a question or a refusal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from acestep.cli.estimate_command import forecast_lines
from acestep.cli.terminal import confirm
from acestep.core.jobs import Job

if TYPE_CHECKING:
    from acestep.training.forecast import Forecast
    from acestep.training.train import Approval


def approval(yes: bool, job: Job) -> Approval:
    """Shows a forecast; says yes where it fits or `yes` was given, else asks. Nobody there to answer means no."""

    def approve(forecast: Forecast) -> bool:
        from acestep.core.gpu import read_gpu

        gpu = read_gpu() if forecast.device.startswith("cuda") else None
        for line in forecast_lines(forecast, gpu):
            job.say(line)
        if gpu is not None and gpu.processes and not forecast.remedies:
            job.say(f"Also on the card: {', '.join(str(process) for process in gpu.processes)}.")
        if forecast.fits or yes:
            return True
        if not sys.stdin.isatty():
            job.say("Give --yes to begin all the same.")
        return confirm("It will probably not fit. Begin all the same?")

    return approve
