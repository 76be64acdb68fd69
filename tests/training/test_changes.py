import pytest

from helpers import SEVERAL, tiny_config, tiny_data
from transfusion_jax.config import ConfigError
from transfusion_jax.data.datasets import load_data
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


def test_a_manifest_that_says_no_shapes_is_gone_on_with():
    """As one of an earlier version, whose data is the same."""
    config = tiny_config(**SEVERAL, data__sources="synthetic")
    facts = facts_of(make_task(config), config, load_data(config))
    before = {name: value for name, value in facts.items() if name != "shapes"}
    assert before != facts
    for old, new in ((before, facts), (facts, before)):
        assert accepted_changes(config, old, RunContext(None, config, None, new), [], "run") == {}
