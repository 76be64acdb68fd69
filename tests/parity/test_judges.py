"""FID's distance and resizing, CLIP score and CIDEr beside the packages that publish them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torchmetrics.image.fid import _compute_fid
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from helpers import begin_run, prepare, tiny_codec, tiny_config, tiny_corpus
from transfusion_jax.cli import main
from transfusion_jax.config import ConfigError
from transfusion_jax.data.documents import Corpus, Document, DocumentList, Image, Source, Text
from transfusion_jax.evaluation import cider as judge
from transfusion_jax.evaluation import fid
from transfusion_jax.evaluation.clip import MEAN, STD, ClipScore, middle_square
from transfusion_jax.evaluation.pictures import Drawn
from transfusion_jax.evaluation.suites.frechet import Statistics, distance
from transfusion_jax.tasks.base import make_task

pytestmark = pytest.mark.parity


def test_the_distance_is_torchmetrics():
    random = np.random.default_rng(0)
    features = [random.normal(size=(n, 30)) @ random.normal(size=(30, 30)) for n in (100, 50)]
    a, b = map(Statistics.of, features)
    parts = [torch.from_numpy(x) for x in (a.mean, a.covariance, b.mean, b.covariance)]
    assert distance(a, b) == pytest.approx(float(_compute_fid(*parts)), rel=1e-6)


@pytest.mark.parametrize("size", [64, 256, 512])
def test_inceptions_images_are_resized_antialiased_bicubic_in_float(size, monkeypatch):
    monkeypatch.setattr(fid, "_features", lambda arrays, x: x)
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3)).astype(np.uint8)
    image[: size // 2, : size // 3] = 255  # overshoots, and is cut off
    (found,) = fid.features_of({}, image[None])
    x = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(x, (299, 299), mode="bicubic", antialias=True, align_corners=False)
    expected = expected.clamp(0, 255)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, expected, atol=0.01)
    assert found.dtype == np.float32
    assert (found != np.round(found)).mean() > 0.5  # not rounded


@pytest.fixture
def clip(tmp_path):
    """A small random CLIP with a tokenizer of characters."""
    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    text = small | dict(
        vocab_size=60, max_position_embeddings=12, bos_token_id=57, eos_token_id=58, pad_token_id=59
    )
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=small | dict(image_size=32, patch_size=8), projection_dim=8)
    model = CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(tmp_path)
    letters = {c: i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz ")} | {"<s>": 57, "</s>": 58, "<pad>": 59}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = [("<s>", 57), ("</s>", 58)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="<s>")
    fast.save_pretrained(tmp_path)
    return tmp_path, model.eval(), fast


class Plain:
    """A CLIP whose features are tensors, as torchmetrics expects them, and not transformers 5's outputs."""

    def __init__(self, model):
        self.config, self.model = model.config, model

    def to(self, device):
        return self

    def get_image_features(self, *inputs):
        return self.model.get_image_features(*inputs).pooler_output

    def get_text_features(self, *inputs):
        return self.model.get_text_features(*inputs).pooler_output


def test_clip_score_is_torchmetrics(clip):
    from torchmetrics.functional.multimodal.clip_score import _clip_score_update

    folder, model, tokenizer = clip
    captions = ["a cat", "two dogs", "b"]
    images = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3)).astype(np.uint8)

    def processor(text=None, images=None, **_):
        if text is not None:
            return tokenizer(text, padding=True, return_tensors="pt")
        resized = [np.asarray(Pillow.fromarray(x.permute(1, 2, 0).numpy()).resize((32, 32), 3)) for x in images]
        pixels = (np.stack(resized) / 255 - np.array(MEAN)) / np.array(STD)
        return {"pixel_values": torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2)}

    sources = [torch.from_numpy(x).permute(2, 0, 1) for x in images]
    expected = _clip_score_update(sources, captions, Plain(model), processor)[0].detach()
    judge = ClipScore(folder)
    np.testing.assert_allclose(judge.scores(captions, images), expected, atol=1e-3)
    for part in (slice(0, 2), slice(2, 3)):
        judge.see(Drawn(captions[part], list(images[part]), list(images[part])))
    assert judge.metrics()["clip_score"] == pytest.approx(max(float(expected.mean()), 0), abs=1e-3)
    assert len(judge.about()["clip"].split("sha256 ")[1]) == 64
    with pytest.raises(ConfigError, match=r"holds no model\.safetensors"):
        ClipScore(folder / "no")


@pytest.mark.parametrize("shape", [(48, 48), (32, 32), (30, 97), (200, 31), (33, 32), (8, 64)])
def test_clip_sees_what_the_processor_of_transformers_makes_of_an_image(shape):
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    expected = processor(Pillow.fromarray(image), do_rescale=False, do_normalize=False)["pixel_values"][0]
    np.testing.assert_array_equal(np.moveaxis(middle_square(image, 32), -1, 0), expected)


def test_clip_scores_images_of_several_shapes(clip):
    folder, *_ = clip
    judge, captions = ClipScore(folder), ["a cat", "two dogs", "b"]
    shapes = ((32, 64), (48, 48), (96, 32))
    images = [np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in shapes]
    judge.see(Drawn(captions, images, images))
    squares = np.stack([middle_square(image, 32) for image in images])
    np.testing.assert_allclose(judge.scores(captions, images), judge.scores(captions, squares), atol=1e-4)
    said = judge.about()["clip_resizing"]
    assert said.startswith("from 64x32, 48x48 and 32x96, as the captions' own images: the shorter side to 32")


CAPTIONS = [["A cat sat on the mat.", "the cat is sitting"], ["A dog ran fast!"], ["two birds fly over trees"]]


def ngrams(text, n):
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def cider_by_hand(references, candidates):
    """CIDEr-D by its definition, of texts in lower case without punctuation."""
    scores = []
    for candidate, own in zip(candidates, references, strict=True):
        total = 0.0
        for n in (1, 2, 3, 4):

            def weights(text, n=n):
                found = {}
                for gram in ngrams(text, n):
                    images = sum(any(gram in ngrams(text, n) for text in texts) for texts in references)
                    found[gram] = found.get(gram, 0) + np.log(len(references) / max(1, images))
                return found

            for reference in own:
                a, b = weights(candidate), weights(reference)
                norms = [np.sqrt(sum(x**2 for x in each.values())) for each in (a, b)]
                product = sum(min(x, b.get(gram, 0)) * b.get(gram, 0) for gram, x in a.items())
                length = len(ngrams(candidate, 2)) - len(ngrams(reference, 2))
                total += product / max(norms[0] * norms[1], 1e-30) * np.exp(-(length**2) / 72) / len(own)
        scores.append(10 * total / 4)
    return np.mean(scores)


def test_cider_is_its_definition():
    candidates = ["a cat sat on a mat", "a dog", "trees fly over birds"]
    plain = [["a cat sat on the mat", "the cat is sitting"], ["a dog ran fast"], ["two birds fly over trees"]]
    found = judge.cider(CAPTIONS, ["A cat sat\non a mat", "a dog.", "Trees fly, over birds"])
    assert found == pytest.approx(cider_by_hand(plain, candidates), rel=1e-6)
    assert 0.5 < found < 10
    own = [["a cat sat on the mat"], ["a dog ran fast"], ["two birds fly over trees"]]
    assert judge.cider(own, [texts[0] for texts in own]) == pytest.approx(10)
    assert judge.cider(CAPTIONS, ["", "", ""]) == 0


def test_captions_are_written_behind_each_image_once(monkeypatch):
    image, other = (Image(np.full((4, 4, 2), value, np.float32)) for value in (0.1, 0.2))
    codec = tiny_codec()
    pairs = [(image, "abc"), (other, "dd"), (image, "bcd")]
    documents = [Document((Text(codec.tokenizer.encode(text)), shown)) for shown, text in pairs]
    corpus = Corpus((Source("pairs", DocumentList(documents)), tiny_corpus().sources[1]))
    asked = []

    def write(task, params, codec, documents, writing):
        asked.extend(documents)
        return ["abc", "dd"]

    monkeypatch.setattr(judge, "write_texts", write)
    task = make_task(tiny_config())
    metrics, about = judge.run_cider(task, {}, codec, corpus, prompt="aa")
    assert (about["images"], about["references"], about["image_timestep"], about["prompt"]) == (2, 3, 0, "aa")
    assert [type(s) for s in asked[0].segments] == [Image, Text]
    assert asked[1].segments[0].latent is other.latent
    assert metrics["cider"] == pytest.approx(100 * judge.cider([["abc", "bcd"], ["dd"]], ["abc", "dd"]))
    json.dumps(about)
    assert about["cider_resizing"].endswith("the model sees images as they were prepared, 4x4")
    with pytest.raises(ConfigError, match="needs captioned images"):
        judge.run_cider(task, {}, codec, Corpus(tiny_corpus().sources[1:]))


def test_images_of_the_same_values_in_other_shapes_have_captions_of_their_own():
    codec = tiny_codec()
    shown = [(Image(np.zeros(shape, np.float32)), "ab") for shape in ((2, 8, 2), (4, 4, 2), (2, 8, 2))]
    documents = [Document((Text(codec.tokenizer.encode(text)), image)) for image, text in shown]
    found = judge.references(Corpus((Source("pairs", DocumentList(documents)),)), codec)
    assert [(image.latent.shape, captions) for image, captions in found] == [
        ((2, 8, 2), ["ab", "ab"]),
        ((4, 4, 2), ["ab"]),
    ]


def test_karpathys_test_images_are_captioned_by_the_command(tmp_path, capsys):
    listed = []
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Pillow.fromarray(pixels).save(tmp_path / f"{number}.png")
        words = ("small", "noisy", "square")[: 1 + number % 3]
        sentences = [{"raw": f"image {number} is {word}."} for word in words]
        listed.append(dict(filename=f"{number}.png", split="test" if number > 1 else "train", sentences=sentences))
    (tmp_path / "dataset_coco.json").write_text(json.dumps(dict(images=listed)))
    for split in ("train", "test"):
        options = dict(format="coco", images=str(tmp_path), split=split)
        prepare(tmp_path / split, [str(tmp_path / "dataset_coco.json")], **options)
    sources = dict(coco=dict(path=str(tmp_path / "train"), held_out=str(tmp_path / "test")))
    config = tiny_config(
        model__vocabulary=256,
        model__latent_shape=(8, 8, 3),
        model__patch_size=4,
        data__sources=sources,
        data__context_length=64,
        optimizer__ema_decay=0.0,
    )
    begin_run(tmp_path / "run", config)
    command = ["judge", "cider", "--workdir", str(tmp_path / "run"), "--prompt", "it says: ", "-n", "3"]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["images"], report["references"], report["image_timestep"]) == (3, 3 + 1 + 2, 0)
    assert report["prompt"] == "it says: "
    assert len(report["first_captions"]) == 3
    assert report["metrics"]["cider"] >= 0


def test_without_java_it_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="there is no java"):
        judge.cider([["a"]], ["a"])
