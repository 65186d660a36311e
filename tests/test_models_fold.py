"""A folded checkpoint is a plain Llama with the logits of the original; what cannot be folded is refused."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_checkpoints as tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GraniteConfig, GraniteForCausalLM, LlamaForCausalLM

from models.checkpoint import quiet, weights_digest
from models.decoder import build
from models.fold import export, fold
from models.spec import SpecError, size_to_spec

MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.3,
    "attention_multiplier": 0.7,
    "logits_scaling": 5.0,
}
ROWS = torch.randint(tiny.VOCAB, (3, 20), generator=torch.Generator().manual_seed(0))


def granite(**changes: object) -> GraniteForCausalLM:
    """Three layers, grouped queries, multipliers that are no powers of two, gains that are not one."""
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4}
    rest = {"num_key_value_heads": 2, "vocab_size": tiny.VOCAB, "max_position_embeddings": 64}
    config = GraniteConfig(**(shape | rest | MULTIPLIERS | {"bos_token_id": 0, "eos_token_id": 0} | changes))
    torch.manual_seed(0)
    model = GraniteForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def record(folder: Path) -> Path:
    (folder / "meta.json").write_text(json.dumps({"step": 10, "tokens": 5120, "phase": "final", "train_loss": 5.5}))
    return folder


@torch.no_grad()
def logits(model, rows: torch.Tensor = ROWS) -> torch.Tensor:
    return model(input_ids=rows, use_cache=False).logits


@pytest.mark.parametrize("parametrization", ["mup", "sp"])
@pytest.mark.parametrize(("size", "n_head"), [("1x16", 2), ("3x48", 3), ("6x32", 4), ("4x128", 2)])
def test_our_models_keep_their_logits(size: str, n_head: int, parametrization: str) -> None:
    shape = size_to_spec(
        size, vocab_size=tiny.VOCAB, context_length=tiny.CONTEXT, n_head=n_head, parametrization=parametrization
    )
    model = build(shape, seed=1).eval()
    before = weights_digest(model)
    folded = fold(model)
    assert type(folded) is LlamaForCausalLM and weights_digest(model) == before
    assert (logits(folded) - logits(model)).abs().max() < 1e-5
    assert sum(p.numel() for p in folded.parameters()) == shape.n_params


@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}, {"head_dim": 10}]
)
def test_the_fold_is_exact_for_any_multipliers(changes: dict[str, object]) -> None:
    model = granite(**changes).double()
    expected = logits(model)
    assert (logits(fold(model)) - expected).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize("name", MULTIPLIERS)
def test_every_multiplier_counts(name: str) -> None:
    model = granite()
    expected = logits(model)
    setattr(model.config, name, getattr(model.config, name) * 1.01)
    with quiet():
        changed = GraniteForCausalLM(model.config).eval()
    changed.load_state_dict(model.state_dict())
    assert (logits(fold(changed)) - expected).abs().max() > 1e-4


def test_tied_embeddings_stay_tied_only_where_both_ends_are_scaled_alike() -> None:
    apart = fold(granite(tie_word_embeddings=True))
    assert not apart.config.tie_word_embeddings
    assert not torch.equal(apart.lm_head.weight, apart.model.embed_tokens.weight)
    torch.testing.assert_close(apart.lm_head.weight * 15, apart.model.embed_tokens.weight)
    alike = granite(tie_word_embeddings=True, embedding_multiplier=0.25, logits_scaling=4.0)
    folded = fold(alike)
    assert folded.config.tie_word_embeddings and folded.lm_head.weight is folded.model.embed_tokens.weight
    torch.testing.assert_close(logits(folded), logits(alike))


def test_an_export_loads_in_a_fresh_process_and_writes_what_the_original_writes(tmp_path: Path) -> None:
    source = record(tiny.ours(tmp_path / "run" / "step-000010", size="3x32"))
    out = tmp_path / "plain"
    told = export(source, out)
    assert json.loads((out / "meta.json").read_text()) == told
    assert (told["step"], told["tokens"], told["train_loss"], told["dtype"]) == (10, 5120, 5.5, "fp32")
    with quiet():
        original = AutoModelForCausalLM.from_pretrained(source).eval()
    assert told["folded_from"]["weights_digest"] == weights_digest(original)
    tokens = AutoTokenizer.from_pretrained(source)("one two three", return_tensors="pt")["input_ids"]
    written = original.generate(tokens, max_new_tokens=8, do_sample=False)
    code = f"""
import json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(out)!r}).eval()
tokens = AutoTokenizer.from_pretrained({str(out)!r})("one two three", return_tensors="pt")["input_ids"]
written = model.generate(tokens, max_new_tokens=8, do_sample=False)
with torch.no_grad():
    last = model(input_ids=tokens).logits[0, -1]
print(json.dumps([type(model).__name__, written.tolist(), last.tolist()]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    name, there, last = json.loads(done.stdout.splitlines()[-1])
    assert name == "LlamaForCausalLM" and there == written.tolist()
    torch.testing.assert_close(torch.tensor(last), logits(original, tokens)[0, -1], atol=1e-5, rtol=0)


def test_bf16_is_written_as_bf16_and_says_what_its_rounding_costs(tmp_path: Path) -> None:
    source = record(tiny.ours(tmp_path / "step-000010", size="2x32"))
    told = export(source, tmp_path / "half", dtype="bf16")
    with quiet():
        half = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert half.dtype == torch.bfloat16 and weights_digest(half) == told["weights_digest"]
    assert 1e-5 < told["max_logit_difference"] < 0.1


def refusal(source: Path, out: Path, **options: str) -> str:
    before = sorted(out.parent.iterdir())
    with pytest.raises(SpecError) as refused:
        export(source, out, **options)
    assert "\n" not in str(refused.value) and sorted(out.parent.iterdir()) == before
    return str(refused.value)


def test_what_is_no_checkpoint_of_ours_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    good = record(tiny.ours(tmp_path / "run" / "step-000010"))
    assert "is a run; give one of its checkpoints" in refusal(tmp_path / "run", out)
    assert "no such folder" in refusal(tmp_path / "nowhere", out)
    assert "has no meta.json" in refusal(tiny.ours(tmp_path / "bare"), out)
    assert "LlamaForCausalLM; only" in refusal(record(tiny.llama(tmp_path / "llama")), out)
    assert "accepted are fp32, bf16" in refusal(good, out, dtype="int4")
    for text in ("{", "[]", '{"step": 3}'):
        broken = Path(shutil.copytree(good, tmp_path / "broken", dirs_exist_ok=True))
        (broken / "meta.json").write_text(text)
        assert str(broken / "meta.json") in refusal(broken, out)
    damaged = Path(shutil.copytree(good, tmp_path / "damaged"))
    tiny.change_weights(damaged, lambda tensors: tensors["lm_head.weight"].fill_(math.nan))
    assert "holds NaN" in refusal(damaged, out)


def test_what_overflows_when_it_is_folded_is_refused(tmp_path: Path) -> None:
    source = record(tiny.ours(tmp_path / "step-000010"))
    tiny.change_json(source / "config.json", logits_scaling=1e-42)
    assert "folding changes logits by" in refusal(source, tmp_path / "out")


def test_nothing_is_overwritten_and_nothing_folded_twice(tmp_path: Path) -> None:
    source = record(tiny.ours(tmp_path / "step-000010"))
    export(source, tmp_path / "out")
    written = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert "is already there" in refusal(source, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == written
    assert "is already folded" in refusal(tmp_path / "out", tmp_path / "again")


@pytest.mark.parametrize(("name", "value"), [("logits_scaling", 0.0), ("residual_multiplier", math.inf)])
def test_a_multiplier_that_no_weight_can_hold_is_refused(name: str, value: float) -> None:
    with pytest.raises(SpecError, match=f"{name}=.* cannot be folded"):
        fold(granite(**{name: value}))
