"""Once, when steps have settled: what `transfusion plan` expects of them beside what they take."""

from __future__ import annotations

from transfusion_jax.data.datasets import Data
from transfusion_jax.planning.plan_vs_actual import beside_plan
from transfusion_jax.training.loop import Hook, Pace
from transfusion_jax.training.run_dir import Workdir
from transfusion_jax.training.step.state import RunContext


def hook(context: RunContext, data: Data, workdir: Workdir) -> Hook:
    """The hook of a run."""
    del data, workdir

    def compare(pace: Pace) -> None:
        for line in beside_plan(context, pace).lines():
            context.log(line)

    return Hook(settled=compare)
