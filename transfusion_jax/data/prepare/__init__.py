"""From inputs to a folder of document shards: one function per input shard, and one that puts them together."""

from transfusion_jax.data.prepare.encode import Encoders
from transfusion_jax.data.prepare.job import PrepareJob, begin_job, place_among_hosts
from transfusion_jax.data.prepare.progress import Progress
from transfusion_jax.data.prepare.run import run_job

__all__ = ["Encoders", "PrepareJob", "Progress", "begin_job", "place_among_hosts", "run_job"]
