"""What importing costs, and that the layers hold from outside."""

import json
import subprocess
import sys

import pytest


def run_python(code):
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return finished.stdout


HEAVY = ["torch", "transformers", "peft", "matplotlib", "pyarrow", "rich", "tyro", "jinja2", "vaderSentiment"]


def test_importing_klimb_loads_numpy_and_the_array_layer_only():
    loaded = json.loads(run_python("import json, sys, klimb; print(json.dumps(sorted(sys.modules)))"))
    assert "numpy" in loaded
    assert not set(HEAVY) & set(loaded)


def test_the_definition_runs_without_torch():
    code = "import klimb, sys; klimb.rlhf_weight_update([1],[1],[0],[0],[[1]],0,1); print('torch' in sys.modules)"
    assert run_python(code).strip() == "False"


def test_the_command_line_loads_nothing_heavy_to_answer_help():
    code = (
        "import sys, contextlib, io\n"
        "from klimb.cli.main import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main(['--help'])\n"
        "print([name for name in ('torch', 'transformers', 'matplotlib', 'pyarrow') if name in sys.modules])"
    )
    assert run_python(code).strip() == "[]"


WITHOUT_FEEDBACK = """
import importlib, json, sys
import klimb
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in "alembic fastapi markdown_it pydantic sqlalchemy starlette uvicorn".split():
            raise ModuleNotFoundError("hidden", name=name)
sys.meta_path.insert(0, Hide())
for name in ("api", "training.run", "pairwise.compare", "reward.learn.training", "reward.score", "demo.demo"):
    importlib.import_module("klimb." + name)
print(json.dumps([[name for name in klimb.__all__ if not hasattr(klimb, name)], sorted(sys.modules)]))
"""


@pytest.mark.slow
def test_every_public_name_is_there_without_a_database_a_server_or_a_tracker():
    missing, loaded = json.loads(run_python(WITHOUT_FEEDBACK))
    assert missing == []
    assert not {"tensorboard", "wandb", "trackio", "mlflow"} & set(loaded)
