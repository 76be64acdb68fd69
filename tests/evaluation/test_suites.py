import math
import sys

import jax
import numpy as np
import pytest

from helpers import (
    code_codec,
    corpus_of,
    digits_config,
    prepare,
    tiny_codec,
    tiny_config,
    tiny_corpus,
    tiny_data,
    token_config,
)
from transfusion_jax.cli import main
from transfusion_jax.commands.hooks import evaluation
from transfusion_jax.config import SUITES, ConfigError
from transfusion_jax.data.datasets import Data, load_data
from transfusion_jax.data.documents import Corpus, DocumentList, Source
from transfusion_jax.evaluation.suites import edits as suite
from transfusion_jax.evaluation.suites.digits import captioned_digits, digit_features, fit_judge, new_judge
from transfusion_jax.tasks.base import make_task
from transfusion_jax.tasks.transfusion import TransfusionTask
from transfusion_jax.training.run_dir import Workdir
from transfusion_jax.training.step.state import RunContext
from transfusion_jax.worlds.shapes import edits

TEXTS = dict(data__sources={"texts": {"path": "synthetic:text"}})


def test_the_judge_is_right_on_real_digits_that_it_has_not_seen(digits_folder):
    data = load_data(digits_config(digits_folder))
    seen, unseen = captioned_digits(data.train, data.codec), captioned_digits(data.held_out, data.codec)
    assert len(seen.images) + len(unseen.images) == 1797
    assert set(seen.labels) == set(unseen.labels) == set(range(10))
    judge = fit_judge(seen)
    assert judge.score(digit_features(unseen.images), unseen.labels) >= 0.97
    assert judge.score(digit_features(unseen.images), (unseen.labels + 1) % 10) < 0.05


def test_the_judge_of_digits_needs_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    with pytest.raises(ConfigError, match=r"needs scikit-learn: pip install 'transfusion-jax\[digits\]'"):
        new_judge()


def test_the_suite_needs_digits():
    with pytest.raises(ConfigError, match="needs captioned digits"):
        captioned_digits(tiny_corpus(), tiny_codec())


def test_a_model_that_knows_nothing_needs_log_vocabulary_nats_per_token():
    config = tiny_config(evaluation__rows=8)
    task = TransfusionTask(config)
    params = jax.tree.map(np.asarray, task.init(jax.random.key(0)))
    params["text_head"] = np.zeros_like(params["text_head"])
    params["patch_coder"]["patch_out"] = np.zeros_like(params["patch_coder"]["patch_out"])
    data = Data(tiny_corpus(0), tiny_corpus(1), tiny_codec())
    first, again = (SUITES["loss"].run(task, params, data, jax.random.key(0)) for _ in range(2))
    assert first == again
    nats = math.log(config.model.vocabulary + 5)
    np.testing.assert_allclose(first["loss_text"], nats, rtol=1e-5)
    np.testing.assert_allclose(first["loss_image"], 1, atol=0.2)  # predicting no noise at all
    np.testing.assert_allclose(first["loss"], first["loss_text"] + 5 * first["loss_image"], rtol=1e-6)
    assert nats / math.log(2) < first["bits_per_byte"] < 1.2 * nats / math.log(2)  # EOS costs bits and is no byte


@pytest.mark.parametrize("name", ["shapes", "edits"])
def test_what_draws_in_colour_refuses_a_grey_model(name, digits_folder):
    config = digits_config(digits_folder)
    with pytest.raises(ConfigError, match="draws in colour, and this model's images are grey"):
        SUITES[name].run(TransfusionTask(config), {}, load_data(config), jax.random.key(0))


@pytest.mark.parametrize("name", ["shapes", "edits"])
def test_what_draws_squares_refuses_a_model_that_draws_none(name):
    config = tiny_config(model__latent_shape=(8, 12, 3), model__patch_size=4)
    with pytest.raises(ConfigError, match="draws squares, and this model's images are 8×12"):
        SUITES[name].check(config, tiny_data())


@pytest.mark.parametrize("name", ["shapes", "edits"])
def test_what_draws_shapes_refuses_a_run_that_has_seen_none(name, tmp_path):
    def data(folder):
        model = dict(model__latent_shape=(8, 8, 3), model__vocabulary=256, model__patch_size=4)
        config = tiny_config(data__sources={"some": {"path": str(folder)}}, **model)
        return config, load_data(config)

    prepare(tmp_path / "digits", ["digits"])
    prepare(tmp_path / "shapes", ["shapes:40"], held_out=0.2)
    prepare(tmp_path / "edits", ["edits:40"])
    with pytest.raises(ConfigError, match=f"'{name}' asks for drawings of coloured shapes, and no caption"):
        SUITES[name].check(*data(tmp_path / "digits"))
    for folder in ("shapes", "edits"):
        SUITES[name].check(*data(tmp_path / folder))


def test_an_edit_is_done_where_its_own_drawing_comes_nearest():
    for index in range(30):
        scene, edit, text = suite.asked_for(index)
        assert text
        assert suite.is_done(scene, edit, suite.picture(edit.after, 32))
        assert not suite.is_done(scene, edit, suite.picture(scene, 32))
        for other in edits.possible_edits(scene):
            assert suite.is_done(scene, edit, suite.picture(other.after, 32)) == (other.after == edit.after)


GREY = {"latents": tiny_config(), "codes": token_config(), "text": token_config("none", **TEXTS)}


@pytest.mark.parametrize(
    ("family", "name"),
    [(f, n) for f in GREY for n in SUITES if (f, n) != ("latents", "frechet")],  # two channels are no pixels
)
def test_what_a_suite_lacks_is_known_before_there_are_weights(family, name):
    """Training asks for it first: a run would end at its first evaluation."""
    codec = code_codec() if family == "codes" else tiny_codec()
    data = Data(corpus_of(GREY[family]), corpus_of(GREY[family]), codec)
    lacks = {"digits", "edits", "shapes"}  # captions of digits, and colours
    lacks |= {"images", "captions", "frechet"} if family == "text" else set()
    if name not in lacks:
        SUITES[name].check(GREY[family], data)
        return
    with pytest.raises(ConfigError) as early:
        SUITES[name].check(GREY[family], data)
    with pytest.raises(ConfigError) as late:
        SUITES[name].run(make_task(GREY[family]), None, data, jax.random.key(0))
    assert str(early.value) == str(late.value)


def test_texts_are_missed_before_there_are_weights():
    pictured = Corpus(tiny_corpus().sources[:1])
    with pytest.raises(ConfigError, match="needs held-out texts without images"):
        SUITES["text"].check(tiny_config(), Data(pictured, pictured, tiny_codec()))


def test_what_a_later_phase_reads_must_hold_something_out(tmp_path):
    sources = {name: {"path": "synthetic:pairs", "weight": weight} for name, weight in (("pairs", 1), ("late", 0))}
    config = tiny_config(data__sources=sources, data__phases={"8": {"late": 1}})
    documents = tiny_corpus().sources[0].documents
    train, held_out = (
        Corpus((Source("pairs", documents), Source("late", late))) for late in (documents, DocumentList([]))
    )
    context = RunContext(make_task(config), config, None, {}, print)
    with pytest.raises(ConfigError, match="nothing of source late is held out to evaluate on"):
        evaluation.hook(context, Data(train, held_out, tiny_codec()), Workdir(tmp_path))


def test_training_does_not_begin_without_what_its_suites_need(tmp_path, capsys):
    options = ["--config.evaluation.during_training=('loss','shapes')", "--config.batch_rows=8"]
    assert main(["train", "--config", "configs/debug.py", *options, "--workdir", str(tmp_path / "run")]) == 2
    assert "the suite 'shapes' draws in colour" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()
