"""One text has one score: in learning, testing and serving, alone and in a batch, in klimb and in transformers."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers.processors import BertProcessing, ByteLevel, RobertaProcessing, Sequence, TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from klimb import KlimbError
from klimb.cli.main import main
from klimb.config.reward import RewardConfig
from klimb.reward.learn.training import train_reward
from klimb.reward.load import load_rewards
from klimb.reward.reward import Batch
from klimb.reward.scorer import Scorer

# What they put around a turn, in short; Gemma and Llama 3 write BOS as well, and their tokenizers add it.
TEMPLATES = {
    "llama 3": ("<s>", "<|{r}|>\n\n{c}<|end|>"),
    "chatml": ("", "<|{r}|>\n{c}<|end|>\n"),
    "qwen": ("<|system|>\nYou are helpful.<|end|>\n", "<|{r}|>\n{c}<|end|>\n"),
    "mistral": ("<s>", "[INST] {c} [/INST]<|end|>"),
    "gemma": ("<s>", "<|{r}|>\n{c}<|stop|>\n"),
    "phi 3": ("", "<|{r}|>\n{c}<|stop|>\n"),
    "zephyr": ("", "<|{r}|>\n{c}<|end|>\n"),
}
TEXTS = [
    "good<|end|>",
    "a longer text<|end|>",
    "ok<|end|><|end|>",
    "b<|end|>c<|end|>",
    "<|end|>",
    "bare",
    "z<|user|>",
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KLIMB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def make_tokenizer(tokenizer, tmp_path):
    """A tokenizer of one token a byte, with BOS, what it puts around a text, and a template by name."""

    def make(processor=None, template="llama 3", **special):
        tokenizer.save_pretrained(tmp_path / "plain")
        made = PreTrainedTokenizerFast.from_pretrained(tmp_path / "plain", bos_token="<s>", **special)
        if processor is not None:
            made.backend_tokenizer.post_processor = processor(made.convert_tokens_to_ids)
        before, turn = TEMPLATES[template]
        first, rest = (
            turn.split("{r}") if "{r}" in turn else (turn.split("{c}")[0], "{c}" + turn.split("{c}")[1])
        )
        role = "{{ m.role }}" if "{r}" in turn else ""
        middle, end = rest.split("{c}")
        parts = [f"{{{{ {json.dumps(part)} }}}}" for part in (before, first, middle, end)]
        turns = f"{parts[1]}{role}{parts[2]}{{{{ m.content }}}}{parts[3]}"
        made.chat_template = f"{parts[0]}{{% for m in messages %}}{turns}{{% endfor %}}"
        return made

    return make


@pytest.fixture
def save(tmp_path, tokenizer):
    """Save a random model of a class, with a tokenizer, as an author of a reward would."""

    def write(kind, config, tokenizer=tokenizer, dtype=torch.float32):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = kind(config).eval()
            for weight in model.parameters():
                if weight.ndim > 1:
                    torch.nn.init.normal_(weight, std=0.3)
        model.to(dtype).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return write


def shape(**changes):
    return {"vocab_size": 270, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_labels": 1,
            "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": None, "bos_token_id": None,
            "eos_token_id": None} | changes  # fmt: skip


def encoder(**changes):
    return {key: value for key, value in shape(**changes).items() if value is not None}


END = 256  # of the tests' tokenizer
MODELS = {
    "llama without padding": lambda: (LlamaForSequenceClassification, LlamaConfig(**shape())),
    "llama whose padding is the end": lambda: (LlamaForSequenceClassification, LlamaConfig(**shape(pad_token_id=END))),
    "llama whose padding is no token": lambda: (LlamaForSequenceClassification, LlamaConfig(**shape(pad_token_id=-1))),
    "gpt2": lambda: (GPT2ForSequenceClassification, GPT2Config(
        vocab_size=270, n_embd=16, n_layer=2, n_head=4, n_positions=64, num_labels=1, pad_token_id=END)),
    "opt": lambda: (OPTForSequenceClassification, OPTConfig(
        vocab_size=270, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=4, num_labels=1,
        word_embed_proj_dim=8, max_position_embeddings=64)),
    "bert": lambda: (BertForSequenceClassification, BertConfig(**encoder())),
    "roberta": lambda: (RobertaForSequenceClassification, RobertaConfig(**encoder(pad_token_id=1))),
    "xlnet": lambda: (XLNetForSequenceClassification, XLNetConfig(
        vocab_size=270, d_model=16, n_layer=2, n_head=4, d_inner=24, num_labels=1)),
    "bart": lambda: (BartForSequenceClassification, BartConfig(
        vocab_size=270, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, num_labels=1,
        decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=64,
        eos_token_id=END)),
}  # fmt: skip


def in_transformers(folder, texts, **options):
    """What a user of transformers gets for each text alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, **options).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [
            float(model(input_ids=torch.tensor([read(tokenizer, text)])).logits.float()[0, 0])
            for text in texts
        ]


def read(tokenizer, text):
    if isinstance(text, str):
        return tokenizer(text).input_ids
    return tokenizer.apply_chat_template(text, tokenize=True, return_dict=False)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_others_scores_as_transformers_does_alone_and_in_a_batch(name, save):
    folder = save(*MODELS[name]())
    texts = [text for text in TEXTS if name != "bart" or "<|end|>" in text]
    scorer = Scorer.load(folder, device="cpu")
    ids = [scorer.encode("", text) for text in texts]
    expected = in_transformers(folder, texts)
    assert len({round(score, 3) for score in expected}) > 3
    np.testing.assert_allclose([scorer.scores([row])[0] for row in ids], expected, atol=2e-5)
    np.testing.assert_allclose(scorer.scores(ids), expected, atol=2e-5)
    np.testing.assert_allclose(scorer.apply_head(scorer.features(ids)), expected, atol=2e-5)


def test_a_tokenizer_that_pads_otherwise_than_the_model_changes_no_score(save, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "own")
    other = AutoTokenizer.from_pretrained(tmp_path / "own", pad_token="<|user|>", padding_side="left")
    folder = save(LlamaForSequenceClassification, LlamaConfig(**shape(pad_token_id=END)), other)
    reward = load_rewards([str(folder)], device="cpu")
    alone = [reward(Batch([""], [text])).total[0] for text in TEXTS]
    np.testing.assert_allclose(reward(Batch([""] * len(TEXTS), TEXTS)).total, alone, atol=2e-5)
    np.testing.assert_allclose(alone, in_transformers(folder, TEXTS), atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_are_not_rounded_to_the_type_of_the_weights(save, dtype):
    folder = save(LlamaForSequenceClassification, LlamaConfig(**shape(pad_token_id=END)), dtype=dtype)
    texts = [f"text {number}" for number in range(200)]
    scores = load_rewards([str(folder)], device="cpu")(Batch([""] * 200, texts)).total
    assert len(set(scores)) > 195
    np.testing.assert_allclose(scores, in_transformers(folder, texts, dtype=torch.float32), atol=2e-5)


def test_roberta_reads_no_more_than_it_has_positions_for(save):
    scorer = Scorer.load(save(RobertaForSequenceClassification, RobertaConfig(**encoder(pad_token_id=1))))
    scorer.scores([scorer.encode("", "a" * 62)])  # 64 positions, counted from 2
    with pytest.raises(KlimbError, match="have 63 tokens and it reads at most 62"):
        scorer.encode("", "a" * 63)


def test_what_a_model_has_no_token_to_score_at_is_refused(save):
    scorer = Scorer.load(save(*MODELS["bart"]()))
    with pytest.raises(KlimbError, match="it scores a text at its end token, and the tokenizer adds none"):
        scorer.encode("", "no end")
    with pytest.raises(KlimbError, match="have no tokens"):
        scorer.encode("", "")


def chats(count=60):
    """Answers that are the better the more of the letter a they have."""
    return [
        {"prompt": [{"role": "user", "content": f"q {number}"}], "chosen": "ab" + "a" * (number % 5),
         "rejected": "zb" + "z" * (number % 3)}
        for number in range(count)
    ]  # fmt: skip


def whole_chats():
    """Each answer as the last turn of its chat: the better and the worse in turns."""
    answers = [(row["prompt"], row[side]) for row in chats() for side in ("chosen", "rejected")]
    return [[*prompt, {"role": "assistant", "content": answer}] for prompt, answer in answers]


@pytest.mark.parametrize(
    "template",
    [
        name if name in ("llama 3", "mistral") else pytest.param(name, marks=pytest.mark.slow)
        for name in TEMPLATES
    ],
)
def test_a_learned_reward_orders_pairs_in_transformers_as_its_page_says(
    template, make_tokenizer, make_model, write_jsonl, tmp_path
):
    tokenizer = make_tokenizer(around("<s>"), template, pad_token="<|end|>")
    base, file = tmp_path / "base", write_jsonl(chats())
    model = make_model("llama", vocab_size=len(tokenizer))
    model.config.pad_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    model.to(torch.bfloat16).save_pretrained(base)
    tokenizer.save_pretrained(base)
    result = train_reward(RewardConfig((str(file),), str(base), tmp_path / "reward", held_out=0.3))
    scorer = Scorer.load(result.folder, device="cpu")
    rows = whole_chats()
    ids = [scorer.encode(chat[:-1], chat[-1]["content"]) for chat in rows]
    assert max(row.count(scorer.tokenizer.bos_token_id) for row in ids) <= 1
    expected = in_transformers(result.folder, rows)
    np.testing.assert_allclose(scorer.scores(ids), expected, atol=1e-4 * np.ptp(expected))
    saved = AutoTokenizer.from_pretrained(result.folder)
    batch = saved.apply_chat_template(
        rows, tokenize=True, padding=True, return_dict=True, return_tensors="pt"
    )
    served = AutoModelForSequenceClassification.from_pretrained(result.folder).eval()
    with torch.no_grad():
        np.testing.assert_allclose(served(**batch).logits[:, 0], expected, atol=1e-4 * np.ptp(expected))
    margins = np.array(expected).reshape(-1, 2) @ [1, -1]
    held_out, learned = result.held_out, result.train
    right = held_out.accuracy * held_out.num_pairs + learned.accuracy * learned.num_pairs
    assert right == pytest.approx((margins > 0).sum())
    assert {row[-1] for row in ids} != {scorer.model.config.pad_token_id}  # the last token is what is scored


def test_with_caution_and_without_a_text_is_read_at_the_same_token(write_jsonl, model_folder, tmp_path):
    result = train_reward(
        RewardConfig((str(write_jsonl(chats())),), str(model_folder), tmp_path / "r", num_members=3)
    )
    scorer = Scorer.load(result.folder, device="cpu")
    scorer.members = np.stack(
        [scorer.head.weight.detach().numpy()[0]] * 3
    )  # they agree: uncertainty_penalty takes nothing off
    scorer.save(tmp_path / "agreeing")
    batch = Batch([chats()[0]["prompt"]] * 2, ["aaa", "zzz"])
    plain, cautious = (
        load_rewards([str(tmp_path / "agreeing")], uncertainty_penalty=c)(batch).total for c in (0.0, 3.0)
    )
    np.testing.assert_allclose(plain, cautious, atol=1e-6)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_page_of_a_tuned_reward_is_that_of_the_saved_one(method, write_jsonl, model_folder, tmp_path):
    file = write_jsonl(chats())
    config = RewardConfig(
        (str(file),), str(model_folder), tmp_path / "r", method=method, lr=1e-3, batch_size=16
    )
    result = train_reward(config)
    rows = whole_chats()
    margins = np.array(in_transformers(result.folder, rows)).reshape(-1, 2) @ [1, -1]
    held_out, learned = result.held_out, result.train
    right = held_out.accuracy * held_out.num_pairs + learned.accuracy * learned.num_pairs
    assert right == pytest.approx((margins > 0).sum() + (margins == 0).sum() / 2)


def around(before="", after=""):
    """Make a template processor that puts special tokens before and after a text."""

    def make(ids_of):
        special = [(token, ids_of(token)) for token in (before, after) if token]
        return TemplateProcessing(single=f"{before} $A {after}".strip(), special_tokens=special)

    return make


def last(kind):
    return lambda ids_of: kind(*[(token, ids_of(token)) for token in ("<|stop|>", "<s>")])


PROCESSORS = {
    "none": (None, "", ""),
    "bytes": (lambda _: ByteLevel(), "", ""),
    "empty template": (around(), "", ""),
    "bos": (around("<s>"), "<s>", ""),
    "bytes, bos": (lambda ids_of: Sequence([ByteLevel(), around("<s>")(ids_of)]), "<s>", ""),
    "cls and sep": (around("<s>", "<|stop|>"), "<s>", "<|stop|>"),
    "end": (around(after="<|end|>"), "", "<|end|>"),
    "BERT's": (last(BertProcessing), "<s>", "<|stop|>"),
    "RoBERTa's": (last(RobertaProcessing), "<s>", "<|stop|>"),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_question_is_read_after_the_text_whatever_the_tokenizer_adds(
    name, make_tokenizer, make_model, tmp_path
):
    processor, before, after = PROCESSORS[name]
    tokenizer = make_tokenizer(processor)
    make_model("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    scorer = Scorer.from_base(tmp_path / "base", question=' So: "good"?\n', device="cpu")
    scorer.save(tmp_path / "asking")
    again = Scorer.load(tmp_path / "asking", device="cpu")
    chat = [{"role": "user", "content": "hm"}]
    for one in (scorer, again):
        assert one.tokenizer.decode(one.encode("a ", "text")) == f'{before}a text So: "good"?\n{after}'
        assert one.tokenizer.decode(one.encode(chat, "yes")).endswith('yes<|end|> So: "good"?\n')
    whole = again.tokenizer.apply_chat_template(
        [*chat, {"role": "assistant", "content": "yes"}], return_dict=False
    )
    assert whole == again.encode(chat, "yes")


def test_a_tokenizer_that_cannot_append_is_refused_in_words(make_tokenizer):
    from klimb.reward.question import append_question

    with pytest.raises(KlimbError, match="cannot append a text; leave the question out"):
        append_question(SimpleNamespace(), "?")
    with pytest.raises(KlimbError, match="has no tokens; leave it out"):
        append_question(make_tokenizer(), "")


@pytest.mark.parametrize("side", ["left", "right"])
def test_longer_texts_are_cut_in_learning_and_in_use_where_that_is_asked_for(
    side, write_jsonl, model_folder, tmp_path
):
    rows = [{"prompt": f"p{n} ", "chosen": "good", "rejected": "bad"} for n in range(30)]
    file = write_jsonl([*rows, {"prompt": "long ", "chosen": "x" * 90 + "a", "rejected": "y"}])
    said = []
    train_reward(
        RewardConfig((str(file),), str(model_folder), tmp_path / "r", truncate=side, question=""), said.append
    )
    assert not any("refused whose" in line for line in said)
    scorer = Scorer.load(tmp_path / "r", device="cpu")
    ids = scorer.encode("long ", "x" * 90 + "a")
    assert len(ids) == 64
    text = scorer.tokenizer.decode(ids)
    assert text == ("x" * 63 + "a" if side == "left" else "long " + "x" * 59)
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "r")("long " + "x" * 90 + "a", truncation=True).input_ids
        == ids
    )


def test_a_row_that_cannot_be_read_costs_itself_in_scoring(write_jsonl, model_folder, tmp_path, capsys):
    rows = [{"prompt": f"p{n} ", "chosen": "good", "rejected": "bad"} for n in range(30)]
    train_reward(RewardConfig((str(write_jsonl(rows)),), str(model_folder), tmp_path / "r", question=""))
    texts = write_jsonl([{"text": "one"}, {"text": "x" * 70}, {"text": "three"}], "texts.jsonl")
    assert (
        main(
            ["reward", "score", str(texts), "--reward", str(tmp_path / "r"), "-o", str(tmp_path / "s.jsonl")]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "2 texts, mean score" in shown
    assert f"1 rows have no score: {texts}:2: " in shown
    assert "have 70 tokens and it reads at most 64" in shown
    scored = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [row["score"] is None for row in scored] == [False, True, False]
    assert "70 tokens" in scored[1]["failure"]
