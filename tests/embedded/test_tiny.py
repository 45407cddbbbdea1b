"""The tiny base model: Gemma 3's interface at its tokenizer, processor and weights; built once, whole or not."""

import multiprocessing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor, Gemma3ForConditionalGeneration, Gemma3Processor

from histolab_sft.embedded import tiny_model
from histolab_sft.embedded.painting import draw_stain, stain_patch
from histolab_sft.embedded.pretext import NAMES, QUESTIONS, paint_pretext, write_text
from histolab_sft.embedded.pretraining import pretrain, stain_pictures
from histolab_sft.embedded.synthetic import TISSUES
from histolab_sft.embedded.tiny_model import IMAGE_SIZE, IMAGE_TOKENS, build_untrained_tiny_model, load_tiny_base_model
from histolab_sft.embedded.tokenizer import SPECIAL_TOKENS, build_processor, train_tokenizer
from histolab_sft.provenance import compute_sha256

CLASS_NAMES = "Adipose Background Debris Lymphocyte Mucus Muscle Normal Stroma Tumor Benign InSitu Invasive".split()


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


@pytest.fixture(scope="module")
def processor():
    return build_processor(IMAGE_SIZE, IMAGE_TOKENS)


@pytest.fixture(scope="module")
def loaded(untrained_model):
    model = AutoModelForImageTextToText.from_pretrained(untrained_model)
    return model.eval(), AutoProcessor.from_pretrained(untrained_model)


@pytest.fixture
def patch():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))


def ask(processor, *patches, text="What type of tissue is shown?"):
    messages = [
        [{"role": "user", "content": [{"type": "image", "image": patch}, {"type": "text", "text": text}]}]
        for patch in patches
    ]
    return processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def test_special_tokens_stand_where_gemma_has_them(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 2)
    assert (tokenizer.boi_token, tokenizer.eoi_token, tokenizer.image_token) == (
        "<start_of_image>",
        "<end_of_image>",
        "<image_soft_token>",
    )
    for token in SPECIAL_TOKENS:
        assert tokenizer.encode(token, add_special_tokens=False) == [tokenizer.convert_tokens_to_ids(token)]
    assert len(tokenizer) <= 1000


def test_the_turn_marker_is_three_tokens(tokenizer):
    ids = tokenizer.encode("<start_of_turn>model\n", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == ["<start_of_turn>", "model", "\n"]


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_an_answer_is_several_tokens_and_starts_alike_whatever_follows(tokenizer, name):
    constant = tokenizer.tokenize("The answer is:")
    answer = tokenizer.tokenize(f"The answer is: {name}<end_of_turn>")
    assert answer[: len(constant)] == constant and answer[-1] == "<end_of_turn>"
    assert 5 <= len(answer) <= 9
    assert 1 <= len(answer) - len(constant) - 1 <= 4


def test_class_names_take_one_to_several_tokens(tokenizer):
    lengths = {len(tokenizer.tokenize(f" {name}")) for name in CLASS_NAMES}
    assert 1 in lengths and max(lengths) >= 3


@pytest.mark.parametrize(
    "text",
    [
        "Hämatoxylin & Eosin, 20×, 0.5 µm",
        "组织切片 😀",
        "a  b\n\n\nc\td",
        "{'x': [1.5, -2]}",
        "<start_of_turn>user\nhello<end_of_turn>",
    ],
)
def test_any_text_survives_the_tokenizer(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_the_vocabulary_is_the_same_every_time(tokenizer):
    assert train_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_the_chat_template_writes_one_bos_and_all_image_tokens(processor, patch):
    ids = ask(processor, patch)["input_ids"][0].tolist()
    tokenizer = processor.tokenizer
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    assert ids.count(tokenizer.image_token_id) == IMAGE_TOKENS
    assert ids.count(tokenizer.boi_token_id) == ids.count(tokenizer.eoi_token_id) == 1
    assert tokenizer.decode(ids).endswith("What type of tissue is shown?<end_of_turn>\n<start_of_turn>model\n")


def test_image_tokens_are_marked_and_pixels_scaled(processor, patch):
    inputs = ask(processor, patch)
    is_image = inputs["input_ids"] == processor.tokenizer.image_token_id
    assert torch.equal(inputs["token_type_ids"] == 1, is_image)
    assert inputs["pixel_values"].shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert -1 <= inputs["pixel_values"].min() < -0.3 and 0.3 < inputs["pixel_values"].max() <= 1


def test_every_answer_of_the_pretext_is_a_word_that_the_model_can_say(tokenizer):
    words = {word for _, options in QUESTIONS.values() for word in options}
    assert all(len(tokenizer.tokenize(f" {word}")) == 1 for word in words)
    assert set(CLASS_NAMES) <= set(NAMES)


def test_the_pretext_links_no_class_name_to_a_picture():
    rng = np.random.default_rng(0)
    texts = {write_text([0] * len(QUESTIONS), rng) for _ in range(400)}
    about_pictures = [text for text in texts if not text[0].startswith("Repeat the word")]
    assert len(about_pictures) > len(QUESTIONS)
    assert not [name for name in CLASS_NAMES for text in about_pictures if name in text[0] + text[1]]
    repeated = [text for text in texts if text[0].startswith("Repeat the word")]
    assert any("The answer is: Tumor" == answer for _, answer in repeated)


@pytest.mark.slow
def test_pretext_pictures_are_the_same_every_time_and_cover_the_answers():
    maps, attributes, numbers = paint_pretext(150, 32, seed=1)
    again = paint_pretext(150, 32, seed=1)
    assert torch.equal(maps, again[0]) and torch.equal(attributes, again[1]) and torch.equal(numbers, again[2])
    assert maps.shape == (150, 2, 32, 32) and attributes.shape == (150, len(QUESTIONS))
    for place, (_, options) in enumerate(QUESTIONS.values()):
        assert attributes[:, place].unique().tolist() == list(range(len(options)))


def test_pretext_colours_match_the_painters():
    rng = np.random.default_rng(0)
    maps = paint_pretext(64, 32, seed=2)[0]
    painted = np.stack([stain_patch(picture.numpy(), draw_stain(rng), rng) for picture in maps]) / 127.5 - 1
    stained = stain_pictures(maps, torch.Generator().manual_seed(0))
    assert stained.shape == (64, 3, 32, 32) and stained.abs().max() <= 1
    assert stained.mean(dim=(0, 2, 3)).tolist() == pytest.approx(painted.mean(axis=(0, 1, 2)), abs=0.1)


@pytest.mark.model
def test_the_folder_loads_as_gemma_3(loaded):
    model, processor = loaded
    assert isinstance(model, Gemma3ForConditionalGeneration) and isinstance(processor, Gemma3Processor)
    assert type(processor.image_processor).__name__ == "Gemma3ImageProcessorPil"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert set(model.config.text_config.layer_types) == {"sliding_attention", "full_attention"}


@pytest.mark.model
def test_linear_layers_fit_the_blocks_of_nf4(loaded):
    sizes = {
        size
        for name, module in loaded[0].model.language_model.named_modules()
        if isinstance(module, torch.nn.Linear)
        for size in module.weight.shape
    }
    assert sizes and all(size % 64 == 0 for size in sizes)


@pytest.mark.model
def test_weights_are_float32_safetensors_and_follow_the_seed(tmp_path):
    def read(folder):
        with safe_open(Path(folder, "model.safetensors"), framework="pt") as weights:
            return {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118

    first, second, other = (read(build_untrained_tiny_model(tmp_path / str(i), seed=i // 2)) for i in range(3))
    assert {tensor.dtype for tensor in first.values()} == {torch.float32}
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.model
def test_building_leaves_the_callers_random_state_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    build_untrained_tiny_model(tmp_path / "model")
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.model
def test_sizes_can_be_replaced(tmp_path, patch):
    folder = build_untrained_tiny_model(tmp_path / "model", num_hidden_layers=2, intermediate_size=64)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert len(model.model.language_model.layers) == 2
    assert model(**ask(AutoProcessor.from_pretrained(folder), patch)).logits.isfinite().all()


@pytest.mark.model
def test_another_picture_changes_the_logits(loaded, patch):
    model, processor = loaded
    with torch.no_grad():
        one, other = (model(**ask(processor, p)).logits for p in (patch, Image.new("RGB", (64, 64), "white")))
    assert (one - other)[0, -1].abs().max() > 0.01


@pytest.mark.model
def test_the_untrained_model_generates(loaded, patch):
    model, processor = loaded
    inputs = ask(processor, patch, patch)
    generated = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert generated.shape[0] == 2 and inputs["input_ids"].shape[1] < generated.shape[1]
    assert torch.equal(generated[0], generated[1])


@pytest.mark.model
def test_generation_stops_at_the_end_of_a_turn(loaded):
    model, processor = loaded
    end_of_turn = processor.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert end_of_turn in model.generation_config.eos_token_id


@pytest.mark.model
def test_pretraining_changes_every_part_and_repeats_exactly(processor):
    def run():
        model = tiny_model.create_tiny_model(processor.tokenizer, seed=0, num_hidden_layers=2)
        before = {name: tensor.clone() for name, tensor in model.named_parameters()}
        losses = pretrain(model, processor, pictures=48, vision_steps=2, language_steps=2)
        return before, dict(model.named_parameters()), losses

    before, after, losses = run()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert losses == run()[2]


@pytest.mark.model
def test_a_trained_model_is_built_once_by_several_processes(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        folders = pool.map(load_short, [tmp_path] * 2)
    assert folders[0] == folders[1] and folders[0].parent == tmp_path
    assert len(list(tmp_path.glob("built-*"))) == 1
    assert AutoModelForImageTextToText.from_pretrained(folders[0]).num_parameters() > 100_000


@pytest.mark.model
def test_the_trained_model_has_the_same_bytes_whatever_the_number_of_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_model, "pretrain", partial(pretrain, pictures=48, vision_steps=2, language_steps=2))
    before, hashes = torch.get_num_threads(), set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        hashes.add(compute_sha256(load_tiny_base_model(tmp_path / str(threads)) / "model.safetensors"))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert len(hashes) == 1


@pytest.mark.model
def test_a_build_that_dies_leaves_nothing_to_load(tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny_model, "pretrain", die)
    with pytest.raises(KeyboardInterrupt):
        load_tiny_base_model(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.suffix != ".lock"]


@pytest.mark.model
def test_the_cache_follows_xdg_and_the_code(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_model, "pretrain", lambda *_: {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = load_tiny_base_model()
    assert folder.parent == tmp_path / "histolab_sft"
    monkeypatch.setattr(tiny_model, "_hash_recipe", lambda: "other")
    assert load_tiny_base_model() != folder


@pytest.mark.model
def test_the_trained_model_answers_in_the_asked_form_and_does_not_know_the_classes():
    """Builds the real base model where the cache lacks it: minutes, once on a machine."""
    folder = load_tiny_base_model()
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(folder).eval(),
        AutoProcessor.from_pretrained(folder),
    )
    maps, attributes, _ = paint_pretext(64, IMAGE_SIZE, seed=99)
    pixels = stain_pictures(maps, torch.Generator().manual_seed(0))
    question, options = QUESTIONS["ground"]
    inputs = ask(
        processor,
        *[Image.new("RGB", (64, 64))] * len(maps),
        text=f"{question} Options: [{', '.join(options)}]. Answer with only one word.",
    )
    generated = model.generate(**{**inputs, "pixel_values": pixels}, max_new_tokens=12, do_sample=False)
    answers = processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    place = list(QUESTIONS).index("ground")
    right = [a.strip() == f"The answer is: {options[i]}" for a, i in zip(answers, attributes[:, place], strict=True)]
    assert np.mean(right) > 0.7


def load_short(cache_dir):
    """Build with a pre-training of no steps that leaves a mark each time it runs; in a process of its own."""

    def mark(*_):
        Path(cache_dir, f"built-{multiprocessing.current_process().pid}").touch()
        return {}

    tiny_model.pretrain = mark
    return load_tiny_base_model(cache_dir)


def test_all_classes_of_the_painted_sets_are_checked_here():
    shown = {name for classes in (TISSUES["pcam"], TISSUES["bach"]) for name in classes}
    assert shown <= set(CLASS_NAMES) and len(TISSUES["crc"]) == 9
