"""A checkpoint from anywhere is loaded as it is, or refused in one line that names what is wrong with it."""

import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_checkpoints as tiny
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from models.checkpoint import quiet, weights_digest
from models.hub import locate, weights_file_digest
from models.pretrained import Reader, describe, find_device, load_model, load_tokenizer_of
from models.spec import SpecError, size_to_spec

TENSOR = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"
MASKED = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.neox(tmp_path_factory.mktemp("neox") / "good")


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy"))


def refusal(folder: Path, **options: str) -> str:
    with pytest.raises(SpecError) as refused:
        load_model(folder, **options)
    message = str(refused.value)
    assert "\n" not in message and str(folder) in message
    return message


@pytest.mark.parametrize("make", [tiny.neox, tiny.llama, tiny.ours])
def test_what_loads_scores_as_plain_transformers_does(make: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    loaded = load_model(folder)
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    context, answer = "copy the word", " one two"
    ids, n = tokenizer(context + answer)["input_ids"], len(tokenizer(context)["input_ids"])
    bos = [tokenizer.bos_token_id]
    with torch.inference_mode():
        logprobs = model(torch.tensor([bos + ids])).logits[0].log_softmax(-1)
    expected = sum(float(logprobs[i, ids[i]]) for i in range(n, len(ids)))
    assert loaded.loglikelihood([(context, [answer])])[0][0].logprob == pytest.approx(expected, abs=1e-4)


def test_the_reference_answers_alike(good: Path) -> None:
    asked = [("copy the word", [" one", " two three"])]
    fast, plain = (load_model(good, reference=flag).loglikelihood(asked)[0] for flag in (False, True))
    assert [s.logprob for s in fast] == pytest.approx([s.logprob for s in plain], abs=1e-4)


def test_a_half_precision_model_answers_nearly_alike_and_no_better_than_its_weights(good: Path) -> None:
    full, half = (load_model(good, dtype=d).loglikelihood([("copy", [" one"])])[0][0].logprob for d in ("fp32", "bf16"))
    assert half == pytest.approx(full, abs=0.3) and half != full


def test_parameters_are_counted_from_what_the_config_builds(good: Path, tmp_path: Path) -> None:
    for folder in (good, tiny.llama(tmp_path / "llama"), tiny.ours(tmp_path / "ours")):
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(folder)
        found = describe(folder)
        assert found.n_params == model.num_parameters()
        head = 0 if model.config.tie_word_embeddings else 1
        assert found.n_params - found.n_params_non_embedding == (1 + head) * tiny.VOCAB * model.config.hidden_size
    spec = size_to_spec("1x16", vocab_size=tiny.VOCAB, context_length=tiny.CONTEXT)
    assert (found.n_params, found.n_params_non_embedding) == (spec.n_params, spec.n_params_non_embedding)


def test_config_and_tokenizer_are_read_without_the_weights(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"not weights")
    assert describe(copy).context_length == tiny.CONTEXT
    assert load_tokenizer_of(copy)("one")["input_ids"]


def test_a_folder_without_config_is_refused(copy: Path) -> None:
    (copy / "config.json").unlink()
    assert "has no config.json" in refusal(copy)


def test_a_damaged_config_is_refused(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    assert "config.json: cannot be read" in refusal(copy)


def test_pickled_weights_are_refused_and_never_opened(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"anything")
    assert "pytorch_model.bin only" in refusal(copy)
    (copy / "pytorch_model.bin").unlink()
    assert "has no model.safetensors" in refusal(copy)


def test_a_missing_tensor_is_named_and_not_drawn_at_random(copy: Path) -> None:
    tiny.change_weights(copy, lambda w: w.pop(TENSOR))
    assert TENSOR in refusal(copy)


def test_a_missing_head_is_refused_unless_it_is_tied(copy: Path, tmp_path: Path) -> None:
    tiny.change_weights(
        copy, lambda w: w.pop("embed_out.weight", None) if "embed_out.weight" in w else w.pop("lm_head.weight")
    )
    assert "lack the tensor" in refusal(copy)
    tied = tiny.llama(tmp_path / "tied")
    tiny.change_weights(tied, lambda w: None if "lm_head.weight" not in w else w.pop("lm_head.weight"))
    load_model(tied)


def test_a_tensor_without_a_place_is_named(copy: Path) -> None:
    tiny.change_weights(copy, lambda w: w.update({"adapter.weight": torch.zeros(2)}))
    assert "'adapter.weight'" in refusal(copy)


def test_buffers_of_older_releases_are_no_foreign_tensors(copy: Path) -> None:
    mask = {f"gpt_neox.layers.0.attention.{name}": torch.zeros(2) for name in ("masked_bias", "rotary_emb.inv_freq")}
    tiny.change_weights(copy, lambda w: w.update(mask))
    load_model(copy)


def test_a_tensor_of_another_shape_is_named(copy: Path) -> None:
    tiny.change_weights(copy, lambda w: w.update({TENSOR: torch.zeros(2, 3)}))
    message = refusal(copy)
    assert TENSOR in message and "(2, 3)" in message and "(128, 32)" in message


@pytest.mark.parametrize("keep", [0, 100, 50_000, -1])
def test_a_cut_off_file_is_named(copy: Path, keep: int) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert f"{file}: damaged or cut off" in refusal(copy)


def test_a_missing_shard_is_named(good: Path, tmp_path: Path) -> None:
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(good)
        model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    AutoTokenizer.from_pretrained(good).save_pretrained(tmp_path / "sharded")
    folder = tmp_path / "sharded"
    whole, shards = load_model(good), load_model(folder)
    asked = [("copy", [" one"])]
    assert shards.loglikelihood(asked) == whole.loglikelihood(asked)
    lost = sorted(folder.glob("model-*.safetensors"))[1]
    lost.unlink()
    assert lost.name in refusal(folder)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(copy: Path, number: float) -> None:
    tiny.change_weights(copy, lambda w: w[TENSOR].view(-1)[5:6].fill_(number))
    assert f"'{TENSOR}' holds" in refusal(copy)


def test_weights_too_large_for_half_precision_say_which_dtype_would_do(copy: Path) -> None:
    tiny.change_weights(copy, lambda w: w[TENSOR].view(-1)[5:6].fill_(1e6))
    assert "--dtype bf16" in refusal(copy, dtype="fp16")
    load_model(copy, dtype="bf16")


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused(copy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens([f"extra{i}" for i in range(tiny.VOCAB)])
    tokenizer.save_pretrained(copy)
    assert f"the model has {tiny.VOCAB} embeddings" in refusal(copy)


def test_a_folder_without_tokenizer_is_refused_where_transformers_makes_one_up(copy: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    assert "has no tokenizer" in refusal(copy)


def test_a_damaged_tokenizer_is_refused(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{")
    message = refusal(copy)
    assert (
        "its tokenizer cannot be loaded" in message and f"copy or download {copy / 'tokenizer.json'} again" in message
    )


def test_a_missing_tokenizer_file_is_named(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    message = refusal(copy)
    assert "tokenizer.json" in message and "put it beside the weights" in message


def test_a_damaged_generation_config_is_refused(copy: Path) -> None:
    (copy / "generation_config.json").write_text("{")
    assert "generation_config.json: cannot be read" in refusal(copy)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_checkpoint_of_ours_is_compared_with_its_own_record(tmp_path: Path, dtype: str) -> None:
    run = tiny.our_run(tmp_path, steps=(10,))
    folder = run / "step-000010"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tiny.change_json(folder / "meta.json", weights_digest=weights_digest(model))
    tiny.change_json(run / "run.json", tokenizer_digest=describe(folder).tokenizer_digest)
    load_model(folder, dtype=dtype)
    tiny.change_weights(folder, lambda w: next(iter(w.values())).view(-1)[:1].add_(1e-6))
    assert "not those that meta.json was written for" in refusal(folder, dtype=dtype)
    tiny.train_tokenizer(["other words"], 270).save_pretrained(folder)
    assert "its tokenizer is not the one that" in refusal(folder)


def test_models_that_are_not_causal_are_refused(copy: Path) -> None:
    t5 = T5ForConditionalGeneration(T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8, vocab_size=300))
    for model in (t5, BertForMaskedLM(BertConfig(**MASKED, vocab_size=300))):
        with quiet():
            model.save_pretrained(copy)
        assert f"{type(model).__name__}, which is no causal language model" in refusal(copy)


def test_a_model_that_says_it_is_causal_but_sees_ahead_is_refused(copy: Path) -> None:
    with quiet():
        for decoder in (False, True):
            torch.manual_seed(0)
            BertLMHeadModel(BertConfig(**MASKED, vocab_size=300, is_decoder=True)).save_pretrained(copy)
            tiny.change_json(copy / "config.json", is_decoder=decoder)
            if decoder:
                load_model(copy)
            else:
                assert "what the model says before it" in refusal(copy)


def test_code_of_a_repository_runs_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    folder = tiny.llama(tmp_path / "mine")
    own = {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Lm"}
    tiny.change_json(folder / "config.json", model_type="mine", auto_map=own)
    (folder / "mine.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\n"
        "class Mine(LlamaConfig):\n    model_type = 'mine'\n"
        "class Lm(LlamaForCausalLM):\n    config_class = Mine\n"
    )
    assert "--trust-remote-code" in refusal(folder) and not (tmp_path / "ran").exists()
    load_model(folder, trust_remote_code=True)
    assert (tmp_path / "ran").exists()


def test_an_unknown_type_without_code_is_refused(copy: Path) -> None:
    tiny.change_json(copy / "config.json", model_type="zzz")
    assert "knows no model of the type 'zzz'" in refusal(copy)


def test_what_is_no_folder_and_no_hub_name_says_so(tmp_path: Path) -> None:
    for name in (str(tmp_path / "absent"), "./absent", "pythia-70m"):
        with pytest.raises(SpecError, match=f"{re.escape(name)}: no such folder"):
            load_model(name)


def test_a_hub_model_that_is_not_here_says_how_to_download_it_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    with pytest.raises(SpecError, match=r"hf download EleutherAI/pythia-70m --revision step1000$"):
        describe("EleutherAI/pythia-70m", "step1000")
    assert time.monotonic() - started < 5


def test_a_hub_model_in_the_cache_is_found_without_network_and_its_digest_is_not_computed(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = tiny.hub_cache(tmp_path, good)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load_model("org/tiny", revision="step8").context_length == tiny.CONTEXT
    true = weights_file_digest(good)
    assert true == hashlib.sha256((good / "model.safetensors").read_bytes()).hexdigest()
    (repo / "blobs" / true).write_bytes(b"what a digest must not be computed from")
    assert weights_file_digest(locate("org/tiny", "step8")) == true


def test_weights_that_are_not_in_the_cache_say_how_to_download_them(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.hub_cache(tmp_path, good, weights=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    describe("org/tiny", "step8")
    with pytest.raises(SpecError, match="hf download org/tiny --revision step8"):
        load_model("org/tiny", revision="step8")


def test_a_network_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fail(name: str, *, local_files_only: bool = False, **rest: object) -> str:
        raise LocalEntryNotFoundError("x") if local_files_only else ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(SpecError, match=r"^org/tiny: .*no route\); try: hf download org/tiny$"):
        locate("org/tiny")


def test_the_digest_of_several_files_tells_them_apart(tmp_path: Path) -> None:
    names = ["model-1.safetensors", "model-2.safetensors"]
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict(zip("ab", names, strict=True))})
    )
    for one, other in ((b"1", b"2"), (b"2", b"1"), (b"1", b"3")):
        for name, content in zip(names, (one, other), strict=True):
            (tmp_path / name).write_bytes(content)
        digest = weights_file_digest(tmp_path)
        lines = "".join(
            f"{name} {hashlib.sha256(c).hexdigest()}\n" for name, c in zip(names, (one, other), strict=True)
        )
        assert digest == hashlib.sha256(lines.encode()).hexdigest()


def test_what_cannot_be_asked_is_known_from_the_tokenizer_alone(good: Path) -> None:
    reader, model = describe(good).reader, load_model(good)
    for context, texts in [("copy", ("",)), ("copy", (" one" * 100,)), ("", ("",))]:
        for asked in (reader.check, lambda c, t: model.loglikelihood([(c, t)])):
            with pytest.raises(SpecError, match="a continuation must have 1 to 64 tokens"):
                asked(context, texts)
    reader.check("copy", (" one", " two"))
    assert reader.count_tokens("copy the word") == model.count_tokens("copy the word")
    assert isinstance(reader, Reader)


def test_devices_and_dtypes_are_checked(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_device("auto") == find_device("cpu") == "cpu"
    for device in ("cuda", "gpu"):
        with pytest.raises(SpecError, match=f"device {device}|unknown device"):
            find_device(device)
    with pytest.raises(SpecError, match="unknown dtype 'int8'"):
        load_model(good, dtype="int8")
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(is_available=lambda: True))
    assert find_device("auto") == find_device("cuda") == "cuda"
