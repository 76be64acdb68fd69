import pytest

from helpers import tiny_config, tiny_data
from transfusion_jax.config import ConfigError
from transfusion_jax.tasks.base import make_task
from transfusion_jax.training.changes import accepted_changes
from transfusion_jax.training.facts import facts_of
from transfusion_jax.training.step.state import RunContext


def test_changes_of_data_are_found_and_can_be_accepted():
    config = tiny_config()
    facts = facts_of(make_task(config), config, tiny_data())
    context = RunContext(None, config, None, facts)
    with pytest.raises(ConfigError, match="data_hash: other -> "):
        accepted_changes(config, facts | {"data_hash": "other"}, context, [], "run")
    changes = accepted_changes(config, facts | {"data_hash": "other"}, context, ["data_hash"], "run")
    assert list(changes) == ["data_hash"]
