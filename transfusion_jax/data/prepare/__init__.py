"""From inputs to a folder of document shards: one function per input shard, and one that puts them together."""

from transfusion_jax.data.prepare.encode import Encoders
from transfusion_jax.data.prepare.job import Job, begin, place_among_hosts
from transfusion_jax.data.prepare.progress import Progress
from transfusion_jax.data.prepare.run import run

__all__ = ["Encoders", "Job", "Progress", "begin", "place_among_hosts", "run"]
