import jax
import numpy as np
import pytest

from helpers import LATENT, code_codec, embed_at, tiny_codec, tiny_config, token_config
from transfusion_jax.config import ConfigError
from transfusion_jax.data.batch import stack
from transfusion_jax.data.documents import Document, Image, Text
from transfusion_jax.data.row import Piece, assemble
from transfusion_jax.generation.scoring import score_continuations, score_tokens
from transfusion_jax.generation.single import write_texts
from transfusion_jax.generation.token_sampling import Writing
from transfusion_jax.kernels.spans import Spans
from transfusion_jax.tasks.base import make_task

RANDOM = np.random.default_rng(0)
ORDER = dict(data__image_first=1.0, data__caption_dropout=0.0)  # a caption behind its image
LATENTS = make_task(tiny_config(**ORDER))
CODES = make_task(token_config(**ORDER))


@pytest.mark.parametrize("task", [LATENTS, CODES], ids=["latents", "codes"])
def test_a_score_is_the_loss_of_training(task):
    codec, params = codec_of(task), params_of(task)
    documents = [Document((Text(np.array([1, 2])), image(task))), Document(()), Document((image(task),))]
    texts = [np.array([3, 4, 5]), np.array([6]), np.array([7, 8])]
    for found, document, tokens in zip(
        score_continuations(task, params, codec, documents, texts), documents, texts, strict=True
    ):
        whole = Document((*document.segments, Text(tokens)))
        piece = Piece(whole, 0, whole.length(task.config.model), 0)
        row = stack([assemble(0, [piece], task.config, codec.special)])
        x, _ = embed_at(task.model.bind(params), row)
        hidden, _ = task.model.bind(params).trunk(x, row.spans, row.positions)
        losses = task.model.bind(params).text_losses(hidden, row.targets, row.token_weight, row.tokens.size).loss
        end = whole.length(task.config.model) - 1
        assert found.log_likelihood == pytest.approx(-float(losses[0, end - len(tokens) : end].sum()), rel=1e-5)
        assert found.tokens == len(tokens)


def test_what_would_be_written_is_greedy_and_nothing_else_is():
    params, codec = params_of(LATENTS), tiny_codec()
    document = Document((image(LATENTS), Text(np.array([5]))))
    text = write_texts(LATENTS, params, codec, [document], Writing(max_tokens=4))[0]
    tokens = codec.tokenizer.encode(text)
    other = tokens.copy()
    other[1] = (other[1] + 1) % 20
    written, changed = score_continuations(LATENTS, params, codec, [document] * 2, [tokens, other])
    assert written.greedy
    assert not changed.greedy


@pytest.mark.parametrize("task", [LATENTS, CODES], ids=["latents", "codes"])
def test_tokens_alone_are_scored_among_texts(task):
    codec, params = codec_of(task), params_of(task)
    contexts, texts = [[1, 2], [], [3] * 40], [[3, 4, 5], [6], [7, 8]]
    behind = [[codec.special.bos, *before] for before in contexts]
    found = dict(score_tokens(task, params, codec, behind, texts))
    assert sorted(found) == [0, 1, 2]
    config = task.config.model
    for number, (before, after) in enumerate(zip(contexts, texts, strict=True)):
        # BOS and the text, by the whole softmax without marks and codes
        row = np.array([[codec.special.bos, *before, *after]])
        x, _ = task.model.bind(params).embed(row)
        index = np.arange(row.shape[1])[None]
        hidden, _ = task.model.bind(params).trunk(x, Spans(0 * index, index + 1), index)
        logits = np.asarray(task.model.bind(params).text_logits(hidden))[0, -len(after) - 1 : -1]
        logits = logits[:, [*range(config.vocabulary), codec.special.eos]].astype(np.float64)
        expected = logits[np.arange(len(after)), after].sum() - np.log(np.exp(logits).sum(-1)).sum()
        assert found[number].log_likelihood == pytest.approx(expected, rel=1e-4)
        assert found[number].tokens == len(after)
        assert found[number].greedy == (logits.argmax(-1) == after).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="take 49 elements, and the model's context is 48"):
        score_continuations(LATENTS, params_of(LATENTS), tiny_codec(), [Document(())], [np.ones(48, np.int32)])
    with pytest.raises(ConfigError, match="49 tokens do not fit the model's context of 48"):
        list(score_tokens(LATENTS, params_of(LATENTS), tiny_codec(), [[1] * 48], [[1, 1]]))


def codec_of(task):
    return code_codec() if task is CODES else tiny_codec()


def params_of(task):
    return jax.tree.map(lambda p: 5 * p, task.init(jax.random.key(0)))


def image(task):
    if task is CODES:
        return Image(RANDOM.integers(0, 11, LATENT[:2]).astype(np.int32))
    return Image(RANDOM.standard_normal(LATENT).astype(np.float32))
