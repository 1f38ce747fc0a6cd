"""Two models that differ, the folder of a run, and people who judge without a browser."""

import shutil

import pytest

from klimb.feedback.records import Answer


@pytest.fixture(scope="session")
def other_folder(make_model, tokenizer, tmp_path_factory):
    """A second tiny Llama, with weights of its own, that ends as the first does."""
    folder = tmp_path_factory.mktemp("models") / "other-llama"
    model = make_model("llama", vocab_size=len(tokenizer), spread=0.3, seed=5)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(["<|end|>", "<|stop|>"])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run_folder(model_folder, tmp_path):
    """The folder of a finished run, whose model is the first."""
    run = tmp_path / "runs" / "x"
    shutil.copytree(model_folder, run / "model")
    (run / "checkpoints" / "step-000004").mkdir(parents=True)
    (run / "config.json").write_text("{}\n")
    (run / "metrics.jsonl").write_text("{}\n")
    return run


@pytest.fixture
def judged_by():
    """Make a server behind which a rater answers whatever is asked, at most so much."""

    def make(prefer, rater="ann", at_most=10**6):
        def serve(store, options, say, open_browser, until=None, notes=None):  # noqa: ARG001  as the real one is called
            serve.num_calls += 1
            for _ in range(at_most):
                question = store.next_question(rater, per_pair=options.per_pair)
                if question is None:
                    return
                store.judge(
                    Answer(question.pair_id, rater, prefer(question), f"{rater}-key-{question.pair_id}")
                )
            raise KeyboardInterrupt

        serve.num_calls = 0
        return serve

    return make
