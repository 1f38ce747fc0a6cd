"""Secrets in options of a comparison do not get into what it writes."""

from klimb.config.pairwise import CompareConfig
from klimb.pairwise.compare import compare

SECRET = "hunter2"  # noqa: S105


def test_the_stores_password_is_in_no_file_of_a_comparison(
    model_folder, other_folder, prompts_file, tmp_path
):
    judge = tmp_path / "judge.py"
    judge.write_text("def longer(completions, **_):\n    return [float(len(c)) for c in completions]\n")
    out = tmp_path / "out" / "c.html"
    compare(
        CompareConfig(
            model_a=str(model_folder),
            model_b=str(other_folder),
            prompts=prompts_file,
            by=(f"{judge}:longer",),
            store=f"postgresql://ann:{SECRET}@host/feedback",
            out=out,
            completions_per_prompt=1,
            max_new_tokens=2,
        ),
        say=lambda _: None,
    )
    written = {file.name: file.read_text() for file in out.parent.iterdir()}
    assert written.keys() == {"c.html", "c.json"}
    for text in written.values():
        assert SECRET not in text
        assert "postgresql://ann:***@host/feedback" in text
