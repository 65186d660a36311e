"""What the comparisons with lm-eval run on: two small models that prefer some tokens clearly, tokenizers, questions."""

import copy
import json

import numpy as np
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.decoder import build
from models.spec import size_to_spec
from models.tokenizer import train_tokenizer

CONTEXT = 64
WORDS = [
    *("the", "cat", "dog", "sees", "runs", "home", "naïve", "Zürich", "東京", "old", "red", "river", "stone", "walks"),
    *("under", "over", "often", "never", "seldom"),
]


def sentences(n, *, seed=0, longest=9):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(2, longest))) for _ in range(n)]


def rows_of_choices(n=40):
    """Questions with choices of one to five words; two begin alike, and some are not ASCII."""
    rng = np.random.default_rng(1)
    rows = []
    for question in sentences(n, seed=2, longest=8):
        choices = ["the old river", "the old stone", *sentences(2, seed=int(rng.integers(1 << 30)), longest=6)]
        choices = list(dict.fromkeys([*choices, str(rng.choice(["東京", "Zürich", "cat"]))]))
        rows.append({"question": question, "choices": choices, "answer": int(rng.integers(len(choices)))})
    return rows


def rows_of_texts():
    """Texts of a few words up to several windows."""
    return [{"text": " ".join(sentences(n, seed=n))} for n in (1, 2, 3, 5, 8, 20, 40)]


def llama():
    """A transformers model, and a tokenizer that adds no special token and has three different ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>"]
    tokenizer.train_from_iterator(
        sentences(500),
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(fast),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=CONTEXT,
                initializer_range=0.4,  # at the usual 0.02 all choices are nearly tied, and any scorer agrees
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=2,
            )
        )
    return ending_sometimes(model), fast


def own():
    """A model and a tokenizer of this project, its output head turned up for the same reason."""
    spec = size_to_spec("2x32", vocab_size=400, context_length=CONTEXT)
    model = build(spec, seed=0)
    with torch.no_grad():
        model.lm_head.weight.mul_(6)
    return ending_sometimes(model), train_tokenizer(sentences(500), 400)


def adding_begin_of_text(tokenizer):
    """The tokenizer, made to put begin-of-text first by itself: the one way that lm-eval can be told to."""
    changed = copy.deepcopy(tokenizer)
    token, i = tokenizer.bos_token, tokenizer.bos_token_id
    changed.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, i)]
    )
    return changed


def ending_sometimes(model):
    """The model, writing end-of-text in the place of a token that it wrote in about half of some texts."""
    model = model.eval()
    starts = torch.arange(3, 63)[:, None]
    with torch.no_grad():
        written = starts
        for _ in range(12):
            written = torch.cat([written, model(input_ids=written).logits[:, -1:].argmax(-1)], dim=1)
        holds = torch.stack([(written[:, 1:] == token).any(1) for token in range(model.config.vocab_size)])  # (V, n)
        token = int((holds.float().mean(1) - 0.5).abs().argmin())
        model.lm_head.weight[model.config.eos_token_id] = 1.01 * model.lm_head.weight[token]
    return model


def write_task(folder, name, rows, **config):
    """A YAML of lm-eval for rows kept in a file of their own; `examples`, where given, fill another split."""
    splits = {"test": rows, "train": config.pop("examples", None)}
    files = {split: folder / f"{name}-{split}.jsonl" for split, listed in splits.items() if listed}
    for split, file in files.items():
        file.write_text("".join(json.dumps(row) + "\n" for row in splits[split]), encoding="utf-8")
    given = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {split: str(file) for split, file in files.items()}},
        "test_split": "test",
        "num_fewshot": 0,
        "metadata": {"version": 1.0},
    }
    text = yaml.safe_dump(given | config, allow_unicode=True, sort_keys=False)
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def metric(name, aggregation="mean", better=True, **options):
    return {"metric": name, "aggregation": aggregation, "higher_is_better": better, **options}


CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "metric_list": [
        *(metric(name) for name in ("acc", "acc_norm", "acc_bytes")),
        metric("brier_score", "brier_score", False),
    ],
}
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [
        metric("word_perplexity", "weighted_perplexity", False),
        metric("byte_perplexity", "weighted_perplexity", False),
        metric("bits_per_byte", "bits_per_byte", False),
    ],
}
TARGET = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{target}}",
    "metric_list": [metric("acc"), metric("perplexity", "perplexity", False)],
}
ANSWER = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n", " old"], "max_gen_toks": 12, "do_sample": False},
    "filter_list": [{"name": "stripped", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}],
    "metric_list": [metric("exact_match")],
}
